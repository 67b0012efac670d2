"""Times the cases of `llm2vec bench ops` in PyTorch, in turn with it; `llm2vec bench ops --against pytorch` starts this.

    llm2vec bench ops --list json > cases.json
    python benches/pytorch/ops.py --cases cases.json --device cuda:0           alone, without our binary

bf16 on a GPU, f32 on the CPU; statistics are f32 on both. On a GPU a sample is one call between two events, the level-2
cache emptied before it, and the device kept busy while the host queues the call; on the CPU the mean of as many calls as
take 2 ms. A backward is `torch.autograd.grad` on a graph that is built once. Each op in the ways that its users have:
eager, `torch.compile` (with --compile), PEFT's layer if it is installed, the formula of that layer, each backend of SDPA,
nested tensors, flash-attn's varlen kernel if it is installed. Packs of unequal length are padded before the clock starts.
A variant named `bound: …` does less than the op (a LoRA layer without its adapter) and is not compared. What cannot run
gives its reason; the ops that PyTorch has no counterpart for say so.
"""

import argparse
import json
import os
import sys
import time

from rival import Refused, attempt, describe, prepare, serve, torch

import torch.nn.functional as F

SHORTEST = 2e-3
FLUSH = 256 << 20
REFERENCE_DROPOUT = {"attention": 0.3, "lora_linear": 0.05}


class Case:
    """Operands as tensors, and what the case is made of."""

    def __init__(self, spec, device):
        self.op, self.noun, self.forward = spec["op"], spec["op"].rsplit("_", 1)[0], spec["op"].endswith("_fwd")
        # adamw_step is an op of its own; of a loss, a step is forward and backward.
        self.both_ways = spec["op"] == "masked_xent_step"
        self.device, self.gpu = device, device.type == "cuda"
        self.real = torch.bfloat16 if self.gpu else torch.float32
        self.facts, self.sizes = spec["facts"], spec["facts"]["sizes"]
        self.rate = REFERENCE_DROPOUT.get(self.noun, 0.3) if self.facts["dropout"] else 0.0
        self.shapes = {**spec["inputs"], **spec["outputs"]}
        torch.manual_seed(1)

    def tensor(self, name, learns=False, dtype=None):
        spec = self.shapes[name]
        if spec["ints"] is not None:
            return torch.tensor(spec["ints"], device=self.device).reshape(spec["shape"])
        t = torch.randn(spec["shape"], device=self.device, dtype=dtype or self.real)
        return t.requires_grad_(learns)

    def has(self, name):
        return name in self.shapes


def backward(out, wanted, dout):
    """The backward alone, again and again on one graph."""
    return lambda: torch.autograd.grad(out, wanted, dout, retain_graph=True)


def both(case, function, learning):
    """The forward as inference runs it, the backward of the same function, or a step's both."""
    if case.both_ways:
        return lambda: torch.autograd.grad(function(), learning)
    if case.forward:
        def run():
            with torch.no_grad():
                return function()
        return run
    out = function()
    return backward(out, learning, torch.randn_like(out))


def compiled(function):
    return torch.compile(function, dynamic=False)


# ---- each op: variants by name; a variant makes what is to be timed ----

def embed(case):
    table, ids = case.tensor("table"), case.tensor("ids")
    return {"eager": lambda: both(case, lambda: F.embedding(ids, table), [])}


def rmsnorm(case):
    x, w = case.tensor("x", not case.forward), case.tensor("w")
    skip = case.tensor("skip", not case.forward) if case.has("skip") else None

    def transformers(x, w):
        h = x.float()
        return w * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)

    def fused(x, w):
        return F.rms_norm(x, (x.shape[-1],), w, 1e-5)

    def make(norm):
        # The residual connection around the norm: its gradient is added to that of the norm.
        run = (lambda: norm(x, w)) if skip is None else (lambda: norm(x, w) + x)
        return lambda: both(case, run, [x])
    return {"eager": make(transformers), "F.rms_norm": make(fused), "compile": make(compiled(transformers))}


def rope(case):
    h, g, d = (case.sizes[k] for k in "HGD")
    qkv = case.tensor("qkv" if case.forward else "dqkv")
    n = qkv.shape[0]
    positions = case.tensor("positions")
    cos, sin = (case.tensor(k)[positions].repeat(1, 2)[None, None] for k in ("cos", "sin"))
    q, k = qkv[:, :h * d].reshape(n, h, d), qkv[:, h * d:(h + g) * d].reshape(n, g, d)
    q, k = (t.transpose(0, 1)[None].contiguous().requires_grad_(not case.forward) for t in (q, k))

    def rotate(x):
        a, b = x.chunk(2, -1)
        return torch.cat((-b, a), -1)

    def transformers(q, k, cos, sin):
        return q * cos + rotate(q) * sin, k * cos + rotate(k) * sin

    def make(function):
        if case.forward:
            return lambda: both(case, lambda: function(q, k, cos, sin), [])

        def graph():
            out = function(q, k, cos, sin)
            return backward(out, [q, k], [torch.randn_like(t) for t in out])
        return graph
    return {"eager": make(transformers), "compile": make(compiled(transformers))}


def attention(case):
    h, g, d = (case.sizes[k] for k in "HGD")
    starts = case.shapes["starts"]["ints"]
    lengths = [b - a for a, b in zip(starts, starts[1:])]
    b, t = len(lengths), max(lengths)
    kind, window = case.facts["mask"]["kind"], case.facts["mask"]["window"] or 0
    learns = not case.forward
    make_heads = lambda heads: torch.randn(b, heads, t, d, device=case.device, dtype=case.real)

    def shown():
        """[B or 1, 1, T, T], or None where every key is seen."""
        i = torch.arange(t, device=case.device)
        away = i[:, None] - i[None, :]
        seen = torch.ones(t, t, dtype=torch.bool, device=case.device)
        if kind in ("Causal", "CausalWindow"):
            seen &= away >= 0
        if window:
            seen &= away.abs() < window
        if min(lengths) < t:
            real = i[None, :] < torch.tensor(lengths, device=case.device)[:, None]
            # Rows past the end see themselves: a row without a key is NaN.
            return (seen[None] & real[:, None, :] | torch.eye(t, dtype=torch.bool, device=case.device))[:, None]
        return seen[None, None] if kind != "Full" else None

    def sdpa(backend):
        from torch.nn.attention import SDPBackend, sdpa_kernel
        backend = getattr(SDPBackend, backend)
        if backend == SDPBackend.MATH and b * h * t * t > 2 ** 31:
            raise Refused("its score matrix does not fit")
        q, k, v = (make_heads(n).requires_grad_(learns) for n in (h, g, g))
        causal, bias = kind == "Causal" and min(lengths) == t, None
        if not causal:
            bias = shown()

        def run():
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, bias, dropout_p=case.rate, is_causal=causal,
                                                      enable_gqa=h != g)
        return both(case, run, [q, k, v])

    def nested():
        if kind not in ("Full", "Causal") or h != g:
            raise Refused("nested tensors take full or causal attention without shared heads")
        packed = lambda: torch.nested.nested_tensor(
            [torch.randn(n, h, d, device=case.device, dtype=case.real) for n in lengths],
            layout=torch.jagged, requires_grad=learns)
        q, k, v = packed(), packed(), packed()
        turned = lambda x: x.transpose(1, 2)
        run = lambda: F.scaled_dot_product_attention(turned(q), turned(k), turned(v), dropout_p=case.rate,
                                                     is_causal=kind == "Causal")
        if case.forward:
            return both(case, run, [])
        out = run().values()
        return backward(out, [q, k, v], torch.randn_like(out))

    def flash_attn():
        try:
            from flash_attn import flash_attn_varlen_func
        except ImportError as e:
            raise Refused(str(e))
        n = sum(lengths)
        q, k, v = (torch.randn(n, x, d, device=case.device, dtype=case.real).requires_grad_(learns) for x in (h, g, g))
        at = torch.tensor(starts, device=case.device, dtype=torch.int32)
        sides = {"Full": (-1, -1), "Causal": (-1, -1), "Window": (window - 1, window - 1), "CausalWindow": (window - 1, 0)}
        run = lambda: flash_attn_varlen_func(q, k, v, at, at, t, t, dropout_p=case.rate, causal="Causal" in kind,
                                             window_size=sides[kind])
        return both(case, run, [q, k, v])

    backends = {"flash": "FLASH_ATTENTION", "cudnn": "CUDNN_ATTENTION", "efficient": "EFFICIENT_ATTENTION", "math": "MATH"}
    list_ = {f"sdpa {name}": (lambda b=backend: sdpa(b)) for name, backend in backends.items()}
    return {**list_, "sdpa nested": nested, "flash-attn varlen": flash_attn}


def lora_linear(case):
    k, m = case.sizes["K"], case.sizes["M"]
    rank, rows = case.sizes.get("R"), case.facts["segments"] or [m]
    learns = not case.forward
    x, w = case.tensor("x", learns), case.tensor("w")
    bias = case.tensor("bias") if case.has("bias") else None
    residual = case.tensor("residual") if case.has("residual") else None
    add = (lambda y: y + residual) if residual is not None else (lambda y: y)
    plain = lambda x, w: add(F.linear(x, w, bias))
    name = "F.linear (cuBLAS)" if case.gpu else "F.linear"
    # Less work than the op's: a bound, no rival.
    variants = {f"bound: {name}, no adapter" if rank else name: lambda: both(case, lambda: plain(x, w), [x])}
    if not rank:
        return variants
    make = lambda *shape: torch.randn(*shape, device=case.device, dtype=case.real).mul_(0.02).requires_grad_(learns)
    a, b = [make(rank, k) for _ in rows], [make(n, rank) for n in rows]
    ws = w.split(rows)
    biases = bias.split(rows) if bias is not None else [None] * len(rows)

    def formula(x, a, b):
        parts = [F.linear(x, w, c) + F.linear(F.linear(F.dropout(x, case.rate, learns or case.rate > 0), a), b) * 2.0
                 for w, c, a, b in zip(ws, biases, a, b)]
        return add(torch.cat(parts, 1) if len(parts) > 1 else parts[0])

    def peft():
        from peft import LoraConfig
        from peft.tuners.lora import Linear
        config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=case.rate)
        layers = []
        for w, c in zip(ws, biases):
            base = torch.nn.Linear(k, w.shape[0], bias=c is not None, device=case.device, dtype=case.real)
            layer = Linear(base.requires_grad_(False), "default", r=rank, lora_alpha=2 * rank, lora_dropout=case.rate,
                           config=config).to(case.device).train()
            # Versions differ in where they read the rate: without dropout it would do less than the op.
            drops = [m.p for m in layer.modules() if isinstance(m, torch.nn.Dropout)]
            assert drops == ([case.rate] if case.rate else []), f"its layer has dropouts of {drops}, not of {case.rate}"
            layers.append(layer)
        learned = [p for layer in layers for p in layer.parameters() if p.requires_grad]
        run = lambda: add(torch.cat([layer(x) for layer in layers], 1) if len(layers) > 1 else layers[0](x))
        return both(case, run, [x, *learned])
    compiled_formula = compiled(formula)
    variants["peft"] = peft
    variants["formula"] = lambda: both(case, lambda: formula(x, a, b), [x, *a, *b])
    variants["compile"] = lambda: both(case, lambda: compiled_formula(x, a, b), [x, *a, *b])
    return variants


def swiglu(case):
    x = case.tensor("gate_up", not case.forward)
    f = x.shape[1] // 2

    def eager(x):
        return F.silu(x[:, :f]) * x[:, f:]
    fast = compiled(eager)
    return {"eager": lambda: both(case, lambda: eager(x), [x]), "compile": lambda: both(case, lambda: fast(x), [x])}


def lora_linear_swiglu(case):
    x, w = case.tensor("x"), case.tensor("w")
    f = case.sizes["F"]

    def eager(x, w):
        y = F.linear(x, w)
        return F.silu(y[:, :f]) * y[:, f:]
    fast = compiled(eager)
    return {"eager": lambda: both(case, lambda: eager(x, w), [x]), "compile": lambda: both(case, lambda: fast(x, w), [x])}


def lora_linear_rope(case):
    h, g, d = (case.sizes[k] for k in "HGD")
    x, w, positions = case.tensor("x"), case.tensor("w"), case.tensor("positions")
    cos, sin = (case.tensor(k)[positions][:, None] for k in ("cos", "sin"))

    def eager(x, w, cos, sin):
        heads = F.linear(x, w).view(x.shape[0], -1, d)
        a, b = heads[:, :h + g].chunk(2, -1)
        return torch.cat((torch.cat((a * cos - b * sin, b * cos + a * sin), -1), heads[:, h + g:]), 1)
    fast = compiled(eager)
    return {"eager": lambda: both(case, lambda: eager(x, w, cos, sin), [x]),
            "compile": lambda: both(case, lambda: fast(x, w, cos, sin), [x])}


def pool(case):
    if case.facts["pooling"] != "Mean":
        raise Refused("only the mean is written here")
    n, c = case.shapes["x" if case.forward else "dx"]["shape"]
    x = torch.randn(n, c, device=case.device, dtype=case.real, requires_grad=not case.forward)
    spans = case.shapes["spans"]["ints"]
    pairs = list(zip(spans[::2], spans[1::2]))
    if pairs == [(i * pairs[0][1], (i + 1) * pairs[0][1]) for i in range(len(pairs))] and pairs[-1][1] == n:
        # Spans of one length, one behind the other: no loop.
        eager = lambda x: x.view(len(pairs), -1, c).mean(1, dtype=torch.float32)
        fast = compiled(eager)
        return {"eager": lambda: both(case, lambda: eager(x), [x]), "compile": lambda: both(case, lambda: fast(x), [x])}
    return {"eager": lambda: both(case, lambda: torch.stack([x[a:b].float().mean(0) for a, b in pairs]), [x])}


def l2norm(case):
    x = torch.randn(case.shapes["y"]["shape"], device=case.device, requires_grad=not case.forward)
    return {"eager": lambda: both(case, lambda: F.normalize(x, dim=-1), [x])}


def dropout(case):
    x = case.tensor("x")
    return {"eager": lambda: both(case, lambda: F.dropout(x, 0.3), [])}


def masked_xent(case):
    x, w = case.tensor("x", not case.forward), case.tensor("w")
    rows, labels = case.tensor("rows"), case.tensor("labels")
    if not case.forward and case.has("dw"):
        w.requires_grad_(True)

    def eager(x, w):
        return F.cross_entropy(F.linear(x[rows], w).float(), labels)
    fast = compiled(eager)
    learned = [x, w] if w.requires_grad else [x]
    return {"eager": lambda: both(case, lambda: eager(x, w), learned),
            "compile": lambda: both(case, lambda: fast(x, w), learned)}


def contrastive(case):
    q, c = (torch.randn(case.shapes[k]["shape"], device=case.device, requires_grad=not case.forward) for k in "qc")
    labels, scale = torch.arange(q.shape[0], device=case.device), 20.0 / q.shape[1]

    def eager(q, c):
        q, c = (q.bfloat16(), c.bfloat16()) if case.facts["rounded"] else (q, c)
        return F.cross_entropy((q @ c.T).float() * scale, labels)
    # Neither equal ids nor a margin take a candidate out here.
    if case.has("ids") or case.facts["margin"] is not None:
        return {"bound: eager, every candidate counts": lambda: both(case, lambda: eager(q, c), [q, c])}
    fast = compiled(eager)
    return {"eager": lambda: both(case, lambda: eager(q, c), [q, c]),
            "compile": lambda: both(case, lambda: fast(q, c), [q, c])}


def adamw(case):
    if case.op == "adamw_norm":
        grads = [torch.randn(spec["shape"], device=case.device) for name, spec in case.shapes.items() if name != "norm"]
        return {"eager": lambda: lambda: torch.nn.utils.get_total_norm(grads)}

    def step(**how):
        p = torch.nn.Parameter(torch.randn(case.shapes["p"]["shape"], device=case.device))
        p.grad = torch.randn_like(p)
        return torch.optim.AdamW([p], lr=1e-4, **how).step
    return {"fused": lambda: step(fused=True), "foreach": lambda: step(foreach=True)}


def add(case):
    y, x = (torch.randn(case.shapes[name]["shape"], device=case.device) for name in "yx")
    return {"eager": lambda: lambda: y.add_(x)}


OPS = {"embed": embed, "rmsnorm": rmsnorm, "rope": rope, "attention": attention, "lora_linear": lora_linear,
       "lora_linear_swiglu": lora_linear_swiglu, "lora_linear_rope": lora_linear_rope, "swiglu": swiglu, "pool": pool, "l2norm": l2norm, "dropout": dropout, "masked_xent": masked_xent,
       "contrastive": contrastive, "adamw": adamw, "add": add}


# ---- the clock, and the talk with `llm2vec` ----

class Clock:
    def __init__(self, device):
        self.device = device
        self.flush = torch.empty(FLUSH, dtype=torch.uint8, device=device) if device.type == "cuda" else None

    def samples(self, run, count):
        for _ in range(2):
            run()
        if self.flush is None:
            start = time.perf_counter()
            run()
            repeats = max(1, int(SHORTEST / max(time.perf_counter() - start, 1e-9)))
            return [self.cpu(run, repeats) for _ in range(count)]
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        # Twice what the host takes to queue the call, in cycles of 2 GHz; a fast GPU must not wait for it.
        cycles = int(2e9 * min(1e-3 + 2 * (time.perf_counter() - start), 0.1))
        return [self.cuda(run, cycles) for _ in range(count)]

    def cpu(self, run, repeats):
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - start) / repeats

    def cuda(self, run, cycles):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self.flush.zero_()
        torch.cuda._sleep(cycles)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3


def measure(spec, clock, count, compile_too, dead):
    """Seconds, or a reason, by variant; `dead` keeps those that failed once."""
    def variants():
        case = Case(spec, clock.device)
        make = OPS.get(case.noun)
        if make is None:
            raise Refused("no such op here")
        return make(case)
    answer = {}
    for name, make in (attempt(variants, "PyTorch", dead) or {}).items():
        if name not in dead and (name != "compile" or compile_too):
            samples = attempt(lambda: clock.samples(make(), count), name, dead)
            answer.update({name: samples} if samples else {})
    if clock.device.type == "cuda":
        torch.cuda.empty_cache()
    return {**answer, **dead}


OTHERS = ["peft", "flash_attn"]


def answers(settings, device):
    # A compiled backward gives its saved tensors away, and then runs but once.
    try:
        from torch._functorch import config
        config.donated_buffer = False
    except (ImportError, AttributeError):
        pass
    clock, dead = Clock(device), {}

    def answer(order):
        i = order["run"]
        known = dead.setdefault(i, {})
        return measure(settings["cases"][i], clock, order["samples"], settings["compile"], known)
    return answer


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--serve", action="store_true", help="take cases and orders from stdin, as `llm2vec bench ops` gives them")
    p.add_argument("--cases", help="what `llm2vec bench ops --list json` printed")
    p.add_argument("--device", default="cpu")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--samples", type=int, default=20)
    p.add_argument("--compile", action="store_true", help="torch.compile too")
    a = p.parse_args()
    if a.serve:
        return serve(answers, OTHERS)
    if not a.cases:
        p.error("--cases or --serve is needed")
    with open(a.cases, encoding="utf-8") as f:
        cases = json.load(f)
    device = prepare({"device": a.device, "threads": a.threads})
    print(f"# {describe(device, OTHERS)} on {a.device}", file=sys.stderr)
    answer = answers({"cases": cases, "compile": a.compile}, device)
    for i, spec in enumerate(cases):
        for name, found in answer({"run": i, "samples": a.samples}).items():
            text = found if isinstance(found, str) else f"{1e6 * sorted(found)[len(found) // 2]:.1f} us"
            print(f"{spec['op']}  {spec['label']}  {name}: {text}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
