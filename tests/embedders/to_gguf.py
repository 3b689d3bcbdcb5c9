"""Writes the local model of `make runtime` as llama.cpp reads it: to_gguf.py FOLDER FILE

For a sentence-transformers folder of a BERT model with a WordPiece vocabulary,
f32 safetensors and mean pooling. Not a number of it is changed.
"""

import json
import pathlib
import sys

import gguf
import numpy

folder, target = pathlib.Path(sys.argv[1]), sys.argv[2]
config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
if config["model_type"] != "bert":
    sys.exit(f"{folder} holds a {config['model_type']} model; this is for BERT only")
pooling = json.loads((folder / "1_Pooling/config.json").read_text(encoding="utf-8"))
if not pooling["pooling_mode_mean_tokens"]:
    sys.exit(f"{folder} does not pool by the mean")


def tensors(path):
    """Names and arrays of a safetensors file: a JSON header, then the numbers."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    for name, about in json.loads(data[8:start]).items():
        if name != "__metadata__":
            begin, end = about["data_offsets"]
            array = numpy.frombuffer(data[start + begin : start + end], dtype=about["dtype"].replace("F32", "<f4").replace("I64", "<i8"))
            yield name, array.reshape(about["shape"])


def piece(token):
    """A token as llama.cpp has it: a word begins with ▁, and what follows has no ##."""
    if token.startswith("[") and token.endswith("]"):
        return token
    return token[2:] if token.startswith("##") else "▁" + token


layers = config["num_hidden_layers"]
writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.BERT])
writer.add_context_length(config["max_position_embeddings"])
writer.add_embedding_length(config["hidden_size"])
writer.add_feed_forward_length(config["intermediate_size"])
writer.add_block_count(layers)
writer.add_head_count(config["num_attention_heads"])
writer.add_layer_norm_eps(config["layer_norm_eps"])
writer.add_causal_attention(False)
writer.add_pooling_type(gguf.PoolingType.MEAN)
writer.add_file_type(gguf.LlamaFileType.ALL_F32)

vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
special = {token for token in vocabulary if token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")}
control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
writer.add_tokenizer_model("bert")
writer.add_token_list([piece(token) for token in vocabulary])
writer.add_token_types([control if token in special else normal for token in vocabulary])
writer.add_token_type_count(config["type_vocab_size"])
writer.add_bos_token_id(vocabulary.index("[CLS]"))
writer.add_eos_token_id(vocabulary.index("[SEP]"))
writer.add_sep_token_id(vocabulary.index("[SEP]"))
writer.add_unk_token_id(vocabulary.index("[UNK]"))
writer.add_pad_token_id(vocabulary.index("[PAD]"))
writer.add_mask_token_id(vocabulary.index("[MASK]"))

names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, layers)
for name, array in tensors(folder / "model.safetensors"):
    # What embeddings do not need.
    if name.startswith("pooler.") or name.endswith("position_ids"):
        continue
    ours = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if ours is None:
        sys.exit(f"{name} of {folder} has no place in llama.cpp's BERT")
    writer.add_tensor(ours, array)

writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
