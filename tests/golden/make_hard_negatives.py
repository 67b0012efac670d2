"""Writes hard_negatives.json: what sentence-transformers' mine_hard_negatives takes from given vectors.

    python tests/golden/make_hard_negatives.py      (sentence-transformers 6.2.0, datasets 5.2.0, torch 2.15.0)

A model that looks texts up stands for one that embeds them. Vectors are 64ths, exact in f32; both sides scale them to unit
length. `mined` has of each query the negatives of the rows with it and their cosines, as `output_format="triplet"` gives
them, and `whole` the queries that "n-tuple" keeps.
"""
import json
import os
from types import SimpleNamespace

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers.util import mine_hard_negatives

rng = np.random.RandomState(11)
WIDTH = 8


def sixty_fourths(values):
    return np.round(np.asarray(values) * 64) / 64


def data(positives_of, others, spread):
    """Rows, corpus and vectors: positives lie `spread` around their query, the corpus repeats some texts."""
    vectors, rows = {}, []
    for q, count in enumerate(positives_of):
        centre = rng.normal(size=WIDTH)
        vectors[f"query {q}"] = centre
        for p in range(count):
            vectors[f"answer {q} {p}"] = centre + spread * rng.normal(size=WIDTH)
            rows.append([f"query {q}", f"answer {q} {p}"])
    for d in range(others):
        vectors[f"other {d}"] = rng.normal(size=WIDTH)
    corpus = [f"other {d}" for d in rng.permutation(others)]
    corpus += corpus[:3] + [rows[0][1], rows[-1][1]]
    order = rng.permutation(len(rows))
    rows = [rows[i] for i in order] + [rows[order[0]]]  # a row that says nothing new
    return {"rows": rows, "corpus": corpus, "vectors": {text: sixty_fourths(v).tolist() for text, v in vectors.items()}}


def model(vectors):
    def encode(texts, **_):
        rows = np.array([vectors[text] for text in texts], dtype=np.float64)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    tensor = torch.as_tensor
    return SimpleNamespace(device=torch.device("cpu"), encode_document=encode, encode_query=encode,
                           similarity=lambda a, b: tensor(a) @ tensor(b).T,
                           similarity_pairwise=lambda a, b: (tensor(a) * tensor(b)).sum(-1))


def mine(given, with_corpus, **settings):
    made = {}
    for form in ("triplet", "n-tuple"):
        rows = Dataset.from_dict({"query": [q for q, _ in given["rows"]], "positive": [p for _, p in given["rows"]]})
        made[form] = mine_hard_negatives(rows, model(given["vectors"]), corpus=given["corpus"] if with_corpus else None,
                                         output_format=form, output_scores=True, verbose=False, **settings)
    mined = {}
    for row in made["triplet"]:
        mined.setdefault(row["query"], {}).setdefault(row["positive"], []).append([row["negative"], row["scores"][1]])
    for query, lists in mined.items():
        lists = list(lists.values())
        assert all(one == lists[0] for one in lists)
        mined[query] = lists[0]
    return {"corpus": with_corpus, "settings": settings, "mined": mined, "whole": sorted(set(made["n-tuple"]["query"]))}


NAMES = dict(n="num_negatives", lo="range_min", hi="range_max", most="max_score", least="min_score",
             absolute="absolute_margin", relative="relative_margin")


def cases(given, *settings):
    made = [mine(given, corpus, **{NAMES[k]: v for k, v in one.items()}) for corpus in (True, False) for one in settings]
    return {**given, "cases": made}


everything = 1000  # candidates: all documents
settings = [
    dict(n=3), dict(n=1), dict(n=5, lo=2), dict(n=2, lo=3, hi=9), dict(n=4, most=0.5), dict(n=4, least=0.4),
    dict(n=4, least=0.2, most=0.6, lo=1), dict(n=3, absolute=0.1), dict(n=3, absolute=0.0), dict(n=3, relative=0.05),
    dict(n=3, relative=0.3, lo=1, hi=40), dict(n=2, absolute=0.2, relative=0.1, most=0.7, least=0.1, lo=2, hi=30),
    dict(n=6, absolute=0.3, hi=everything), dict(n=6, relative=0.5, hi=everything), dict(n=3, absolute=-0.2),
]
one = data([1] * 14, 60, 0.6)
several = data([1, 3, 2, 1, 1, 4, 2, 1, 1, 2], 60, 0.5)
# Positives that are unlike their queries, some below 0: margins take much.
unlike = data([1, 2, 1, 3, 1, 1, 2, 1], 40, 6.0)
far = [dict(n=3, hi=everything, **bound) for bound in
       (dict(absolute=0.05), dict(relative=0.05), dict(relative=0.4), dict(relative=0.2, lo=2), dict(most=0.1))]

# A query with four positives makes the candidates of all queries four deeper.
deeper = cases(data([1, 4, 1], 40, 0.4), dict(n=2, hi=4, most=0.6))
# The text of one query answers another.
twin = data([1, 1, 1], 12, 0.5)
twin["rows"].append(["query 0", "query 1"])
twin = cases(twin, dict(n=3))

made = {"one": cases(one, *settings), "several": cases(several, *settings), "unlike": cases(unlike, *far),
        "deeper": deeper, "twin": twin}
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "hard_negatives.json"), "w") as file:
    json.dump(made, file, separators=(",", ":"))
