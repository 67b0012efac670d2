"""Training on several ranks: `mpirun llm2vec train simcse` in turn with itself in one process, and with PyTorch's
DistributedDataParallel over gloo (Transformers + PEFT, f32, CPU).

    python benches/pytorch/ranks.py --binary target/release/llm2vec -m tests/models/novel5m \
        --data tests/texts/persuasion.train.txt.gz --ranks 2 --batch 128 --rounds 5

The binary is one of `--features mpi`. One process has as many threads as there are ranks, a rank has one; slices are the
ranks, so both sides of ours write the same adapter, which is checked. PyTorch's ranks embed their part of each batch, gather
the vectors with their gradients and average the adapters' gradients. Prints tokens that are no padding a second, medians of
steps and of rounds.
"""

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def rival(a):
    """A rank of torchrun: steps of SimCSE, the slowest rank's time."""
    import torch
    import torch.distributed as dist
    import torch.nn.functional as F
    from model import load
    from peft import LoraConfig, get_peft_model
    from torch.distributed.nn.functional import all_gather
    from transformers import AutoModel, AutoTokenizer
    torch.set_num_threads(1)
    torch.manual_seed(1)
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    settings = {"bf16": False, "folder": a.model, "layers": json.loads((Path(a.model) / "config.json").read_text())["num_hidden_layers"]}
    body = load(settings, torch.device("cpu"), {}, AutoModel).requires_grad_(False)
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = get_peft_model(body, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=modules)).train()
    model = torch.nn.parallel.DistributedDataParallel(lora)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-5, fused=True)
    tokenizer = AutoTokenizer.from_pretrained(a.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    with gzip.open(a.data, "rt", encoding="utf-8") as f:
        texts = [line.strip() for line in f if line.strip()]
    each, speeds = a.batch // ranks, []
    for step in range(a.steps):
        mine = texts[step * a.batch + rank * each:][:each]
        rows = tokenizer(mine * 2, padding=True, truncation=True, max_length=a.length, return_tensors="pt")
        ids, mask = rows["input_ids"], rows["attention_mask"]
        tokens = torch.tensor(float(mask.sum()))
        dist.all_reduce(tokens)
        dist.barrier()
        started = time.perf_counter()
        sees = torch.where(mask[:, None, None, :] > 0, 0.0, torch.finfo(torch.float32).min)
        states = model(input_ids=ids, attention_mask=sees, use_cache=False).last_hidden_state
        part = mask[:, :, None].float()
        unit = F.normalize((states * part).sum(1) / part.sum(1), dim=1)
        queries, positives = (torch.cat(all_gather(x.contiguous())) for x in (unit[:each], unit[each:]))
        loss = F.cross_entropy(20 * queries @ positives.T, torch.arange(len(queries)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        dist.barrier()
        speeds.append(tokens.item() / (time.perf_counter() - started))
    if rank == 0:
        print(statistics.median(speeds[1:]), flush=True)
    dist.destroy_process_group()


def ours(a, ranks, out):
    """Tokens a second, the share of a step that its ranks exchange things in, and the adapter."""
    command = [a.binary, "train", "simcse", "-m", a.model, "--data", a.data, "--batch", a.batch, "--max-length", a.length, "--device", "cpu",
               "--attention-dropout", 0, "--steps", a.steps, "--slices", a.ranks, "--quiet", "--overwrite", "-o", out, "--threads", 1 if ranks > 1 else a.ranks]
    if ranks > 1:
        command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "core", "-n", ranks, *command]
    subprocess.run(list(map(str, command)), check=True, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    steps = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    rate, share = (statistics.median(s.get(key, 0) for s in steps[1:]) for key in ("tokens_per_second", "ranks_exchange_share"))
    return rate, share, (out / "adapter_model.safetensors").read_bytes()


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--binary", default="target/release/llm2vec")
    p.add_argument("-m", "--model", required=True)
    p.add_argument("--data", required=True, help="a text a line, packed by gzip")
    for name, value in [("ranks", 2), ("batch", 128), ("length", 64), ("steps", 6), ("rounds", 5)]:
        p.add_argument(f"--{name}", type=int, default=value)
    a = p.parse_args()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return rival(a)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(a.rounds):
            one, _, adapter = ours(a, 1, Path(folder) / "one")
            many, share, same = ours(a, a.ranks, Path(folder) / "many")
            if adapter != same:
                sys.exit("the ranks have trained another adapter than one process")
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(a.ranks), *sys.argv]
            done = subprocess.run(torchrun, check=True, capture_output=True, text=True)
            rows.append((one, many, float(done.stdout.split()[-1])))
            print("one process {:.0f}, ranks {:.0f}, PyTorch's ranks {:.0f} tokens/s".format(*rows[-1]) + f", exchange {share:.1%} of a step", flush=True)
    median = lambda of: statistics.median(of(*row) for row in rows)
    print(f"ranks over one process {median(lambda o, m, t: m / o):.2f}, over PyTorch's ranks {median(lambda o, m, t: m / t):.2f}")


if __name__ == "__main__":
    main()
