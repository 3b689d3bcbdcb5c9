"""Writes the local model of `make runtime` as ONNX Runtime reads it: to_onnx.py FOLDER FILE

For a sentence-transformers folder of a BERT model with f32 safetensors. Its
layers are those that ONNX Runtime's own optimiser makes of an export, so there
is nothing left to fuse. Not a number of it is changed. From token ids to the
last hidden states: pooling is left to the caller.
"""

import json
import pathlib
import sys

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

folder, target = pathlib.Path(sys.argv[1]), sys.argv[2]
config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
if config["model_type"] != "bert":
    sys.exit(f"{folder} holds a {config['model_type']} model; this is for BERT only")
if config["hidden_act"] != "gelu":
    sys.exit(f"{folder} has {config['hidden_act']}; this is for gelu only")


def tensors(path):
    """Names and arrays of a safetensors file: a JSON header, then the numbers."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    for name, about in json.loads(data[8:start]).items():
        if name != "__metadata__" and about["dtype"] == "F32":
            begin, end = about["data_offsets"]
            array = numpy.frombuffer(data[start + begin : start + end], dtype="<f4")
            yield name.removeprefix("bert."), array.reshape(about["shape"])


weights = dict(tensors(folder / "model.safetensors"))
nodes, initializers = [], []


def constant(name, array):
    initializers.append(numpy_helper.from_array(numpy.ascontiguousarray(array), name))
    return name


def node(kind, inputs, output, domain="", **attributes):
    nodes.append(helper.make_node(kind, inputs, [output], name=output, domain=domain, **attributes))
    return output


def fused(kind, inputs, output, **attributes):
    return node(kind, inputs, output, domain="com.microsoft", **attributes)


def weight(name):
    """A tensor of the file as it is."""
    return constant(name, weights[name])


def product(rows, name, output):
    """Rows times a matrix of the file, which has it transposed."""
    return node("MatMul", [rows, constant(f"{name}.transposed", weights[f"{name}.weight"].T)], output)


epsilon = config["layer_norm_eps"]
table = "embeddings.{}_embeddings.weight"
words = node("Gather", [weight(table.format("word")), "input_ids"], "words")
kinds = node("Gather", [weight(table.format("token_type")), "token_type_ids"], "kinds")
node("Shape", ["input_ids"], "length", start=1, end=2)
places = [weight(table.format("position")), constant("zero", numpy.array([0])), "length", constant("first", numpy.array([0]))]
places = node("Slice", places, "places")
summed = node("Add", [node("Add", [words, kinds], "words_and_kinds"), places], "embedded")
norm = [weight("embeddings.LayerNorm.weight"), weight("embeddings.LayerNorm.bias")]
rows = node("LayerNormalization", [summed, *norm], "layer.0", axis=-1, epsilon=epsilon)
mask = node("Cast", ["attention_mask"], "mask", to=TensorProto.INT32)

for index in range(config["num_hidden_layers"]):
    at = f"encoder.layer.{index}"
    three = [f"{at}.attention.self.{which}" for which in ("query", "key", "value")]
    matrix = constant(f"{at}.qkv", numpy.concatenate([weights[f"{it}.weight"].T for it in three], axis=1))
    bias = constant(f"{at}.qkv.bias", numpy.concatenate([weights[f"{it}.bias"] for it in three]))
    seen = fused("Attention", [rows, matrix, bias, mask], f"{at}.seen", num_heads=config["num_attention_heads"])

    def add_and_norm(new, old, name, output):
        norm = [weight(f"{at}.{name}.LayerNorm.weight"), weight(f"{at}.{name}.LayerNorm.bias")]
        return fused("SkipLayerNormalization", [new, old, *norm, weight(f"{at}.{name}.dense.bias")], output, epsilon=epsilon)

    new = product(seen, f"{at}.attention.output.dense", f"{at}.projected")
    rows = add_and_norm(new, rows, "attention.output", f"{at}.attended")
    wide = product(rows, f"{at}.intermediate.dense", f"{at}.wide")
    wide = fused("BiasGelu", [wide, weight(f"{at}.intermediate.dense.bias")], f"{at}.active")
    new = product(wide, f"{at}.output.dense", f"{at}.narrow")
    last = index + 1 == config["num_hidden_layers"]
    rows = add_and_norm(new, rows, "output", "last_hidden_state" if last else f"layer.{index + 1}")

inputs = [
    helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
    for name in ("input_ids", "attention_mask", "token_type_ids")
]
output = helper.make_tensor_value_info(rows, TensorProto.FLOAT, ["batch", "length", config["hidden_size"]])
graph = helper.make_graph(nodes, "bert", inputs, [output], initializers)
opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), target)
