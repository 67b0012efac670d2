"""Folders as sentence-transformers writes and reads them, and the vectors that it gives with each.

    python tests/golden/make_sentence_transformers.py

Python with torch 2.15, transformers 5.24, sentence-transformers 6.2. Each folder of tests/golden/sentence_transformers
holds what differs from tests/models/novel5m (in float32); a test puts both together. `expected.safetensors` has for each
folder the vectors of TEXTS, by `SentenceTransformer(folder).encode(TEXTS)` on the CPU with no other argument (but for the
folder's prompt name, where it ends in `+NAME`).
"""

import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

HERE = Path(__file__).resolve().parent
MODEL, OUT = HERE.parent / "models" / "novel5m", HERE / "sentence_transformers"
TEXTS = [
    "A heavy rain fell upon the roof all night.",
    "The DOG ran home to its Mother.",
    "  two leading spaces, and a tail  ",
    "naïve café — “quoted” … 日本語 🙂",
    "One day, the big dog saw a small bird in the park. The bird could not fly, so the dog helped it find its way home.",
    "The old man walked slowly along the river and thought about the long summer of his youth. " * 3,
]
WEIGHTS = {"model.safetensors"}
OLD = "sentence_transformers.models."


def base(folder, **config):
    """novel5m in float32, with other keys in its config.json."""
    shutil.copytree(MODEL, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"torch_dtype": "float32"} | config, indent=2))


def new_form(folder, *after, pooling="mean", include_prompt=True, config={}, prompts=None, default=None, **how):
    """As today's sentence-transformers saves it."""
    with tempfile.TemporaryDirectory() as temp:
        plain = Path(temp) / "plain"
        base(plain, **config)
        transformer = Transformer(str(plain), **how)
        modules = [transformer, Pooling(256, pooling, include_prompt=include_prompt), *after]
        model = SentenceTransformer(modules=modules, device="cpu", prompts=prompts, default_prompt_name=default)
        model.save(str(folder))
    return folder


def old_form(folder, modules, files, config={}):
    """As versions before 5.4 saved it: class names and switches of then."""
    base(folder, **config)
    listed = [{"idx": i, "name": str(i), "path": path, "type": OLD + kind} for i, (kind, path) in enumerate(modules)]
    for name, keys in ({"modules.json": listed} | files).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(keys, indent=2))
    return folder


def switches(mode, **more):
    names = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"]
    return {"word_embedding_dimension": 256} | {f"pooling_mode_{n}": n == mode for n in names} | more


def with_eos(folder):
    """The tokenizer appends EOS itself."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    post = tokenizer["post_processor"]
    templates = [post] if post["type"] == "TemplateProcessing" else post["processors"]
    template = next(p for p in templates if p["type"] == "TemplateProcessing")
    template["single"].append({"SpecialToken": {"id": "<eos>", "type_id": 0}})
    template["special_tokens"]["<eos>"] = {"id": "<eos>", "ids": [2], "tokens": ["<eos>"]}
    path.write_text(json.dumps(tokenizer))


TWO = [("Transformer", ""), ("Pooling", "1_Pooling")]
PROMPTS = {"query": "Find: ", "document": "passage: "}


def folders(root):
    torch.manual_seed(7)
    yield new_form(root / "mean")
    yield new_form(root / "weighted-mean", pooling="weightedmean")
    yield new_form(root / "cls", pooling="cls")
    yield new_form(root / "full", config={"is_causal": False})
    yield new_form(root / "normalize", Normalize())
    yield new_form(root / "dense", Dense(256, 24), Normalize())
    residual = Dense(256, 16, bias=False, activation_function=torch.nn.SiLU(), use_residual=True)
    yield new_form(root / "dense-residual", Normalize(), residual)
    yield new_form(root / "max-length", max_seq_length=7)
    yield new_form(root / "prompts", prompts=PROMPTS, default="query")
    yield new_form(root / "prompt-not-pooled", include_prompt=False, prompts=PROMPTS, default="document")
    cut = new_form(root / "truncate-dim", Normalize())
    path = cut / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"truncate_dim": 32}, indent=2))
    yield cut
    last = new_form(root / "last-eos", pooling="lasttoken")
    with_eos(last)
    yield last
    yield old_form(root / "old-mean", TWO, {"1_Pooling/config.json": switches("mean_tokens")})
    yield old_form(
        root / "old-last-length", TWO,
        {"1_Pooling/config.json": switches("lasttoken", include_prompt=True),
         "sentence_bert_config.json": {"max_seq_length": 9, "do_lower_case": True}},
        {"is_causal": False},
    )
    yield old_form(
        root / "old-normalize", [*TWO, ("Dropout", "2_Dropout"), ("Normalize", "3_Normalize")],
        {"1_Pooling/config.json": switches("weightedmean_tokens"), "2_Dropout/config.json": {"dropout": 0.1},
         "config_sentence_transformers.json": {"prompts": PROMPTS, "default_prompt_name": None}},
    )


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    expected = {}
    with tempfile.TemporaryDirectory() as temp:
        for folder in folders(Path(temp)):
            (folder / "README.md").unlink(missing_ok=True)
            model = SentenceTransformer(str(folder), device="cpu")
            vectors = lambda **how: torch.from_numpy(model.encode(TEXTS, **how)).contiguous()
            expected[folder.name] = vectors()
            if folder.name in ("prompts", "old-normalize"):
                expected[folder.name + "+document"] = vectors(prompt_name="document")
            for path in sorted(folder.rglob("*")):
                here = path.relative_to(folder)
                same = MODEL / here
                if path.is_dir() or str(here) in WEIGHTS or same.exists() and same.read_bytes() == path.read_bytes():
                    continue
                # The same tokenizer in another layout is no difference.
                if here.name == "tokenizer.json" and folder.name != "last-eos":
                    continue
                target = OUT / folder.name / here
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    save_file(expected, OUT / "expected.safetensors")
    (OUT / "texts.json").write_text(json.dumps(TEXTS, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print({name: tuple(v.shape) for name, v in expected.items()})


if __name__ == "__main__":
    main()
