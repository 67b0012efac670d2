"""Times `llm2vec encode` against PyTorch + Transformers: same machine, model, texts and threads.

    python benches/pytorch/encode.py --model DIR --texts FILE[.gz] --limit 2000 --dtype bf16 --threads 2
    python benches/pytorch/encode.py ... --only pytorch              without our binary
    python benches/pytorch/encode.py --make-random DIR --tokenizer-from DIR --dtype bf16     a 12 x 768 model to time

Python with torch 2.15, transformers 5.23, tokenizers, safetensors, numpy. CPU only.

What is timed, on both sides: tokenising, forward, mean pooling over all tokens. Loading the model is not. Runs alternate
(ours, PyTorch, ours, PyTorch, ...). PyTorch gets its best case that is still plain use: texts sorted by length, sdpa
attention, no mask for a batch without padding, inference_mode, and the batch size that a short sweep finds fastest.
Not tried: torch.compile, other runtimes.
"""

import argparse
import gzip
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SUMMARY = re.compile(r"encoded (\d+) texts, (\d+) tokens in ([\d.]+) s: ([\d.]+) texts/s, ([\d.]+) tokens/s"
                     r"(?:, peak ([\d.]+) MiB)?")
MAX_LENGTH = 512


def arguments():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model", type=Path, help="Hugging Face folder with tokenizer.json")
    p.add_argument("--texts", type=Path, help="one text per line; .gz as well")
    p.add_argument("--limit", type=int, default=2000, help="the first N texts that are not empty")
    p.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--binary", type=Path, default=Path("target/release/llm2vec"))
    p.add_argument("--batch-sizes", default="8,16,32,64,128", help="what PyTorch's sweep tries")
    p.add_argument("--only", choices=["pytorch", "llm2vec"], help="time one side alone")
    p.add_argument("--make-random", type=Path, metavar="DIR", help="write a random 12 x 768 Llama there and stop")
    p.add_argument("--tokenizer-from", type=Path, metavar="DIR", help="for --make-random: whose tokenizer")
    a = p.parse_args()
    if a.make_random and not a.tokenizer_from:
        p.error("--make-random needs --tokenizer-from")
    if not a.make_random and not (a.model and a.texts):
        p.error("--model and --texts are needed")
    if a.rounds < 1 or a.limit < 1 or a.threads < 1:
        p.error("--rounds, --limit and --threads must be 1 or more")
    return a


def fail(message):
    sys.exit(f"error: {message}")


def say(message):
    print(message, file=sys.stderr, flush=True)


def read_texts(file, limit):
    texts = []
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8", newline="\n") as f:
        for line in f:
            line = line.rstrip("\r\n")
            if line.strip():
                texts.append(line)
            if len(texts) == limit:
                break
    return texts or fail(f"{file} has no text")


def make_random(folder, tokenizer, dtype):
    """12 layers x 768, 12 heads, F = 2048, vocabulary 4096: 88 M parameters, seed 1."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(1)
    config = LlamaConfig(hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
                         num_key_value_heads=12, vocab_size=4096, max_position_embeddings=MAX_LENGTH, rms_norm_eps=1e-5,
                         tie_word_embeddings=True, initializer_range=0.04, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    size = len(json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"])
    if size > config.vocab_size:
        fail(f"{tokenizer} has {size} pieces, the random model's vocabulary is {config.vocab_size}")
    model = LlamaForCausalLM(config).to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, folder / name)
    print(f"{folder}: {sum(p.numel() for p in model.parameters()):,} parameters, {dtype}")


class PyTorch:
    def __init__(self, a):
        import torch
        from tokenizers import Tokenizer
        from transformers import AutoModel
        torch.set_num_threads(a.threads)
        self.torch = torch
        # The tokenizer library itself, which is faster than AutoTokenizer around it.
        self.tokenizer = Tokenizer.from_file(str(a.model / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(MAX_LENGTH)
        dtype = torch.bfloat16 if a.dtype == "bf16" else torch.float32
        self.model = AutoModel.from_pretrained(a.model, dtype=dtype, attn_implementation="sdpa").eval()
        self.model.config.is_causal = False  # a missing mask means "all keys", not "causal"
        for layer in self.model.layers:
            layer.self_attn.is_causal = False
        self.pad = self.model.config.pad_token_id or 0
        self.check_bidirectional()

    def check_bidirectional(self):
        first = lambda *rows: self.states(list(rows))[0][0, 0].float()
        for other in ([], [[1, 5, 6, 7, 8]]):  # without padding, and with
            moved = (first([1, 5, 6], *other) - first([1, 5, 7], *other)).abs().max().item()
            if moved == 0:
                fail("this version of transformers runs the model causally; the comparison would not be fair")

    def states(self, rows):
        """Left-aligned batch through the body: states [b,t,d], real tokens [b,t]."""
        torch = self.torch
        lengths = torch.tensor([len(r) for r in rows])
        t = int(lengths.max())
        ids = torch.tensor([r + [self.pad] * (t - len(r)) for r in rows])
        real = torch.arange(t) < lengths[:, None]
        mask = None if bool(real.all()) else real[:, None, None, :]
        with torch.inference_mode():
            h = self.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return h, real

    def pooled(self, rows):
        with self.torch.inference_mode():
            h, real = self.states(rows)
            w = real[..., None].float()
            return (h.float() * w).sum(1) / w.sum(1)

    def tokenise(self, texts):
        return [e.ids for e in self.tokenizer.encode_batch_fast(texts)]

    def sweep(self, texts, sizes):
        """The batch size with the most tokens/s, over about 1024 texts spread over all lengths."""
        rows = sorted(self.tokenise(texts), key=len)
        self.pooled(rows[-min(sizes):])  # warm up
        speed = dict.fromkeys(sizes, 0.0)
        for size in sizes * 2:  # the better of two, so that a busy moment does not choose
            batches = [rows[i:i + size] for i in range(0, len(rows), size)]
            step = max(1, len(rows) // 1024)
            some = batches[step // 2::step] or batches
            start = time.perf_counter()
            for batch in some:
                self.pooled(batch)
            seconds = time.perf_counter() - start
            speed[size] = max(speed[size], sum(len(r) for b in some for r in b) / seconds)
        say("sweep, tokens/s: " + ", ".join(f"batches of {b} {s:.0f}" for b, s in speed.items()))
        return max(speed, key=speed.get)

    def run(self, texts, size):
        """(embeddings in input order, tokens, seconds)."""
        start = time.perf_counter()
        rows = self.tokenise(texts)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        out = self.torch.empty(len(rows), self.model.config.hidden_size)
        for i in range(0, len(order), size):
            which = order[i:i + size]
            out[which] = self.pooled([rows[k] for k in which])
        return out.numpy(), sum(map(len, rows)), time.perf_counter() - start


def run_ours(a, texts, folder):
    """(embeddings, tokens, tokens/s, peak MiB) of one run of the binary."""
    import numpy as np
    source, target = folder / "texts.txt", folder / "out.npy"
    source.write_bytes(("\n".join(texts) + "\n").encode())
    command = [str(a.binary), "encode", "--model", str(a.model), "--input", str(source), "--output", str(target),
               "--pool-over", "all", "--dtype", a.dtype, "--threads", str(a.threads), "--device", "cpu",
               "--max-length", str(MAX_LENGTH), "--doc-max-length", str(MAX_LENGTH), "--template", "none"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        fail(f"`{' '.join(command)}` ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    found = SUMMARY.findall(done.stderr)
    if not found:
        fail(f"no line `encoded N texts, ...` on stderr of the binary: {done.stderr.strip()[-500:]}")
    count, tokens, _, _, speed, peak = found[-1]
    if int(count) != len(texts):
        fail(f"the binary encoded {count} texts of {len(texts)}")
    return np.load(target), int(tokens), float(speed), peak


def compare(ours, theirs):
    import numpy as np
    if ours.shape != theirs.shape:
        fail(f"shapes differ: {ours.shape} and {theirs.shape}")
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return f"outputs: largest difference {abs(a - b).max():.2e}, smallest cosine {cosine.min():.6f}"


def about(torch):
    config = torch.__config__.show()
    found = [re.search(pattern, config) for pattern in
             (r"oneAPI Math Kernel Library Version [\w.]+", r"MKL-DNN v[\w.]+", r"OpenBLAS[^\n]*",
              r"CPU capability usage: \S+")]
    blas = ", ".join(m.group(0) for m in found if m) or "unknown"
    import transformers
    return f"torch {torch.__version__}, transformers {transformers.__version__}; BLAS: {blas}"


def cpu_name():
    try:
        return re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()).group(1)
    except (OSError, AttributeError):
        return "unknown CPU"


def report(a, speeds, notes):
    median = {side: statistics.median(s) for side, s in speeds.items()}
    print(f"\n{a.model.name}, {a.dtype}, {a.threads} threads, {cpu_name()}\n")
    print("| tokens/s | " + " | ".join(f"round {i + 1}" for i in range(a.rounds)) + " | median |")
    print("|---|" + "--:|" * (a.rounds + 1))
    for side, s in speeds.items():
        print(f"| {side} | " + " | ".join(f"{x:,.0f}" for x in s) + f" | {median[side]:,.0f} |")
    if len(median) == 2:
        print(f"\n- ratio llm2vec / PyTorch: {median['llm2vec'] / median['PyTorch']:.2f}")
    else:
        print()
    for note in notes:
        print(f"- {note}")


def main():
    a = arguments()
    os.environ |= {"LLM2VEC_DEVICE": "cpu", "TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(a.threads)}
    if a.make_random:
        return make_random(a.make_random, a.tokenizer_from, a.dtype)
    if a.only != "pytorch" and not a.binary.exists():
        fail(f"no binary at {a.binary}: run `cargo build --release`, or time PyTorch alone with --only pytorch")
    texts = read_texts(a.texts, a.limit)
    speeds, notes, ours, theirs = {}, [], None, None
    if a.only != "pytorch":
        speeds["llm2vec"] = []
    if a.only != "llm2vec":
        speeds["PyTorch"] = []
        torch = PyTorch(a)
        size = torch.sweep(texts, [int(s) for s in a.batch_sizes.split(",")])
    with tempfile.TemporaryDirectory() as folder:
        for i in range(a.rounds):
            if "llm2vec" in speeds:
                ours, tokens, speed, peak = run_ours(a, texts, Path(folder))
                speeds["llm2vec"].append(speed)
                say(f"round {i + 1}: llm2vec {speed:.0f} tokens/s")
            if "PyTorch" in speeds:
                theirs, their_tokens, seconds = torch.run(texts, size)
                speeds["PyTorch"].append(their_tokens / seconds)
                say(f"round {i + 1}: PyTorch {their_tokens / seconds:.0f} tokens/s")
    if ours is not None:
        notes.append(f"llm2vec: {len(texts)} texts, {tokens} tokens" + (f", peak {peak} MiB" if peak else ""))
    if theirs is not None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        notes += [f"PyTorch: {len(texts)} texts, {their_tokens} tokens, batches of {size}, peak {peak} MiB",
                  about(torch.torch)]
    if ours is not None and theirs is not None:
        if tokens != their_tokens:
            fail(f"token counts differ: {tokens} and {their_tokens}")
        notes.append(compare(ours, theirs))
    report(a, speeds, notes)


if __name__ == "__main__":
    main()
