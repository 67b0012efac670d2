"""Makes probes.json: what scikit-learn, MTEB and PyTorch give for the measures and small learners of `eval`.

    python make_probes.py       writes beside this file

Python with scikit-learn 1.9, mteb 2.26, numpy 2.4, torch 2.15. Features are not in the file: both sides make them from
RandomState, see `blobs`.
"""

import json
import random
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from datasets import Dataset
from mteb.abstasks.classification import AbsTaskClassification
from mteb.abstasks.clustering import _evaluate_clustering_bootstrapped
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, homogeneity_completeness_v_measure

warnings.filterwarnings("ignore")
calculate = AbsTaskClassification._calculate_scores


def blobs(seed, rows, width, centers, spread):
    """Rows around centers, the row's label being its number modulo theirs; exact in any language."""
    random = np.random.RandomState(seed)
    middle = random.random_sample((centers, width)) * 4.0
    u = random.random_sample((rows, width, 3))
    noise = ((u[:, :, 0] + u[:, :, 1]) + u[:, :, 2] - 1.5) * spread
    labels = np.arange(rows) % centers
    return (middle[labels] + noise).astype(np.float32), labels


def labels():
    random = np.random.RandomState(0)
    draw = lambda n, k: random.randint(0, k, n).tolist()
    return {
        "random": (draw(60, 4), draw(60, 4)),
        "binary": (draw(50, 2), draw(50, 2)),
        "a class never answered": (draw(40, 5), draw(40, 3)),
        "a class never there": (draw(40, 3), draw(40, 6)),
        "no class in common": ([0, 0, 1, 1], [2, 3, 2, 3]),
        "one class": ([1, 1, 1], [1, 1, 1]),
        "one answer": ([0, 1, 1, 2], [1, 1, 1, 1]),
        "one class, two answers": ([0, 0, 0], [0, 1, 1]),
        "all right": ([2, 0, 1, 1], [2, 0, 1, 1]),
        "all wrong": ([0, 1, 0, 1], [1, 0, 1, 0]),
        "renamed": ([0, 0, 1, 2, 2], [5, 5, 0, 3, 3]),
        "one row": ([0], [0]),
        "each apart": ([0, 0, 1, 1], [0, 1, 2, 3]),
    }


def measures():
    made = []
    for name, (truth, answers) in labels().items():
        scores = calculate(None, np.array(truth), np.array(answers))
        # MTEB asks for the average precision of whatever two labels; 0 and 1 are those it is made for.
        if set(truth) != {0, 1} or not set(answers) <= {0, 1}:
            scores["ap"] = None
        v = homogeneity_completeness_v_measure(truth, answers)
        made.append({"name": name, "truth": truth, "answers": answers, "v": v, **scores})
    return made


def precisions():
    random = np.random.RandomState(1)
    cases = [
        (random.randint(0, 2, 80), random.random_sample(80)),
        (random.randint(0, 2, 80), random.randint(0, 6, 80) / 4),
        ([0, 1, 1, 0], [0.5, 0.5, 0.5, 0.5]),
        ([1, 1, 1], [3.0, 2.0, 1.0]),
        ([0, 0, 0], [3.0, 2.0, 1.0]),
        ([1, 0, 1], [0.0, -0.0, -1.0]),
        ([0, 0, 1], [3.0, 2.0, 1.0]),
        ([1], [0.0]),
    ]
    return [
        {"positive": [bool(p) for p in y], "scores": [float(s) for s in x], "ap": average_precision_score(y, x)}
        for y, x in cases
    ]


def samples():
    made = []
    for seed, per_label, rows in [(42, 8, 300), (42, 16, 300), (7, 3, 20)]:
        y = np.random.RandomState(2).randint(0, 7, rows).tolist()
        task = SimpleNamespace(seed=seed, samples_per_label=per_label, label_column_name="label")
        data, order, runs = Dataset.from_dict({"label": y}), None, []
        for i in range(10):
            _, order, taken = AbsTaskClassification._undersample_data(task, data, i, order)
            runs.append([int(row) for row in taken])
        made.append({"seed": seed, "per_label": per_label, "labels": y, "runs": runs})
    return made


def regressions():
    made = []
    for seed, rows, width, classes, spread, most, *tol in [
        (3, 60, 8, 4, 2.0, 100),
        (3, 60, 8, 4, 2.0, 7),
        (4, 40, 5, 2, 3.0, 100),
        (5, 160, 24, 20, 6.0, 100),
        # Hundreds of steps: no two programs take the same, so to the very bottom, which is one.
        (5, 160, 24, 20, 6.0, 10000, 1e-9),
        (6, 30, 40, 3, 20.0, 100),
    ]:
        # At float64: scikit-learn 1.9 keeps float32 as it is, and then stops by what rounding leaves of the gradient.
        x, y = blobs(seed, rows, width, classes, spread)
        x, z = x.astype(np.float64), blobs(seed + 100, rows, width, classes, spread)[0].astype(np.float64)
        model = LogisticRegression(max_iter=most, tol=(tol or [1e-4])[0]).fit(x, y)
        made.append({
            "blobs": [seed, rows, width, classes], "spread": spread, "max_iter": most,
            "tol": model.tol,
            "weights": model.coef_.flatten().tolist(), "intercepts": model.intercept_.tolist(),
            "steps": int(model.n_iter_[0]), "scores": model.decision_function(z).flatten().tolist()[:60],
            "answers": model.predict(z).tolist(),
        })
    return made


def clusterings():
    made = []
    for seed, rows, width, centers, spread, clusters, starts in [
        (10, 700, 6, 5, 1.0, 5, 1),
        (11, 700, 6, 5, 4.0, 8, 1),
        (12, 2000, 8, 12, 2.0, 12, 3),
        (13, 300, 4, 3, 1.5, 60, 1),
        (14, 90, 300, 4, 3.0, 4, 1),
        (15, 40, 3, 2, 1.0, 1, 1),
    ]:
        x, y = blobs(seed, rows, width, centers, spread)
        for state in (42, 43, 44):
            model = MiniBatchKMeans(clusters, batch_size=500, n_init=starts, random_state=state).fit(x)
            made.append({
                "blobs": [seed, rows, width, centers], "spread": spread, "clusters": clusters, "starts": starts,
                "seed": state, "labels": model.labels_.tolist(), "inertia": float(model.inertia_),
                "steps": int(model.n_steps_), "v": homogeneity_completeness_v_measure(y, model.labels_)[2],
            })
    return made


def sampled():
    """MTEB's newer clustering; labels of a level are the row's number modulo a count, and rows that lack the last level do so
    by their number. Of named labels mteb would make such a row one of a class -1, so names are on every level."""
    made = []
    for seed, rows, width, centers, spread, counts, lacking, named, documents, experiments, drawn, batch, state in [
        (30, 300, 6, 5, 2.0, [5], 0, True, None, 4, 150, 512, 42),
        (31, 300, 6, 5, 2.0, [3, 10], 0, True, 200, 3, 120, 64, 42),
        (32, 240, 8, 6, 3.0, [2, 6, 12], 4, False, 230, 2, 400, 500, 7),
    ]:
        x, _ = blobs(seed, rows, width, centers, spread)
        labels = [[f"l{i % n}" if named else i % n for n in counts] for i in range(rows)]
        labels = [levels[:-1] if lacking and i % lacking == 0 else levels for i, levels in enumerate(labels)]
        draws = random.Random(state)
        taken = draws.sample(range(rows), k=documents) if documents else list(range(rows))
        scores, _ = _evaluate_clustering_bootstrapped(
            x[taken], [labels[i] for i in taken], n_clusters=experiments, cluster_size=drawn, kmean_batch_size=batch,
            max_depth=None, rng_state=draws, seed=state,
        )
        made.append({
            "blobs": [seed, rows, width, centers], "spread": spread, "labels": labels, "documents": documents,
            "bootstraps": experiments, "documents_per_cluster": drawn, "batch": batch, "seed": state,
            "levels": [list(values) for values in scores["v_measure"].values()],
        })
    return made


def probe(orders, x, y, classes, batch, rate, decay, clip):
    """A linear layer from zero by AdamW with linearly falling rate; the loss of each step, and of all rows at the end."""
    x, y = torch.tensor(x), torch.tensor(y)
    layer = torch.nn.Linear(x.shape[1], classes)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=rate, weight_decay=decay)
    batches = [order[i : i + batch] for order in orders for i in range(0, len(order), batch)]
    losses = []
    for step, rows in enumerate(batches):
        optimizer.param_groups[0]["lr"] = rate * (len(batches) - step) / len(batches)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(layer(x[rows]), y[rows])
        loss.backward()
        if clip > 0:
            torch.nn.utils.clip_grad_norm_(layer.parameters(), clip)
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        final = torch.nn.functional.cross_entropy(layer(x), y).item()
    return losses, final


def probes():
    made = []
    for seed, rows, width, classes, spread, epochs, batch, rate, decay, clip in [
        (20, 200, 12, 5, 3.0, 4, 16, 0.02, 0.01, 1.0),
        (21, 203, 12, 5, 3.0, 3, 16, 0.05, 0.0, 0.0),
        (22, 600, 16, 6, 3.0, 200, 32, 0.02, 0.0, 0.0),
    ]:
        x, y = blobs(seed, rows, width, classes, spread)
        orders = [np.random.RandomState(seed + e).permutation(rows).tolist() for e in range(epochs)]
        losses, final = probe(orders, x, y, classes, batch, rate, decay, clip)
        made.append({
            "blobs": [seed, rows, width, classes], "spread": spread, "epochs": epochs, "batch": batch, "rate": rate,
            "decay": decay, "max_grad_norm": clip, "losses": losses[:60], "final": final,
        })
    return made


made = {
    "measures": measures(), "precisions": precisions(), "samples": samples(), "regressions": regressions(),
    "clusterings": clusterings(), "sampled": sampled(), "probes": probes(),
}
Path(__file__).with_name("probes.json").write_text(json.dumps(made) + "\n")
