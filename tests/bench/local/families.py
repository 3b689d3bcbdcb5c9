"""Models of each family that the local embedder takes, and what it makes of them: families.py EMBED-PROGRAM FOLDER

Small ones with random weights: their vectors mean nothing. Transformers' own
implementation in PyTorch says what they should be, and vectors are compared
unscaled, by how far apart they are for their length. That of one pooling must
be far from those of the others: a model all of whose states are alike would
show nothing. Runs in the Python of the Infinity server of `make test-embedders`, which
has both.
"""

import json
import pathlib
import subprocess
import sys

import tokenizers
import torch
import transformers

program, scratch = sys.argv[1], pathlib.Path(sys.argv[2])
SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
TEXTS = ["a cat", "parcel " * 30, "of quantum physics and of cats", "one", "two three four five six seven"]
FAMILIES = {
    "bert": (transformers.BertConfig, transformers.BertModel),
    "roberta": (transformers.RobertaConfig, transformers.RobertaModel),
    "xlm-roberta": (transformers.XLMRobertaConfig, transformers.XLMRobertaModel),
    "camembert": (transformers.CamembertConfig, transformers.CamembertModel),
}
POOLINGS = {
    "cls_token": lambda states: states[0],
    "mean_tokens": lambda states: states.mean(dim=0),
    "mean_sqrt_len_tokens": lambda states: states.sum(dim=0) / len(states) ** 0.5,
    "max_tokens": lambda states: states.max(dim=0).values,
}


def tokenizer():
    """Words, framed by two tokens; the padding has number 1, as RoBERTa's positions begin after it."""
    words = ["<s>", "<pad>", "</s>", "<unk>", *sorted({word for text in TEXTS for word in text.split()})]
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: at for at, word in enumerate(words)}, "<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return made


def check(family, pooling):
    folder = scratch / f"{family}-{pooling}"
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    config_kind, model_kind = FAMILIES[family]
    words = tokenizer()
    torch.manual_seed(7)
    kinds = 2 if family == "bert" else 1
    config = config_kind(
        vocab_size=words.get_vocab_size(), pad_token_id=1, max_position_embeddings=66, type_vocab_size=kinds, **SIZES
    )
    model = model_kind(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            is_scale = name.endswith("LayerNorm.weight")
            weights.normal_(float(is_scale), 1.0 if "_embeddings" in name else 0.15)
    model.save_pretrained(folder, safe_serialization=True)
    words.save(str(folder / "tokenizer.json"))
    (folder / "1_Pooling/config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in modules]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "texts.json").write_text(json.dumps(TEXTS))
    subprocess.run(
        [program, folder, folder / "texts.json", folder / "vectors.json", "1"], check=True, stdout=subprocess.DEVNULL
    )
    apart, nearest = 0.0, float("inf")
    for text, ours in zip(TEXTS, json.loads((folder / "vectors.json").read_text())):
        with torch.no_grad():
            states = model(torch.tensor([words.encode(text).ids])).last_hidden_state[0]
        theirs = {pooling: pool(states) for pooling, pool in POOLINGS.items()}
        right = theirs.pop(pooling)
        apart = max(apart, distance(torch.tensor(ours), right))
        nearest = min(nearest, *(distance(other, right) for other in theirs.values()))
    if nearest < 0.05:
        sys.exit(f"{family} with {pooling}: the poolings are too alike to tell, {nearest:.3f}")
    return apart


def distance(vector, other):
    return (torch.linalg.norm(vector - other) / torch.linalg.norm(other)).item()


print(f"transformers {transformers.__version__}, torch {torch.__version__}; how far apart, of {len(TEXTS)} texts the most")
bad = 0
for family in FAMILIES:
    found = {pooling: check(family, pooling) for pooling in POOLINGS}
    bad += sum(not apart < 1e-4 for apart in found.values())
    print(f"{family}: " + ", ".join(f"{pooling} {apart:.1e}" for pooling, apart in found.items()))
sys.exit(bad > 0)
