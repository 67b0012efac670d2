"""Makes adamw.json: what torch's AdamW and clip_grad_norm_ do to two small tensors in five steps.

    python make_adamw.py        writes beside this file

Python with torch 2.15. Per dtype: parameters and gradients given, global norms before clipping, and the parameters and
both moments after the last step. Gradients of steps 1 and 4 are small enough not to be clipped.
"""

import json
from pathlib import Path

import torch

RATES = [1e-2, 2e-2, 1.5e-2, 1e-2, 5e-3]
SHAPES = [(3, 5), (7,)]


def run(dtype):
    generator = torch.Generator().manual_seed(0)
    draw = lambda: [torch.randn(s, generator=generator, dtype=torch.float32) for s in SHAPES]
    start = draw()
    grads = [[g * (0.1 if step in (0, 3) else 1.5) for g in draw()] for step in range(len(RATES))]
    params = [torch.nn.Parameter(p.to(dtype, copy=True)) for p in start]
    optimizer = torch.optim.AdamW(params, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
    norms = []
    for rate, step in zip(RATES, grads):
        optimizer.param_groups[0]["lr"] = rate
        for p, g in zip(params, step):
            p.grad = g.to(dtype, copy=True)
        norms.append(torch.nn.utils.clip_grad_norm_(params, 1.0).item())
        optimizer.step()
    flat = lambda tensors: [t.detach().flatten().tolist() for t in tensors]
    return {
        "start": flat(start),
        "grads": [flat(g) for g in grads],
        "norms": norms,
        "p": flat(params),
        "m": flat(optimizer.state[p]["exp_avg"] for p in params),
        "v": flat(optimizer.state[p]["exp_avg_sq"] for p in params),
    }


golden = {"rates": RATES, "f32": run(torch.float32), "f64": run(torch.float64)}
Path(__file__).with_name("adamw.json").write_text(json.dumps(golden) + "\n")
