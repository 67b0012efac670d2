"""Makes the small golden models of the test-suite: a tiny random checkpoint each, and what it must compute.

    python make_golden.py [NAME ...]        writes NAME/ beside this file (all five without a name, ten seconds)

Python with torch 2.15, transformers 5.23, peft 0.21, safetensors, numpy. CPU, float32, one thread, fixed seeds.

Per model: model/ (config, weights), lora_init/ (a PEFT adapter), golden.safetensors and golden.json; README.md lists
the tensors. Nothing is written unless every check below holds; among them, a float64 forward in plain NumPy that reads
only model/ (class Reference) gives the same states as transformers.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config

PAD, BOS, MASK, FIRST = 0, 1, 2, 3  # ids; random tokens are FIRST and above
NEG = torch.finfo(torch.float32).min
LORA_R, LORA_ALPHA, LORA_SEED = 4, 8, 77
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LENGTHS = [1, 2, 3, 7, 17, 24, 25, 75]
LAYERS_SENTENCE = 4
SMALL = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, bos_token_id=BOS,
             eos_token_id=MASK, pad_token_id=PAD, hidden_act="silu", rms_norm_eps=1e-5, vocab_size=96,
             max_position_embeddings=256)
OLD = dict(SMALL, architectures=["LlamaForCausalLM"], model_type="llama", attention_bias=False, mlp_bias=False,
           torch_dtype="float32")  # config.json as transformers 4 wrote it
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)

# config: a dict is written as it stands (old form); an object is saved by transformers itself (`rope_parameters`).
MODELS = {
    "llama-tied": dict(
        seed=11, config=dict(OLD, num_key_value_heads=2, head_dim=8, rope_theta=10000.0, rope_scaling=None,
                             tie_word_embeddings=True)),
    "mistral-window": dict(
        seed=12, config=MistralConfig(**SMALL, num_key_value_heads=1, head_dim=12, sliding_window=5, dtype="float32",
                                      tie_word_embeddings=False, architectures=["MistralForCausalLM"])),
    "llama3-rope": dict(
        seed=13, lengths=LENGTHS + [140],
        config=LlamaConfig(**SMALL, num_key_value_heads=2, head_dim=16, rope_parameters=LLAMA3, dtype="float32",
                           tie_word_embeddings=True, architectures=["LlamaForCausalLM"])),
    "llama-linear-rope": dict(
        seed=34, config=dict(OLD, num_key_value_heads=2, head_dim=8, rope_theta=5000.0,
                             rope_scaling={"type": "linear", "factor": 2.0}, tie_word_embeddings=False)),
    "qwen2-bias": dict(
        seed=15, dtype=torch.bfloat16, shards=2,
        config=Qwen2Config(**SMALL, num_key_value_heads=2, dtype="bfloat16", tie_word_embeddings=False,
                           architectures=["Qwen2ForCausalLM"])),
}


# ---- the checkpoint --------------------------------------------------------------------------------------------------

def random_weights(config, seed, dtype):
    """State dict with states of order 1 and logits spread enough that attention is far from uniform."""
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in AutoModelForCausalLM.from_config(config).named_parameters()}
    g = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in sorted(shapes.items()):  # tied weights: the model has no lm_head parameter of its own
        x = torch.randn(shape, generator=g)
        if name.endswith("norm.weight"):
            x = 1 + 0.2 * x
        elif name.endswith(".bias"):
            x = 0.5 * x
        elif "embed_tokens" in name or "lm_head" in name:
            x = 0.5 * x
        else:
            x = x * 1.3 / shape[1] ** 0.5
        weights[name] = x.to(dtype)
    return weights


def save_model(folder, spec):
    folder.mkdir(parents=True)
    if isinstance(spec["config"], dict):
        (folder / "config.json").write_text(json.dumps(spec["config"], indent=2) + "\n")
    else:
        spec["config"].save_pretrained(folder)
    weights = random_weights(AutoConfig.from_pretrained(folder), spec["seed"], spec.get("dtype", torch.float32))
    n, names = spec.get("shards", 1), list(weights)
    if n == 1:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return
    where, total = {}, sum(w.nbytes for w in weights.values())
    for i in range(n):
        file = f"model-{i + 1:05}-of-{n:05}.safetensors"
        part = names[i * len(names) // n:(i + 1) * len(names) // n]
        save_file({k: weights[k] for k in part}, folder / file, {"format": "pt"})
        where |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


# ---- masks and states ------------------------------------------------------------------------------------------------

def mask4d(attention_mask, causal=False, window=None):
    """Additive [b,1,t,t]: 0 where the key may be seen. Full attention unless told: only padding keys are hidden."""
    b, t = attention_mask.shape
    ok = attention_mask.bool()[:, None, None, :].expand(b, 1, t, t).clone()
    i, j = torch.arange(t)[:, None], torch.arange(t)[None, :]
    if causal:
        ok &= j <= i
    if window is not None:
        ok &= (i - j).abs() < window
    return torch.where(ok, 0.0, NEG)


def states(body, ids, attention_mask=None, **how):
    ids = torch.as_tensor(ids)
    ids = ids[None] if ids.ndim == 1 else ids
    attention_mask = torch.ones_like(ids) if attention_mask is None else attention_mask
    return body(input_ids=ids, attention_mask=mask4d(attention_mask, **how), use_cache=False).last_hidden_state


def mean_pool(h, attention_mask):
    m = attention_mask[..., None].to(h.dtype)
    return (h * m).sum(1) / m.sum(1)


def left_pad(rows):
    t = max(map(len, rows))
    ids = torch.tensor([[PAD] * (t - len(r)) + r for r in rows])
    return ids, torch.tensor([[0] * (t - len(r)) + [1] * len(r) for r in rows])


class Reference:
    """The same forward in float64 NumPy, from the files alone: one sentence, no padding."""

    def __init__(self, folder):
        self.c = c = json.loads((folder / "config.json").read_text())
        self.w = {}
        for file in sorted(folder.glob("*.safetensors")):
            part = load_torch_as_f32(file)
            self.w |= {k.removeprefix("model."): v.astype(np.float64) for k, v in part.items()}
        self.heads, self.kv = c["num_attention_heads"], c["num_key_value_heads"]
        self.hd = c.get("head_dim") or c["hidden_size"] // self.heads
        rope = c.get("rope_parameters") or dict(c.get("rope_scaling") or {}, rope_theta=c["rope_theta"])
        f = rope["rope_theta"] ** (-np.arange(0, self.hd, 2) / self.hd)
        kind = rope.get("rope_type") or rope.get("type") or "default"
        if kind == "linear":
            f = f / rope["factor"]
        elif kind == "llama3":  # slow pairs are stretched by factor, fast ones kept, a linear ramp between
            turns = rope["original_max_position_embeddings"] * f / (2 * np.pi)
            low, high = rope["low_freq_factor"], rope["high_freq_factor"]
            keep = np.clip((turns - low) / (high - low), 0, 1)
            f = f * (keep + (1 - keep) / rope["factor"])
        else:
            assert kind == "default", kind
        self.freq = f

    def linear(self, x, name):
        y = x @ self.w[name + ".weight"].T
        return y + self.w[name + ".bias"] if name + ".bias" in self.w else y

    def norm(self, x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.c["rms_norm_eps"]) * self.w[name]

    def rotate(self, x):  # [t, heads, hd]
        a = np.arange(len(x))[:, None, None] * self.freq
        u, v = np.split(x, 2, axis=-1)
        return np.concatenate([u * np.cos(a) - v * np.sin(a), v * np.cos(a) + u * np.sin(a)], -1)

    def hidden(self, ids, causal=False, window=None):
        t = len(ids)
        i, j = np.arange(t)[:, None], np.arange(t)[None, :]
        hide = (causal & (j > i)) | (abs(i - j) >= (window or t))
        x = self.w["embed_tokens.weight"][ids]
        for n in range(self.c["num_hidden_layers"]):
            p, h = f"layers.{n}.", self.norm(x, f"layers.{n}.input_layernorm.weight")
            q, k, v = (self.linear(h, p + f"self_attn.{s}_proj").reshape(t, -1, self.hd) for s in "qkv")
            q, k, v = self.rotate(q), np.repeat(self.rotate(k), self.heads // self.kv, 1), \
                np.repeat(v, self.heads // self.kv, 1)
            s = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(self.hd)
            s = np.exp(np.where(hide, -np.inf, s) - s.max(-1, keepdims=True))
            a = np.einsum("hij,jhd->ihd", s / s.sum(-1, keepdims=True), v).reshape(t, -1)
            x = x + self.linear(a, p + "self_attn.o_proj")
            h = self.norm(x, p + "post_attention_layernorm.weight")
            g = self.linear(h, p + "mlp.gate_proj")
            x = x + self.linear(g / (1 + np.exp(-g)) * self.linear(h, p + "mlp.up_proj"), p + "mlp.down_proj")
        return self.norm(x, "norm.weight")


def load_torch_as_f32(file):
    try:
        return load_numpy(file)
    except (TypeError, KeyError, AttributeError):  # bfloat16 has no NumPy type
        from safetensors.torch import load_file
        return {k: v.float().numpy() for k, v in load_file(file).items()}


# ---- checks ----------------------------------------------------------------------------------------------------------

@torch.no_grad()
def check(lm, reference, sentences, window):
    """The masks do what they say; the largest gap to the float64 reference is returned."""
    body, ids = lm.model, torch.tensor(sentences[LAYERS_SENTENCE])
    other = ids.clone()
    other[-1] = FIRST if ids[-1] != FIRST else FIRST + 1
    move = lambda **how: (states(body, ids, **how) - states(body, other, **how))[0, 0].abs().max().item()
    assert move() > 1e-3, "bidirectional: the last token must reach position 0"
    assert move(causal=True) == 0, "causal: the last token must not reach position 0"
    stock = body(input_ids=ids[None], use_cache=False).last_hidden_state
    gap = (states(body, ids, causal=True, window=window) - stock).abs().max().item()
    assert gap < 1e-5, f"our causal mask is not the stock model's: {gap}"

    alone, pad = states(body, ids)[0], torch.full((6,), PAD)
    for left in (True, False):
        padded = torch.cat([pad, ids] if left else [ids, pad])
        real = torch.cat([pad * 0, ids * 0 + 1] if left else [ids * 0 + 1, pad * 0])
        h = states(body, padded[None], real[None])[0]
        gap = ((h[6:] if left else h[:-6]) - alone).abs().max().item()
        assert gap < 2e-4, f"padding moves the states by {gap}"

    rms = alone.pow(2).mean().sqrt().item()
    assert 0.3 < rms < 3, f"states of size {rms}"
    seen = body(input_ids=ids[None], attention_mask=mask4d(torch.ones(1, len(ids))), output_attentions=True)
    for a in seen.attentions:  # uniform attention would be 1/t everywhere
        assert a.max(-1).values.mean() > 3 / len(ids), "attention is near uniform"

    drift = 0.0
    for s in sentences:
        for how in [{}, dict(causal=True)] + [dict(window=window), dict(causal=True, window=window)] * bool(window):
            gap = np.abs(reference.hidden(s, **how) - states(body, s, **how)[0].numpy()).max()
            assert gap < 1e-4, f"float64 reference differs by {gap} ({how}, {len(s)} tokens)"
            drift = max(drift, gap)
    return float(drift)


# ---- the parts of golden.safetensors ---------------------------------------------------------------------------------

def positions(t):
    return list(range(t)) if t <= 24 else [0, 1, 2, t // 3, t // 2, t - 3, t - 2, t - 1]


@torch.no_grad()
def forward_part(body, sentences, window):
    out, pools = {}, {"mean": [], "weighted_mean": [], "last_token": []}
    for k, ids in enumerate(sentences):
        pos, h = torch.tensor(positions(len(ids))), states(body, ids)[0]
        out |= {f"ids.{k:02}": torch.tensor(ids), f"pos.{k:02}": pos, f"hidden.{k:02}": h[pos],
                f"causal.hidden.{k:02}": states(body, ids, causal=True)[0, pos]}
        if window:
            out[f"window.hidden.{k:02}"] = states(body, ids, window=window)[0, pos]
            out[f"causal.window.hidden.{k:02}"] = body(input_ids=torch.tensor([ids])).last_hidden_state[0, pos]
        w = torch.arange(1, len(ids) + 1).float()
        pools["mean"].append(h.mean(0))
        pools["weighted_mean"].append((w / w.sum()) @ h)
        pools["last_token"].append(h[-1])
    out |= {f"pool.{name}": torch.stack(rows) for name, rows in pools.items()}
    ids = torch.tensor([sentences[LAYERS_SENTENCE]])
    layers = body(input_ids=ids, attention_mask=mask4d(torch.ones_like(ids)), output_hidden_states=True).hidden_states
    return out | {f"layer.{i}": h[0] for i, h in enumerate(layers)}


def batches(seed, vocab):
    """Token ids of the three training batches, left-padded."""
    g = torch.Generator().manual_seed(seed)
    words = lambda n: torch.randint(FIRST, vocab, (n,), generator=g).tolist()
    rows = [[BOS] + words(n) for n in (14, 9, 3)]
    ids, real = left_pad(rows)
    labels = torch.full_like(ids, -100)
    for row, back in [(0, (14, 13, 9, 1)), (1, (8, 1)), (2, (2, 1))]:  # columns from the end: never the first token
        for c in back:
            labels[row, -c], ids[row, -c] = ids[row, -c].item(), MASK
    shared, simcse = words(15), []
    for i in range(5):  # variants of one sentence, so that the contrastive loss is not nothing
        row = list(shared)
        row[torch.randint(15, (1,), generator=g).item()] = words(1)[0]
        simcse.append([BOS] + row[i // 3:] + words(i // 2))
    part = {"mntp.input_ids": ids, "mntp.attention_mask": real, "mntp.labels": labels}
    part["simcse.input_ids"], part["simcse.attention_mask"] = left_pad(simcse)
    for column, lengths in [("query", (6, 10, 3)), ("positive", (8, 4, 3)), ("negative", (5, 7, 9))]:
        padded = left_pad([[BOS] + words(n) for n in lengths])
        part[f"sup.{column}.input_ids"], part[f"sup.{column}.attention_mask"] = padded
    return part


def cosines(a, b):
    return 20 * F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T


class Losses:
    def __init__(self, lm, body, data):
        self.lm, self.body, self.data = lm, body, data

    def pooled(self, name):
        ids, real = self.data[name + ".input_ids"], self.data[name + ".attention_mask"]
        return mean_pool(states(self.body, ids, real), real)

    def mntp(self):
        """Loss, and what else is kept. The label at column i is predicted from column i-1."""
        h = states(self.body, self.data["mntp.input_ids"], self.data["mntp.attention_mask"])
        logits, labels = self.lm.lm_head(h)[:, :-1], self.data["mntp.labels"][:, 1:]
        at = (labels != -100).nonzero()
        picked = logits[at[:, 0], at[:, 1]]
        loss = F.cross_entropy(picked, labels[at[:, 0], at[:, 1]])
        return loss, {"mntp.logit_positions": at, "mntp.logits": picked}

    def simcse(self):
        a, b = self.pooled("simcse"), self.pooled("simcse")
        s = cosines(a, b)
        return F.cross_entropy(s, torch.arange(len(s))), {"simcse.reps": a, "simcse.scores": s}

    def sup(self):
        q, p, n = (self.pooled("sup." + c) for c in ("query", "positive", "negative"))
        s = cosines(q, torch.cat([p, n]))
        return F.cross_entropy(s, torch.arange(len(s))), {"sup.scores": s}


def base_grad_norms(lm, data):
    lm.zero_grad()
    loss, _ = Losses(lm, lm.model, data).mntp()
    loss.backward()
    out = {f"base.grad_norm.{n.removeprefix('model.')}": p.grad.norm()[None] for n, p in lm.named_parameters()}
    lm.zero_grad()
    return loss.item(), out


def add_lora(lm):
    config = LoraConfig(r=LORA_R, lora_alpha=LORA_ALPHA, lora_dropout=0.0, target_modules=MODULES, bias="none")
    peft = get_peft_model(lm.model, config)
    g = torch.Generator().manual_seed(LORA_SEED)
    lora = {n.replace(".default", ""): p for n, p in sorted(peft.named_parameters()) if "lora_" in n}
    with torch.no_grad():
        for n, p in lora.items():
            if "lora_A" in n:
                p.copy_((2 * torch.rand(p.shape, generator=g) - 1) * (3 / p.shape[1]) ** 0.5)
            else:
                p.copy_(0.05 * torch.randn(p.shape, generator=g))
    return peft, lora


def save_lora(peft, folder, name):
    peft.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    config |= {"base_model_name_or_path": name, "target_modules": MODULES}  # no path, no set order
    file.write_text(json.dumps(config, indent=2) + "\n")


def training_part(lm, peft, lora, data):
    losses, out = Losses(lm, peft, data), {}
    with torch.no_grad():
        ids, real = data["simcse.input_ids"][0], data["simcse.attention_mask"][0].bool()
        out["lora.hidden"] = states(peft, ids[real])[0]
    for stage in ("mntp", "simcse", "sup"):
        peft.zero_grad()
        loss, kept = getattr(losses, stage)()
        loss.backward()
        grads = {n: p.grad.clone() for n, p in lora.items()}
        assert all(g.norm() > 0 for g in grads.values()), f"{stage}: a gradient is nothing"
        out |= kept | {f"{stage}.loss": loss[None]}
        out |= {f"{stage}.grad.{n}": g for n, g in grads.items()}
        out |= {f"{stage}.grad_norm.{n}": g.norm()[None] for n, g in grads.items()}
        out[f"{stage}.grad_norm_total"] = torch.stack([g.norm() for g in grads.values()]).norm()[None]

    adamw = torch.optim.AdamW(lora.values(), lr=5e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    curve = []
    for step in range(6):
        peft.zero_grad()
        loss, _ = losses.mntp()
        curve.append(loss.item())
        if step < 5:
            loss.backward()
            adamw.step()
    assert curve[5] < curve[0]
    out["adamw.losses"] = torch.tensor(curve)
    return out | {f"adamw.final.{n}": p for n, p in lora.items()}


# ---- one model -------------------------------------------------------------------------------------------------------

def make(name, spec, root):
    folder = root / name
    temporary = root / f".{name}.new"
    shutil.rmtree(temporary, ignore_errors=True)
    save_model(temporary / "model", spec)
    lm, info = AutoModelForCausalLM.from_pretrained(temporary / "model", dtype=torch.float32,
                                                    attn_implementation="eager", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    lm.eval()
    config, g = lm.config, torch.Generator().manual_seed(spec["seed"] + 1000)
    sentences = [[BOS] + torch.randint(FIRST, config.vocab_size, (t - 1,), generator=g).tolist()
                 for t in spec.get("lengths", LENGTHS)]
    window = getattr(config, "sliding_window", None)
    drift = check(lm, Reference(temporary / "model"), sentences, window)

    tensors = forward_part(lm.model, sentences, window)
    tensors |= (data := batches(spec["seed"] + 2000, config.vocab_size))
    loss_base, norms = base_grad_norms(lm, data)
    tensors |= norms | {"mntp.loss_base": torch.tensor([loss_base])}
    peft, lora = add_lora(lm)
    save_lora(peft, temporary / "lora_init", name)
    tensors |= training_part(lm, peft, lora, data)
    tensors = {k: v.detach().clone().contiguous() for k, v in tensors.items()}
    assert all(v.isfinite().all() for v in tensors.values())
    save_file(tensors, temporary / "golden.safetensors")

    number = lambda key: tensors[key].item()
    golden = {"model": f"{name}/model", "token_ids": sentences, "tied": config.tie_word_embeddings, "window": window,
              "layers_sentence": LAYERS_SENTENCE, "f64_drift_hidden": drift, "lora_seed": LORA_SEED, "lora_r": LORA_R,
              "lora_alpha": LORA_ALPHA, "mask_token_id": MASK, "pad_token_id": PAD,
              "mntp_loss_base": number("mntp.loss_base")}
    golden |= {f"{s}_loss": number(f"{s}.loss") for s in ("mntp", "simcse", "sup")}
    golden |= {"adamw_losses": tensors["adamw.losses"].tolist()}
    golden |= {f"{s}_grad_norm_total": number(f"{s}.grad_norm_total") for s in ("mntp", "simcse", "sup")}
    lines = ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in golden.items())
    (temporary / "golden.json").write_text("{\n" + lines + "\n}\n")

    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    print(f"{name}: {size / 1024:.0f} KiB, f64 drift {drift:.1e}, MNTP {loss_base:.4f} -> {golden['mntp_loss']:.4f}, "
          f"SimCSE {golden['simcse_loss']:.4f}, supervised {golden['sup_loss']:.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODELS)}; all without one")
    names = parser.parse_args().names or list(MODELS)
    if unknown := [n for n in names if n not in MODELS]:
        parser.error(f"no model {unknown[0]!r}; there are {', '.join(MODELS)}")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for n in names:
        make(n, MODELS[n], Path(__file__).resolve().parent)
