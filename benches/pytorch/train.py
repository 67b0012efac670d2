"""Times a step of `llm2vec train` against PyTorch + Transformers + PEFT: same machine, model, texts, batch and threads.

    python benches/pytorch/train.py mntp --model DIR --batch 32
    python benches/pytorch/train.py simcse --model DIR --batch 64 --max-length 128 --dtype bf16 --threads 2
    python benches/pytorch/train.py supervised ... --only pytorch              without our binary
    python benches/pytorch/train.py --make-random DIR --tokenizer-from DIR     a 12 x 768 model to time

Python with torch 2.15, transformers 5.24, peft 0.21, tokenizers. CPU only, Linux. Texts are those in tests/texts unless
--texts names others: one per line, for `supervised` JSONL of query, positive and negative.

Both sides: LoRA of rank 16 with dropout 0.05 on the seven projections of every layer, the rest frozen; full attention;
AdamW; gradients clipped to norm 1. MNTP hides 20 % of the tokens (BERT's split); a text is a row, or with --grouping
joined the texts are joined and cut into full rows, which need no padding. SimCSE runs both views in one forward,
attention dropout 0.3. Supervised has one hard negative a row. A step is: make the batch (in the contrastive stages
from text, so with tokenising), forward, loss, backward, clip, update. PyTorch gets its best case that is still plain
use: batches padded to their own longest row, sdpa attention, no mask for a batch without padding, logits at masked
rows only (--full-logits: at all), fused AdamW. Not tried: torch.compile, bucketing rows by length.

Runs alternate (ours, PyTorch, ours, ...), over the same rows in orders of their own. A round's speed is the median
over its steps after the first, in real tokens (padding is none) per second. Other processes spoil the ratio, for
OpenMP's threads wait for the slowest of them: their share of the machine is in the report, and where it is not near 0,
take fewer threads than cores. At the end a step on one batch from one adapter, without chance (no dropout; MNTP with
every token hidden), must give the same loss and the same norm of the gradient on both sides.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from encode import about, fail, make_random, read_texts, report, say

TEXTS = Path(__file__).resolve().parents[2] / "tests" / "texts"
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BATCH = {"mntp": 32, "simcse": 64, "supervised": 32}
SCALE = {"simcse": 20.0, "supervised": 50.0}  # of cosines, the stages' defaults
SIMCSE_DROPOUT, HIDDEN = 0.3, 0.2
TOLERANCE = {"f32": 1e-4, "bf16": 3e-2}  # relative, of loss and gradient
IGNORE = -100


def arguments():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("stage", nargs="?", choices=list(BATCH))
    p.add_argument("--model", type=Path, help="Hugging Face folder with tokenizer.json")
    p.add_argument("--texts", type=Path, help="instead of tests/texts; .gz as well")
    p.add_argument("--batch", type=int, help="rows of a step; default 32, simcse 64")
    p.add_argument("--max-length", type=int, default=128)
    p.add_argument("--steps", type=int, default=8, help="of a round, after one to warm up")
    p.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="of the frozen weights; the adapter is f32")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--binary", type=Path, default=Path("target/release/llm2vec"))
    p.add_argument("--grouping", choices=["lines", "joined"], default="lines", help="MNTP: how texts make rows")
    p.add_argument("--full-logits", action="store_true", help="PyTorch's MNTP the usual way, logits at every position")
    p.add_argument("--only", choices=["pytorch", "llm2vec"], help="time one side alone")
    p.add_argument("--make-random", type=Path, metavar="DIR", help="write a random 12 x 768 Llama there and stop")
    p.add_argument("--tokenizer-from", type=Path, metavar="DIR", help="for --make-random: whose tokenizer")
    a = p.parse_args()
    if a.make_random and not a.tokenizer_from:
        p.error("--make-random needs --tokenizer-from")
    if not a.make_random and not (a.stage and a.model):
        p.error("a stage and --model are needed")
    if a.stage:
        a.texts = a.texts or TEXTS / ("triplets.jsonl.gz" if a.stage == "supervised" else "persuasion.train.txt.gz")
        a.batch = BATCH[a.stage] if a.batch is None else a.batch
        if a.batch < 2 or min(a.max_length, a.steps, a.rounds, a.threads) < 1:
            p.error("--batch must be 2 or more; --max-length, --steps, --rounds and --threads 1 or more")
    return a


def peak_mib():
    """The most memory this process has had; getrusage would count what its parent had as well."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) // 1024 for line in f if line.startswith("VmHWM:"))


def cores(work):
    """What `work` gives, and how many cores other processes kept busy meanwhile."""
    def busy():
        with open("/proc/stat") as f:
            user, nice, system, _, _, irq, soft, steal = map(int, f.readline().split()[1:9])
        own = os.times()
        return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK") - sum(own[:4])
    start, before = time.perf_counter(), busy()
    result = work()
    return result, max(0.0, busy() - before) / (time.perf_counter() - start)


class PyTorch:
    def __init__(self, a):
        import torch
        from peft import LoraConfig, get_peft_model
        from tokenizers import Tokenizer
        from transformers import AutoModelForCausalLM
        torch.set_num_threads(a.threads)
        torch.manual_seed(1)
        self.torch, self.a = torch, a
        # The tokenizer library itself, which is faster than AutoTokenizer around it.
        self.tokenizer = Tokenizer.from_file(str(a.model / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(a.max_length)
        dtype = torch.bfloat16 if a.dtype == "bf16" else torch.float32
        model = AutoModelForCausalLM.from_pretrained(a.model, dtype=dtype, attn_implementation="sdpa")
        model.requires_grad_(False)
        self.head = model.lm_head
        # Around the inner model, as the method's own code has it. PEFT keeps adapters in f32.
        lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=MODULES, bias="none")
        self.model = get_peft_model(model.model, lora)
        self.layers = model.model.layers
        model.model.config.is_causal = False  # a missing mask means "all keys", not "causal"
        for layer in self.layers:
            layer.self_attn.is_causal = False
        self.pad = model.config.pad_token_id or 0
        self.real = self.slots = 0  # tokens so far, and with padding
        self.check_bidirectional()
        self.attention_dropout(SIMCSE_DROPOUT if a.stage == "simcse" else 0.0)
        self.model.train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.trained, lr=5e-5, weight_decay=0.0, fused=True)

    def attention_dropout(self, rate):
        for layer in self.layers:
            layer.self_attn.attention_dropout = rate

    def check_bidirectional(self):
        self.model.eval()
        first = lambda *rows: self.states(*self.padded([(r, [True] * len(r)) for r in rows])[:2])[0, 0].float()
        with self.torch.inference_mode():
            for other in ([], [[1, 5, 6, 7, 8]]):  # without padding, and with
                if (first([1, 5, 6], *other) == first([1, 5, 7], *other)).all():
                    fail("this version of transformers runs the model causally; the comparison would not be fair")

    def padded(self, rows):
        """Ids [b,t], which of them are real, and which are the text's own."""
        torch = self.torch
        t = max(len(ids) for ids, _ in rows)
        fill = lambda lists, value: torch.tensor([x + [value] * (t - len(x)) for x in lists])
        real = fill([[True] * len(ids) for ids, _ in rows], False)
        return fill([ids for ids, _ in rows], self.pad), real, fill([own for _, own in rows], False)

    def states(self, ids, real):
        mask = None if bool(real.all()) else real[:, None, None, :]
        return self.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state

    def encode(self, texts):
        """(ids, whether each is the text's own) of every text."""
        return [(e.ids, [not m for m in e.special_tokens_mask]) for e in self.tokenizer.encode_batch(texts)]

    def mntp(self, rows, hide_all=False):
        """Loss and which tokens are real; `rows` are those of `encode`."""
        torch, functional = self.torch, self.torch.nn.functional
        ids, real, own = self.padded(rows)
        hidden = own & (torch.rand(ids.shape) < (1.0 if hide_all else HIDDEN))
        labels = torch.where(hidden, ids, IGNORE)
        how = torch.rand(ids.shape) if not hide_all else torch.zeros(ids.shape)
        other = torch.randint(self.tokenizer.get_vocab_size(), ids.shape)
        seen = torch.where(hidden & (how < 0.8), self.mask_id(), torch.where(hidden & (how < 0.9), other, ids))
        h, labels = self.states(seen, real)[:, :-1], labels[:, 1:]  # the row before predicts
        if not self.a.full_logits:
            which = labels != IGNORE
            h, labels = h[which], labels[which]
        logits = self.head(h).float()
        loss = functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORE)
        return loss, real

    def mask_id(self):
        names = json.loads((self.a.model / "tokenizer_config.json").read_text())
        token = names.get("mask_token") or "_"
        found = self.tokenizer.token_to_id(token if isinstance(token, str) else token["content"])
        return fail("the tokenizer has neither a mask token nor `_`") if found is None else found

    def contrastive(self, queries, candidates):
        """Loss and which tokens are real; the candidates begin with the queries' positives."""
        torch, functional = self.torch, self.torch.nn.functional
        ids, real, own = self.padded(self.encode(queries + candidates))
        h, w = self.states(ids, real).float(), own[..., None].float()
        unit = functional.normalize((h * w).sum(1) / w.sum(1), dim=1)
        scores = SCALE[self.a.stage] * unit[:len(queries)] @ unit[len(queries):].T
        return functional.cross_entropy(scores, torch.arange(len(queries))), real

    def loss(self, batch, **how):
        if self.a.stage == "mntp":
            return self.mntp(batch, **how)
        if self.a.stage == "simcse":
            return self.contrastive(batch, batch)
        triples = [json.loads(line) for line in batch]
        negatives = [n if isinstance(n, str) else n[0] for n in (t["negative"] for t in triples)]
        return self.contrastive([t["query"] for t in triples], [t["positive"] for t in triples] + negatives)

    def step(self, batch, **how):
        """(loss, norm of the gradient, real tokens)."""
        loss, real = self.loss(batch, **how)
        loss.backward()
        norm = self.torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        tokens = int(real.sum())
        self.real, self.slots = self.real + tokens, self.slots + real.numel()
        return loss.item(), norm.item(), tokens

    def ready(self, rows):
        """What batches are made of: MNTP tokenises once, before training, as ours does."""
        if self.a.stage != "mntp":
            return rows
        if self.a.grouping == "lines":
            return self.encode(rows)
        blocks, n = [], self.a.max_length
        self.tokenizer.no_truncation()
        for at in range(0, len(rows), 1000):  # what is left of 1000 lines is dropped
            ids, own = (sum(lists, []) for lists in zip(*self.encode(rows[at:at + 1000])))
            blocks += [(ids[i:i + n], own[i:i + n]) for i in range(0, len(ids) - n + 1, n)]
        self.tokenizer.enable_truncation(n)
        return blocks

    def run(self, rows, seed):
        """Tokens/s of one round."""
        ready, speeds, count = self.ready(rows), [], (self.a.steps + 1) * self.a.batch
        if len(ready) < count:
            fail(f"{self.a.texts} makes {len(ready)} rows of {self.a.max_length} tokens, {count} are wanted")
        ready = random.Random(seed).sample(ready, count)
        for at in range(0, count, self.a.batch):
            start = time.perf_counter()
            tokens = self.step(ready[at:at + self.a.batch])[2]
            speeds.append(tokens / (time.perf_counter() - start))
        return statistics.median(speeds[1:])

    def sure_step(self, rows, adapter):
        """(loss, norm of the gradient) of a step from an adapter's file, without chance."""
        from safetensors.torch import load_file
        ours = load_file(adapter)
        with self.torch.no_grad():
            for name, p in self.model.named_parameters():
                if p.requires_grad:
                    p.copy_(ours.pop(name.replace(".default", "")))
        if ours:
            fail(f"{adapter} has tensors that PEFT has not: {', '.join(ours)}")
        self.attention_dropout(0.0)
        for name, module in self.model.named_modules():
            if name.endswith("lora_dropout.default"):
                module.p = 0.0
        if self.a.stage == "mntp":
            return self.step(self.encode(rows), hide_all=True)[:2]
        return self.step(rows)[:2]


def run_ours(a, rows, folder, steps, *flags):
    """The lines of the log of one run of the binary."""
    data, output = folder / ("rows.jsonl" if a.stage == "supervised" else "rows.txt"), folder / "run"
    data.write_bytes(("\n".join(rows) + "\n").encode())
    command = [str(a.binary), "train", a.stage, "--model", str(a.model), "--data", str(data), "--output", str(output),
               "--overwrite", "--log", str(output / "log.jsonl"), "--steps", str(steps), "--batch",
               str(a.batch), "--max-length", str(a.max_length), "--dtype", a.dtype, "--threads", str(a.threads),
               "--device", "cpu", "--quiet", *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        fail(f"`{' '.join(command)}` ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["kind"] == "train"]
    if len(lines) != steps:
        fail(f"{steps} steps were wanted, the log has {len(lines)}")
    return lines


def compare(a, rows, torch, folder):
    """One step of each side on one batch, from one adapter: ours, which a step of no length leaves as it began."""
    flags = {"mntp": ["--grouping", "lines", "--mask-probability", "1", "--mask-strategy", "all"],
             "simcse": ["--attention-dropout", "0"], "supervised": []}
    line = run_ours(a, rows, folder, 1, "--lora-dropout", "0", "--lr", "1e-30", *flags[a.stage])[0]
    theirs = torch.sure_step(rows, folder / "run" / "adapter_model.safetensors")
    ours = line["loss"], line["grad_norm"]
    said = "one batch without chance: " + ", ".join(
        f"{what} {x:.6g} and {y:.6g}" for what, x, y in zip(("loss", "norm of the gradient"), ours, theirs))
    # The loss is a difference of f32 numbers as large as the scale; a random model's in SimCSE is rounding alone.
    rounding = SCALE.get(a.stage, 0.0) * 2.0 ** -23, 0.0
    if any(abs(x - y) > TOLERANCE[a.dtype] * abs(y) + r for x, y, r in zip(ours, theirs, rounding)):
        fail(f"this is not the same work: {said}")
    return said


def choose(a):
    """Rows for a round, the same for both sides."""
    texts = read_texts(a.texts, None)
    if a.stage == "mntp" and a.grouping == "joined":
        return texts
    count = (a.steps + 1) * a.batch
    if len(texts) < count:
        fail(f"{a.texts} has {len(texts)} rows, {count} are wanted; take fewer --steps or a smaller --batch")
    return random.Random(1).sample(texts, count)


def main():
    a = arguments()
    os.environ |= {"LLM2VEC_DEVICE": "cpu", "TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(a.threads)}
    if a.make_random:
        return make_random(a.make_random, a.tokenizer_from, a.dtype)
    if a.only != "pytorch" and not a.binary.exists():
        fail(f"no binary at {a.binary}: run `cargo build --release`, or time PyTorch alone with --only pytorch")
    rows, speeds, notes, others = choose(a), {}, [], []
    grouping = ["--grouping", a.grouping] if a.stage == "mntp" else []
    if a.only != "pytorch":
        speeds["llm2vec"] = []
    if a.only != "llm2vec":
        speeds["PyTorch"] = []
        torch = PyTorch(a)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(a.rounds):
            if "llm2vec" in speeds:
                run = lambda: run_ours(a, rows, Path(folder), a.steps + 1, "--seed", str(i + 1), *grouping)
                lines, other = cores(run)
                others.append(other)
                speeds["llm2vec"].append(statistics.median(line["tokens_per_second"] for line in lines[1:]))
                say(f"round {i + 1}: llm2vec {speeds['llm2vec'][-1]:.0f} tokens/s")
            if "PyTorch" in speeds:
                speed, other = cores(lambda: torch.run(rows, i + 1))
                others.append(other)
                speeds["PyTorch"].append(speed)
                say(f"round {i + 1}: PyTorch {speeds['PyTorch'][-1]:.0f} tokens/s")
        what = {"mntp": a.grouping, "simcse": "texts", "supervised": "triples"}[a.stage]
        notes.append(f"{a.stage}, {a.steps} steps a round of {a.batch} {what} of at most {a.max_length} tokens")
        notes.append("cores that other processes kept busy, run by run: " + ", ".join(f"{x:.1f}" for x in others))
        if "llm2vec" in speeds:
            notes.append(f"peak of llm2vec: {lines[-1]['memory_mib']:.0f} MiB")
        if "PyTorch" in speeds:
            import peft
            notes += [f"peak of PyTorch: {peak_mib()} MiB; {torch.real / torch.slots:.0%} of its tokens are real",
                      f"{about(torch.torch)}, peft {peft.__version__}"]
        if len(speeds) == 2:
            notes.append(compare(a, rows[:a.batch], torch, Path(folder)))
    report(a, speeds, notes)


if __name__ == "__main__":
    main()
