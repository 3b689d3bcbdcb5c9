"""The local model beside ONNX Runtime: bench.py MODEL-FOLDER EMBED-PROGRAM SCRATCH-FOLDER

The same texts, sorted by length, 16 a call, tokenized by the same tokenizer, on
as many threads as there are cores; each in processes of its own, by turns, for
the machine may have other work. The best of their rounds counts. Int8 is what
ONNX Runtime's dynamic quantisation makes of the f32 model. Cosines are to
ONNX Runtime in f32.
"""

import json
import os
import pathlib
import random
import subprocess
import sys
import time

import numpy

TEXTS, BATCH, ROUNDS, TURNS = 64, 16, 2, 3


def texts(tokenizer):
    """Texts of 20 to 256 tokens, always the same, of words that the model has; and their tokens in all."""
    draw = random.Random(204)
    words = sorted(word for word in tokenizer.get_vocab() if word.isalpha() and len(word) > 2)
    made = []
    while len(made) < TEXTS:
        text = " ".join(draw.choices(words, k=int(draw.triangular(18, 254, 240))))
        tokens = len(tokenizer.encode(text).ids)
        if tokens <= 256:
            made.append((tokens, text))
    made.sort()
    return [text for _, text in made], sum(tokens for tokens, _ in made)


def load_tokenizer(folder):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    return tokenizer


def embed(session, tokenizer, batch):
    encoded = tokenizer.encode_batch(batch)
    rows = {
        "input_ids": numpy.array([it.ids for it in encoded]),
        "attention_mask": numpy.array([it.attention_mask for it in encoded]),
        "token_type_ids": numpy.array([it.type_ids for it in encoded]),
    }
    states = session.run(None, rows)[0]
    mask = rows["attention_mask"][..., None]
    vectors = (states * mask).sum(axis=1) / mask.sum(axis=1)
    return vectors / numpy.linalg.norm(vectors, axis=1, keepdims=True)


def onnx_runtime(model, folder, file, vectors):
    """A process of its own: says how many seconds a round takes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    tokenizer = load_tokenizer(folder)
    all_texts = json.loads(file.read_text(encoding="utf-8"))
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.monotonic()
        out = [embed(session, tokenizer, all_texts[at : at + BATCH]) for at in range(0, TEXTS, BATCH)]
        best = min(best, time.monotonic() - began)
    vectors.write_text(json.dumps(numpy.concatenate(out).tolist()), encoding="utf-8")
    print(json.dumps({"seconds": best}))


def quantize(f32, int8):
    """A process of its own: what it takes would count as the peak of those that come after."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Channel by channel: one scale for a whole matrix costs a seventh of the cosine.
    kind = {"DefaultTensorType": onnx.TensorProto.FLOAT}
    quantize_dynamic(f32, int8, weight_type=QuantType.QInt8, per_channel=True, extra_options=kind)


def run(command):
    """Seconds of the best round, and the peak of the process' memory in MiB."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        said = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command[0]} failed")
    return json.loads(said)["seconds"], used.ru_maxrss / 1024


def main():
    folder, program, scratch = pathlib.Path(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
    from importlib.metadata import version

    f32, int8, file = scratch / "model.onnx", scratch / "model-int8.onnx", scratch / "texts.json"
    here = pathlib.Path(__file__).parent
    subprocess.run([sys.executable, str(here / "to_onnx.py"), str(folder), str(f32)], check=True)
    subprocess.run([sys.executable, __file__, "--int8", str(f32), str(int8)], check=True)
    tokenizer = load_tokenizer(folder)
    tokenizer.no_padding()
    made, tokens = texts(tokenizer)
    file.write_text(json.dumps(made), encoding="utf-8")

    def runtime(model, name):
        return [sys.executable, __file__, "--onnx", str(model), str(folder), str(file), str(scratch / name)]

    ours = [program, str(folder), str(file), str(scratch / "weir.json"), str(ROUNDS)]
    engines = {
        "weir-bert, f32": (ours, "weir.json"),
        f"ONNX Runtime {version('onnxruntime')}, f32": (runtime(f32, "f32.json"), "f32.json"),
        f"ONNX Runtime {version('onnxruntime')}, int8": (runtime(int8, "int8.json"), "int8.json"),
    }
    found = {name: [] for name in engines}
    for _ in range(TURNS):
        for name, (command, _) in engines.items():
            found[name].append(run(command))
    reference = numpy.array(json.loads((scratch / "f32.json").read_text()))
    print(f"{TEXTS} texts of {tokens / TEXTS:.0f} tokens on average, {os.cpu_count()} cores")
    print("| Engine | Texts/s | Peak memory | Cosine to f32, least |\n|---|---|---|---|")
    for name, (_, vectors) in engines.items():
        seconds, peak = min(it[0] for it in found[name]), max(it[1] for it in found[name])
        cosines = (numpy.array(json.loads((scratch / vectors).read_text())) * reference).sum(axis=1)
        print(f"| {name} | {TEXTS / seconds:.1f} | {peak:.0f} MiB | {cosines.min():.6f} |")


if sys.argv[1] == "--onnx":
    onnx_runtime(sys.argv[2], pathlib.Path(sys.argv[3]), pathlib.Path(sys.argv[4]), pathlib.Path(sys.argv[5]))
elif sys.argv[1] == "--int8":
    quantize(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]))
else:
    main()
