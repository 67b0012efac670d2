"""Writes metrics.json: figures of evaluation tasks by mteb and scikit-learn on small inputs with many ties.

    python tests/golden/make_metrics.py      (mteb 2.26.24, scikit-learn 1.9.1, scipy 1.17.1, numpy 2.4.6)

Every case holds its input beside the figures. Scores are quarters, exact in any precision, so that ties are ties
everywhere; vectors are 64ths, exact in f32, whose similarities do not tie.
"""
import json
import os
from types import SimpleNamespace

import numpy as np
from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores, make_score_dict
from mteb._evaluators.text.summarization_evaluator import SummarizationEvaluator
from mteb.abstasks.pair_classification import AbsTaskPairClassification
from mteb.abstasks.text.bitext_mining import AbsTaskBitextMining
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import (paired_cosine_distances, paired_euclidean_distances,
                                      paired_manhattan_distances)

rng = np.random.RandomState(7)


def numbers(*shape):
    return np.round(rng.normal(size=shape) * 64) / 64


def pair_values(scores, labels, high):
    task = SimpleNamespace()
    for name in ("_find_best_acc_and_threshold", "_find_best_f1_and_threshold"):
        setattr(task, name, getattr(AbsTaskPairClassification, name).__get__(task))
    compute = AbsTaskPairClassification._compute_metrics_values
    return compute(task, list(scores), np.array(labels), high)


def pair_scores():
    cases = []
    for n, spread, positive in ((2, 1, 0.5), (9, 2, 0.4), (50, 5, 0.3), (200, 40, 0.5), (80, 80, 0.1), (30, 1, 0.5)):
        scores = rng.randint(0, spread, n) / 4.0
        labels = [int(x) for x in rng.rand(n) < positive]
        labels[0], labels[-1] = 1, 0
        for high in (True, False):
            cases.append({"scores": scores.tolist(), "labels": labels, "high": high,
                          "wanted": pair_values(scores, labels, high)})
    return cases


def pair_vectors():
    a, b = numbers(60, 5), numbers(60, 5)
    labels = [int(x) for x in rng.rand(60) < 0.4]
    wanted = {}
    for name, values, high in (
        ("cosine", 1 - paired_cosine_distances(a, b), True),
        ("dot", (a * b).sum(1), True),
        ("euclidean", paired_euclidean_distances(a, b), False),
        ("manhattan", paired_manhattan_distances(a, b), False),
    ):
        for key, value in pair_values(values, labels, high).items():
            wanted[f"{name}_{key}"] = value
    return {"a": a.tolist(), "b": b.tolist(), "labels": labels, "wanted": wanted}


def retrieval():
    cases = []
    for queries, documents, kept, spread in ((1, 1, 1, 1), (6, 40, 40, 6), (12, 300, 120, 30), (5, 2000, 1500, 4000)):
        qrels, results = {}, {}
        for q in range(queries):
            judged = rng.permutation(documents)[: rng.randint(1, 9)]
            # Grades 0 to 3; the last query of a larger case has no document above 0.
            none = queries > 1 and q == queries - 1
            qrels[f"q{q}"] = {f"d{d}": 0 if none else int(rng.randint(0, 4)) for d in judged}
            found = rng.permutation(documents)[:kept]
            results[f"q{q}"] = {f"d{d}": float(s) / 4 for d, s in zip(found, rng.randint(0, spread, kept))}
        ks = (1, 3, 5, 10, 20, 100, 1000)
        r = calculate_retrieval_scores(results, qrels, ks)
        exact = {}
        for ours, theirs in (("ndcg", "ndcg_cut"), ("map", "map_cut"), ("recall", "recall"), ("precision", "P"),
                             ("hit_rate", "success")):
            for k in ks:  # mteb rounds these means to five places
                exact[f"{ours}_at_{k}"] = float(np.mean([s[f"{theirs}_{k}"] for s in r.all_scores.values()]))
        exact.update({f"mrr_at_{k}": float(r.mrr[f"MRR@{k}"]) for k in ks})
        scores = make_score_dict(ndcg=r.ndcg, _map=r.map, recall=r.recall, precision=r.precision, mrr=r.mrr, naucs={},
                                 naucs_mrr={}, hit_rate=r.hit_rate, task_scores={})
        assert all(abs(scores[name] - value) < 6e-6 for name, value in exact.items())
        exact["accuracy"] = exact["recall_at_1"]
        cases.append({"qrels": qrels, "results": results, "wanted": exact})
    return cases


def reranking():
    rows = []
    for n in (2, 5, 20, 40):
        for _ in range(4):
            positives = int(rng.randint(1, n))
            labels = [1] * positives + [0] * (n - positives)
            scores = rng.randint(0, 12, n) / 4.0
            order = np.array(labels)[np.argsort(-scores, kind="stable")]
            first = int(np.argmax(order))
            rows.append({"scores": scores.tolist(), "positives": positives,
                         "map": float(average_precision_score(labels, scores)), "mrr": 1 / (1 + first),
                         "mrr_at_10": 1 / (1 + first) if first < 10 else 0.0})
    return rows


def bitext():
    cases = []
    for n in (1, 3, 20, 200):
        found = rng.randint(0, max(n // 2, 1), n)
        found[::3] = np.arange(n)[::3]
        gold = list(zip(range(n), range(n)))
        wanted = AbsTaskBitextMining._compute_metrics(None, [{"corpus_id": int(j)} for j in found], gold)
        cases.append({"found": found.tolist(), "wanted": {k: float(v) for k, v in wanted.items()}})
    return cases


def summary():
    rows, human_scores, cosines, dots = [], [], [], []
    for i in range(9):
        human, machine = numbers(rng.randint(1, 4), 5), numbers(6, 5)
        if i == 2:
            machine[:] = machine[0]  # all equal: left out
        relevance = rng.randint(1, 5, 6) / 2.0
        if i == 5:
            relevance[:] = 3  # likewise
        dot = machine @ human.T
        norms = np.linalg.norm(machine, axis=1)[:, None] * np.linalg.norm(human, axis=1)
        cosine, dot = (dot / norms).max(1), dot.max(1)
        rows.append({"human": human.tolist(), "machine": machine.tolist(), "relevance": relevance.tolist()})
        if len(set(relevance)) > 1 and len(set(dot)) > 1 and len(set(cosine)) > 1:
            human_scores.append(relevance.tolist())
            cosines.append(cosine.tolist())
            dots.append(dot.tolist())
    wanted = SummarizationEvaluator._calculate_metrics(None, {
        "human_scores": human_scores, "cosine_scores": cosines, "dot_scores": dots, "similarity_scores": cosines})
    return {"rows": rows, "left_out": 9 - len(dots), "wanted": wanted}


def sts():
    a, b, scores = numbers(50, 5), numbers(50, 5), rng.randint(0, 11, 50) / 2.0
    cosine, dot = 1 - paired_cosine_distances(a, b), (a * b).sum(1)
    wanted = {"cosine_spearman": spearmanr(scores, cosine)[0], "cosine_pearson": pearsonr(scores, cosine)[0],
              "dot_spearman": spearmanr(scores, dot)[0], "dot_pearson": pearsonr(scores, dot)[0]}
    return {"a": a.tolist(), "b": b.tolist(), "scores": scores.tolist(),
            "wanted": {k: float(v) for k, v in wanted.items()}}


made = {f.__name__: f() for f in (pair_scores, pair_vectors, retrieval, reranking, bitext, summary, sts)}
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "metrics.json"), "w") as file:
    json.dump(made, file, separators=(",", ":"))
    file.write("\n")
