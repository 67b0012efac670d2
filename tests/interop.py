"""Round trips with the real readers and writers: NumPy, safetensors, Transformers, PEFT, sentence-transformers and the
reference implementation, each used as its users do.

    tests/interop.sh                                   # makes the Python environments below target/interop, runs this
    python tests/interop.py --binary target/release/llm2vec [--older FOLDER] [--oldest FOLDER] [--record]

Python with numpy, safetensors, torch 2.15, transformers 5.24, peft 0.21, sentence-transformers 6.2. `--older` has
transformers 5.2 and `--oldest` transformers 4.44, peft 0.12 and llm2vec 0.2.3, each a folder of `pip install -t`. Checks against mteb (2.26) are skipped
where it is not installed. CPU, a few minutes. One line per check; exit status 0 only if all pass, and also 0, with a line that says so, where torch is not
installed. `--record` keeps what was seen of merged folders under tests/golden/merged, for tests without Python.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # the golden adapters name a base that is no hub's
warnings.simplefilter("ignore")

try:
    import numpy as np
    import torch
    import transformers
    from safetensors.torch import load_file, save_file
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging
except ImportError as e:
    if "--child" in sys.argv:
        raise
    print(f"skipped: no torch, or a package that goes with it ({e})")
    sys.exit(0)

TESTS = Path(__file__).resolve().parent
MODEL = TESTS / "models" / "novel5m"
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TEXTS = [
    "a", "!", "Yes.", "The cat sat on the mat.", "A cat was sitting on a mat.",
    "Once upon a time, there was a little girl named Lily.", "two  spaces   here", "Tabs\tand\nnewlines\r\nmixed",
    "naïve café — “quoted” …", "日本語の文と中文句子。", "smile 🙂 and flags 🇳🇱!", "Здравствуй, мир",
    "1234567890 3.14159 1,000,000 (2024-01-31)", 'fn main() { println!("{}", a_b[0] + 1); }',
    "One day, the big dog saw a small bird in the park. The bird could not fly, so the dog helped it find its way home.",
    "The old man walked slowly along the river and thought about the long summer of his youth. " * 6,
]


class Binary:
    def __init__(self, path, folder, older=None, oldest=None, record=False):
        self.path, self.folder, self.older, self.oldest, self.record = path, folder, older, oldest, record
        self.input = folder / "texts.jsonl"
        self.input.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS), encoding="utf-8")

    def __call__(self, *args):
        done = subprocess.run([self.path, *map(str, args)], capture_output=True, text=True)
        assert done.returncode == 0, f"`llm2vec {' '.join(map(str, args))}`: {done.stderr.strip()[-400:]}"

    def encode(self, name, *args, model=MODEL):
        out = self.folder / name
        self("encode", "--model", model, "--input", self.input, "--output", out, "--pool-over", "all", "--device", "cpu",
             *args)
        return out


def means(model, tokenizer):
    """Bidirectional mean-pooled states of TEXTS, one by one: the stock model under an all-zero 4-D mask."""
    rows = []
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        t = ids.shape[1]
        with torch.no_grad():
            h = model(input_ids=ids, attention_mask=torch.zeros(1, 1, t, t), use_cache=False).last_hidden_state
        rows.append(h[0].mean(0))
    return torch.stack(rows).numpy()


def load(folder, **how):
    return AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **how)


def smallest_cosine(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min()


def random_adapter(folder):
    """An adapter that PEFT itself writes, both factors random."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    peft = get_peft_model(load(MODEL), LoraConfig(r=4, lora_alpha=8, target_modules=MODULES, init_lora_weights=False))
    peft.save_pretrained(folder)
    return folder


def widened_model(folder):
    """The same checkpoint in float32."""
    shutil.copytree(MODEL, folder)
    weights = {k: v.float() for k, v in load_file(MODEL / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((MODEL / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32"}))
    return folder


# ---- checks: each returns what to print, or raises -------------------------------------------------------------------

def numpy_and_jsonl_agree(run):
    npy, jsonl = np.load(run.encode("f32.npy")), run.encode("f32.jsonl")
    assert npy.dtype == np.float32 and npy.shape[0] == len(TEXTS) and npy.flags.c_contiguous, (npy.dtype, npy.shape)
    lines = [json.loads(line) for line in jsonl.read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(len(TEXTS)))
    rows = np.array([line["embedding"] for line in lines], np.float32)
    assert np.array_equal(rows, npy), f"largest difference {abs(rows - npy).max()}"
    mapped = np.load(run.folder / "f32.npy", mmap_mode="r")
    assert np.array_equal(mapped, npy)
    return f"{npy.shape[0]} x {npy.shape[1]}"


def safetensors_agree(run):
    npy, tensors = np.load(run.encode("f32.npy")), load_file(run.encode("f32.safetensors"))
    (name, x), = tensors.items()
    assert x.dtype == torch.float32 and np.array_equal(x.numpy(), npy), (x.dtype, x.shape)
    return f"tensor {name!r}"


def f16_agrees(run):
    wide, half = np.load(run.encode("f32.npy")), np.load(run.encode("f16.npy", "--output-dtype", "f16"))
    (_, other), = load_file(run.encode("f16.safetensors", "--output-dtype", "f16")).items()
    assert half.dtype == np.float16 and np.array_equal(half, wide.astype(np.float16))
    assert np.array_equal(other.numpy(), half)
    return "rounded to nearest even"


def i8_agrees(run):
    wide, small = np.load(run.encode("f32.npy")), np.load(run.encode("i8.npy", "--output-dtype", "i8"))
    scale = np.load(run.folder / "i8.scale.npy")
    assert small.dtype == np.int8 and scale.dtype == np.float32 and scale.shape == (len(TEXTS),), scale.shape
    gap = abs(small * scale[:, None] - wide)
    assert (gap <= 0.501 * scale[:, None]).all(), gap.max()
    tensors = load_file(run.encode("i8.safetensors", "--output-dtype", "i8"))
    (kept,) = (t for t in tensors.values() if t.dtype == torch.int8)
    (scales,) = (t for t in tensors.values() if t.dtype == torch.float32)
    assert np.array_equal(kept.numpy(), small) and np.array_equal(scales.numpy().ravel(), scale)
    return f"half a step at most, tensors {', '.join(sorted(tensors))}"


def encode_equals_transformers(run):
    ours = np.load(run.encode("f32.npy"))
    theirs = means(load(MODEL), AutoTokenizer.from_pretrained(MODEL))
    cosine, gap = smallest_cosine(ours, theirs), abs(ours - theirs).max()
    assert cosine > 0.99999 and gap < 1e-3, f"smallest cosine {cosine:.7f}, largest difference {gap:.1e}"
    return f"smallest cosine {cosine:.7f}, largest difference {gap:.1e}"


def merge_equals_peft(run, dtype):
    from peft import PeftModel

    base = MODEL if dtype == torch.bfloat16 else widened_model(run.folder / "widened")
    kind = str(dtype).removeprefix("torch.")
    adapter, merged = random_adapter(run.folder / f"adapter-{kind}"), run.folder / f"merged-{kind}"
    run("merge", "--model", base, "--adapter", adapter, "--output", merged)

    loaded, info = AutoModel.from_pretrained(merged, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    assert loaded.dtype == dtype, f"Transformers loads it as {loaded.dtype}"
    peft = PeftModel.from_pretrained(load(base), adapter).merge_and_unload()
    want, got, before = peft.state_dict(), loaded.state_dict(), load(base).state_dict()
    assert want.keys() == got.keys(), want.keys() ^ got.keys()
    changed, most = 0, 0.0
    for name, w in want.items():
        # One rounding: a unit in the last place of the stored type, and float32's own order of summing.
        gap, unit = (got[name].float() - w).abs(), torch.finfo(dtype).eps * w.abs() + 1e-6
        assert (gap <= unit).all(), f"{name} is off by {(gap / unit).max():.2f} units"
        most = max(most, (gap / unit).max().item())
        changed += not torch.equal(w, before[name])
    assert changed == 7 * loaded.config.num_hidden_layers, f"the adapter changed {changed} matrices"

    tokenizer = AutoTokenizer.from_pretrained(merged)
    cosine = smallest_cosine(np.load(run.encode("merged.npy", model=merged)), means(loaded.float(), tokenizer))
    assert cosine > 0.99999, f"encode of the merged folder: smallest cosine {cosine:.7f}"
    return f"{changed} matrices, at most {most:.2f} of a unit; encode's smallest cosine {cosine:.7f}"


def live_adapter_equals_peft(run):
    from peft import PeftModel

    adapter = random_adapter(run.folder / "adapter-live")
    ours = np.load(run.encode("live.npy", "--adapter", adapter))
    theirs = means(PeftModel.from_pretrained(load(MODEL), adapter).eval(), AutoTokenizer.from_pretrained(MODEL))
    cosine, base = smallest_cosine(ours, theirs), smallest_cosine(np.load(run.encode("f32.npy")), theirs)
    assert cosine > 0.99999, f"smallest cosine {cosine:.7f}"
    assert base < 0.999, f"the adapter changes nothing to speak of ({base:.7f})"
    return f"smallest cosine {cosine:.7f}, without the adapter {base:.3f}"


def peft_loads_golden_adapters(_):
    from peft import PeftModel, get_peft_model_state_dict

    folders = sorted(TESTS.glob("golden/*/lora_init"))
    assert folders, "no tests/golden/*/lora_init"
    for folder in folders:
        peft = PeftModel.from_pretrained(load(folder.parent / "model"), folder).eval()
        kept, file = get_peft_model_state_dict(peft), load_file(folder / "adapter_model.safetensors")
        assert kept.keys() == file.keys(), kept.keys() ^ file.keys()
        assert all(torch.equal(kept[k], file[k]) for k in file)
        golden = load_file(folder.parent / "golden.safetensors")
        ids = golden["simcse.input_ids"][:1, golden["simcse.attention_mask"][0].bool()]
        t = ids.shape[1]
        with torch.no_grad():
            h = peft(input_ids=ids, attention_mask=torch.zeros(1, 1, t, t), use_cache=False).last_hidden_state[0]
        assert torch.allclose(h, golden["lora.hidden"], atol=2e-4, rtol=1e-4), f"{folder}: states differ"
    return ", ".join(f.parent.name for f in folders)


def peft_loads_a_trained_adapter(run):
    """What `train` writes is PEFT's to the letter: its tensors, and the states that the model gives with it."""
    from peft import AutoPeftModelForFeatureExtraction, PeftModel, get_peft_model_state_dict

    data, folder = TESTS / "texts" / "persuasion.train.txt.gz", run.folder / "trained"
    run("train", "simcse", "--model", MODEL, "--data", data, "--output", folder, "--steps", 3, "--batch", 8,
        "--max-length", 32, "--lr", 1e-2, "--rank", 4, "--modules", "q_proj,v_proj,o_proj,up_proj,down_proj", "--quiet")
    peft = PeftModel.from_pretrained(load(MODEL), folder).eval()
    kept, file = get_peft_model_state_dict(peft), load_file(folder / "adapter_model.safetensors")
    assert kept.keys() == file.keys(), kept.keys() ^ file.keys()
    assert all(torch.equal(kept[k], file[k]) for k in file)
    assert len(file) == 2 * 5 * peft.base_model.config.num_hidden_layers, len(file)
    opened = AutoPeftModelForFeatureExtraction.from_pretrained(folder)
    assert type(opened).__name__ == "PeftModelForFeatureExtraction", type(opened)
    ours = np.load(run.encode("trained.npy", "--adapter", folder))
    theirs = means(peft, AutoTokenizer.from_pretrained(folder))
    cosine, base = smallest_cosine(ours, theirs), smallest_cosine(np.load(run.encode("f32.npy")), theirs)
    assert cosine > 0.99999, f"smallest cosine {cosine:.7f}"
    assert base < 0.999, f"training changed nothing to speak of ({base:.7f})"
    return f"{len(file)} tensors; smallest cosine {cosine:.7f}, without the adapter {base:.3f}"


# ---- merged folders, opened as their users do: no mask, no pooling, no length of our own ----------------------------

GOLDEN = TESTS / "golden" / "merged"

# Name, and the flags of `merge`. tests/all/cli/merge.rs makes the same folders.
MERGED = {
    "mean": ["--pool-over", "all"],
    "eos-normalize": ["--pooling", "eos", "--normalize", "--max-length", "24"],
    "weighted-mean": ["--pooling", "weighted-mean", "--pool-over", "all"],
    "causal-last": ["--pooling", "last", "--attention", "causal"],
}


def plain_base(folder):
    """novel5m in float32, its merges written as Transformers 4 reads them too."""
    widened_model(folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    merges = tokenizer["model"]["merges"]
    tokenizer["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in merges]
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    inputs = {"model_input_names": ["input_ids", "attention_mask"]}  # as the tokenizers of Llama and Mistral have it
    path.write_text(json.dumps(json.loads(path.read_text()) | inputs))
    return folder


def small_adapter(run, base):
    """The adapter of the fixtures; made once, since its numbers are committed."""
    if run.record:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(11)
        config = LoraConfig(r=2, lora_alpha=16, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        peft = get_peft_model(load(MODEL), config)
        peft.peft_config["default"].base_model_name_or_path = "novel5m"
        peft.save_pretrained(GOLDEN / "adapter")
        (GOLDEN / "adapter" / "README.md").unlink()
    return GOLDEN / "adapter"


def merged(run, name):
    base, folder = run.folder / "plain-base", run.folder / f"merged-{name}"
    if not base.exists():
        plain_base(base)
    if not folder.exists():
        run("merge", "--model", base, "--adapter", small_adapter(run, base), "--output", folder, *MERGED[name])
    return folder


def own(run, folder, *args):
    """What `encode -m FOLDER` gives, no other flag but these."""
    out = run.folder / "own.npy"
    run("encode", "--model", folder, "--input", run.input, "--output", out, "--device", "cpu", *args)
    return np.load(out)


def same(ours, theirs, what):
    gap, size = abs(ours - theirs).max(), max(abs(theirs).max(), 1.0)
    assert gap <= 1e-5 * size, f"{what}: off by {gap:.1e}, the largest number is {size:.1f}"
    return f"{what} {gap:.0e}"


def elsewhere(run, packages, mode, folder, *more):
    """Vectors of TEXTS by this file in a process that has other packages first."""
    out = run.folder / "elsewhere.npy"
    command = [sys.executable, __file__, "--child", mode, str(folder), str(run.input), str(out), *map(str, more)]
    env = os.environ | {"PYTHONPATH": str(packages)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, f"{mode}: {done.stderr.strip()[-600:]}"
    return np.load(out)


def sentence_transformers_open_merged_folders(run):
    from sentence_transformers import SentenceTransformer

    found, expected = [], {}
    for name in MERGED:
        folder = merged(run, name)
        theirs = SentenceTransformer(str(folder)).encode(TEXTS)
        found.append(same(own(run, folder), theirs, name))
        expected[name] = torch.from_numpy(theirs).contiguous()
        if run.record:
            keep_files(folder, GOLDEN / name)
    if run.record:
        save_file(expected, GOLDEN / "expected.safetensors")
        (GOLDEN / "texts.json").write_text(json.dumps(TEXTS, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return ", ".join(found)


def sentence_transformers_cuts_and_packs_alike(run):
    """A merged folder with `--dimensions`, and bits as `encode(precision=...)` has them."""
    from sentence_transformers import SentenceTransformer

    folder = run.folder / "merged-cut"
    merged(run, "mean")  # leaves the base
    run("merge", "--model", run.folder / "plain-base", "--pool-over", "all", "--dimensions", 48, "--output", folder)
    model = SentenceTransformer(str(folder))
    found = [same(own(run, folder), model.encode(TEXTS), "48 of 256 numbers")]
    for precision in ("binary", "ubinary"):
        ours, theirs = own(run, folder, "--output-dtype", precision), model.encode(TEXTS, precision=precision)
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, (ours.dtype, theirs.dtype, ours.shape)
        assert (ours == theirs).all(), f"{precision}: {(ours != theirs).sum()} bytes differ"
        found.append(f"{precision} equal")
    return ", ".join(found)


def matryoshka_losses_are_those_of_sentence_transformers(run):
    """The loss of a first step, which nothing has changed yet, by MatryoshkaLoss over MultipleNegativesRankingLoss."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.losses import MatryoshkaLoss, MultipleNegativesRankingLoss

    folder, dims, weights = merged(run, "mean"), [256, 96, 32], [1.0, 0.5, 2.0]
    columns = TEXTS[:5], TEXTS[5:10], TEXTS[10:15]
    rows = run.folder / "triplets.jsonl"
    rows.write_text("".join(json.dumps(dict(zip(("anchor", "positive", "negative"), row))) + "\n" for row in zip(*columns)))
    config, out = run.folder / "matryoshka.json", run.folder / "matryoshka"
    config.write_text(json.dumps({"matryoshka_dims": dims, "matryoshka_weights": weights}))
    run("train", "supervised", "--config", config, "--model", folder, "--data", rows, "--output", out, "--steps", 1,
        "--batch", 5, "--lora-dropout", 0, "--scale", 20, "--max-length", 64, "--quiet")
    ours = json.loads((out / "log.jsonl").read_text().splitlines()[0])["loss"]
    model = SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = 64
    loss = MatryoshkaLoss(model, MultipleNegativesRankingLoss(model, scale=20.0), dims, weights)
    with torch.no_grad():
        theirs = float(loss([model.preprocess(list(column)) for column in columns], None))
    assert abs(ours - theirs) <= 1e-5 * theirs, f"{ours} by train, {theirs} by MatryoshkaLoss"
    return f"{ours:.6f} and {theirs:.6f}"


def keep_files(folder, to):
    """All but weights and tokenizer; of the latter its post-processor."""
    shutil.rmtree(to, ignore_errors=True)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in ("model.safetensors", "tokenizer.json"):
            target = to / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (to / "post_processor.json").write_text(json.dumps(tokenizer["post_processor"], indent=2) + "\n")


def stock_means(folder):
    """Mean over every token of `AutoModel.from_pretrained(folder)`, with no other argument."""
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in TEXTS:
        with torch.no_grad():
            rows.append(model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].float().mean(0))
    return torch.stack(rows).numpy()


def auto_model_opens_a_merged_folder(run):
    folder = merged(run, "mean")
    found = [same(own(run, folder), stock_means(folder), f"transformers {transformers.__version__}")]
    if run.older:
        found.append(same(own(run, folder), elsewhere(run, run.older, "means", folder), "5.2"))
    if run.oldest:
        # Causal there, whatever config.json says; the model card says so.
        causal = own(run, folder, "--attention", "causal")
        found.append(same(causal, elsewhere(run, run.oldest, "means", folder), "4.44, causal"))
        assert "5.2" in (folder / "README.md").read_text()
    return ", ".join(found)


def reference_opens_what_we_write(run):
    """`LLM2Vec.from_pretrained(base, our adapter)` and of a merged folder."""
    if not run.oldest:
        return "skipped: no --oldest"
    folder, base, found = merged(run, "mean"), run.folder / "plain-base", []
    theirs = elsewhere(run, run.oldest, "reference", folder)
    found.append(same(own(run, folder, "--compat", "reference"), theirs, "merged"))
    data, trained = TESTS / "texts" / "persuasion.train.txt.gz", run.folder / "trained-reference"
    run("train", "simcse", "--model", base, "--data", data, "--output", trained, "--steps", 3, "--batch", 8, "--max-length", 32,
        "--lr", 1e-2, "--rank", 4, "--quiet")
    theirs = elsewhere(run, run.oldest, "reference", base, trained)
    found.append(same(own(run, base, "--adapter", trained, "--compat", "reference"), theirs, "adapter"))
    return ", ".join(found)


def mteb_reads_the_results_of_a_suite(run):
    try:
        from mteb.results import TaskResult
    except ImportError as e:
        return f"skipped: no mteb ({e})"
    data, out = run.folder / "suite", run.folder / "results"
    (data / "sts").mkdir(parents=True)
    shutil.copy(TESTS / "texts" / "sts.tsv", data / "sts" / "sts.tsv")
    run("eval", "suite", "-q", "-m", MODEL, "--data", data, "-o", out)
    scores = run.folder / "scores.json"
    run("eval", "sts", "-q", "-m", MODEL, "--data", data / "sts" / "sts.tsv", "-o", scores)
    files = [f for f in out.rglob("*.json") if f.name != "suite.json"]
    assert len(files) == 1, files
    theirs = TaskResult.from_disk(files[0]).get_score()
    ours = json.loads(scores.read_text())["scores"]["cosine_spearman"]
    # mteb rounds what it reads to six places.
    assert abs(theirs - ours) < 1e-6, f"{theirs} in the file, {ours} by eval sts"
    return f"main score {theirs:.4f}"


def eval_equals_mteb(run):
    try:
        import mteb  # noqa: F401
    except ImportError as e:
        return f"skipped: no mteb ({e})"
    data, script = run.folder / "compared", TESTS.parent / "benches" / "mteb" / "compare.py"
    lines = (TESTS / "texts" / "sentences.txt").read_text(encoding="utf-8").splitlines()[:40]
    halves = [(line[: len(line) // 2], line[len(line) // 2 :]) for line in lines]
    sets = {
        "pairs/halves": [{"text1": a, "text2": b, "label": i % 2} for i, (a, b) in enumerate(halves)],
        "bitext/halves": [{"source": a, "target": b} for a, b in halves],
    }
    for name, rows in sets.items():
        (data / name).mkdir(parents=True)
        (data / name / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = [sys.executable, script, "--binary", run.path, *(data / name for name in sets), "--", "-m", MODEL]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    said = [line for line in done.stdout.splitlines() if line.startswith("equal\t")]
    assert done.returncode == 0 and len(said) == len(sets), (done.stdout + done.stderr).strip()[-800:]
    return "; ".join(" ".join(line.split("\t")[1:]) for line in said)


def child(mode, folder, texts, out, *more):
    """In a process with other versions first on its path."""
    global TEXTS
    TEXTS = [json.loads(line)["text"] for line in Path(texts).read_text(encoding="utf-8").splitlines()]
    if mode == "means":
        rows = stock_means(folder)
    else:
        from llm2vec import LLM2Vec

        model = LLM2Vec.from_pretrained(folder, *more, torch_dtype=torch.float32, device_map="cpu")
        rows = model.encode(TEXTS).numpy()
    np.save(out, rows)


CHECKS = [
    ("NumPy reads .npy, .jsonl agrees", numpy_and_jsonl_agree),
    (".safetensors agrees", safetensors_agree),
    ("f16 outputs agree", f16_agrees),
    ("i8 outputs and scales agree", i8_agrees),
    ("encode equals Transformers", encode_equals_transformers),
    ("encode --adapter equals PEFT", live_adapter_equals_peft),
    ("merge equals PEFT's, bfloat16", lambda run: merge_equals_peft(run, torch.bfloat16)),
    ("merge equals PEFT's, float32", lambda run: merge_equals_peft(run, torch.float32)),
    ("PEFT loads the golden adapters", peft_loads_golden_adapters),
    ("PEFT loads a trained adapter", peft_loads_a_trained_adapter),
    ("sentence-transformers opens merged folders", sentence_transformers_open_merged_folders),
    ("sentence-transformers cuts and packs alike", sentence_transformers_cuts_and_packs_alike),
    ("Matryoshka losses are those of sentence-transformers", matryoshka_losses_are_those_of_sentence_transformers),
    ("AutoModel opens a merged folder", auto_model_opens_a_merged_folder),
    ("the reference opens what we write", reference_opens_what_we_write),
    ("mteb reads the results of a suite", mteb_reads_the_results_of_a_suite),
    ("eval equals mteb", eval_equals_mteb),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=Path, default=Path("target/release/llm2vec"))
    parser.add_argument("--filter", default="", help="only checks whose name contains this")
    parser.add_argument("--older", type=Path, help="a folder with transformers 5.2")
    parser.add_argument("--oldest", type=Path, help="a folder with transformers 4.44 and llm2vec 0.2.3")
    parser.add_argument("--record", action="store_true", help="keep fixtures under tests/golden/merged")
    a = parser.parse_args()
    if not a.binary.exists():
        sys.exit(f"error: no binary at {a.binary}: run `cargo build --release`")
    if not MODEL.exists():
        sys.exit(f"error: no model at {MODEL}")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for name in [n for n in os.environ if n.startswith("LLM2VEC_")]:
        del os.environ[name]  # they would set flags
    os.environ["LLM2VEC_DEVICE"] = "cpu"  # whose numbers are compared
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        run = Binary(a.binary.resolve(), Path(folder), a.older, a.oldest, a.record)
        for name, check in CHECKS:
            if a.filter in name:
                try:
                    print(f"ok      {name}: {check(run)}", flush=True)
                except Exception as e:  # the next check still runs
                    failed += 1
                    print(f"FAILED  {name}: {type(e).__name__}: {e}", flush=True)
    print(f"{failed} failed" if failed else "all passed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
