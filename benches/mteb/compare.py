"""Our own `eval` against mteb (2.x) on the same sets and the same program's vectors: every figure that both have.

    python benches/mteb/compare.py DATA/retrieval/xquad-en DATA/pairs/bible-verses … -- -m tests/models/novel5m

A set is a folder as `eval` takes it; its type is the name of the folder above, or stands before a colon: `clustering-fast:DIR`
makes a clustering set one of mteb's newer layout. What follows `--` is for `encode` and `eval`.
Exit status 1 where a figure differs by more than 1e-4; where a start is random or a solver stops early, by more than TOLERANCE.
Python with mteb and numpy; nothing is downloaded.
"""

import argparse
import csv
import gzip
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from encoder import Llm2Vec, sts_task

TOLERANCE = {"classification": 5e-3, "clustering": 2e-2, "clustering-fast": 2e-2}
DRAWN = 2048
FLAGS = {"clustering": ["--repeats", "1"], "clustering-fast": ["--documents-per-cluster", str(DRAWN)]}
TYPES = {"retrieval": "Retrieval", "reranking": "Reranking", "pairs": "PairClassification", "bitext": "BitextMining",
         "summary": "Summarization", "classification": "Classification", "clustering": "Clustering",
         "clustering-fast": "Clustering", "sts": "STS"}  # fmt: skip
# Ours, where mteb has another name for the same.
NAMES = {"reranking": {"map": "map_at_1000", "mrr": "mrr_at_1000"}}


def rows(folder, name):
    path = folder / f"{name}.jsonl"
    lines = open(path, encoding="utf-8") if path.exists() else gzip.open(f"{path}.gz", "rt", encoding="utf-8")
    return [json.loads(line) for line in lines if line.strip()]


def columns(rows, names):
    import datasets

    return datasets.Dataset.from_dict({name: [row[field] for row in rows] for name, field in names.items()})


def retrieval(task, folder):
    corpus = [{"id": r["_id"], "title": r.get("title") or "", "text": r["text"]} for r in rows(folder, "corpus")]
    judged = {}
    for row in csv.DictReader(open(folder / "qrels" / "test.tsv"), delimiter="\t"):
        judged.setdefault(row["query-id"], {})[row["corpus-id"]] = int(row["score"])
    queries = [{"id": r["_id"], "text": r["text"]} for r in rows(folder, "queries") if r["_id"] in judged]
    return split(corpus, queries, judged, None)


def reranking(task, folder):
    corpus, queries, judged, listed = [], [], {}, {}
    for i, row in enumerate(rows(folder, "test")):
        queries.append({"id": f"q{i}", "text": row["query"]})
        texts = row["positive"] + row["negative"]
        corpus += [{"id": f"d{i}-{j:05}", "text": text} for j, text in enumerate(texts)]
        listed[f"q{i}"] = [f"d{i}-{j:05}" for j in range(len(texts))]
        judged[f"q{i}"] = {name: int(j < len(row["positive"])) for j, name in enumerate(listed[f"q{i}"])}
    return split(corpus, queries, judged, listed)


def split(corpus, queries, judged, listed):
    import datasets

    corpus, queries = datasets.Dataset.from_list(corpus), datasets.Dataset.from_list(queries)
    return {"default": {"test": {"corpus": corpus, "queries": queries, "relevant_docs": judged, "top_ranked": listed}}}


def pairs(task, folder):
    names = {"sentence1": "text1", "sentence2": "text2", "labels": "label"}
    return {"test": columns(rows(folder, "test"), names)}


def bitext(task, folder):
    return {"test": columns(rows(folder, "test"), {"sentence1": "source", "sentence2": "target"})}


def summary(task, folder):
    task.min_score, task.max_score = 0, 100  # a straight line, which no correlation sees
    names = {"text": "text", "human_summaries": "human", "machine_summaries": "machine", "relevance": "relevance"}
    return {"test": columns(rows(folder, "test"), names)}


def classification(task, folder):
    parts = {name: rows(folder, name) for name in ("train", "test")}
    classes = sorted({row["label"] for row in parts["train"]})
    for row in parts["train"] + parts["test"]:
        row["label"] = classes.index(row["label"])  # of two names mteb would ask for a positive one
    return {name: columns(part, {"text": "text", "label": "label"}) for name, part in parts.items()}


def clustering(task, folder):
    sets = {}
    for row in rows(folder, "test"):
        texts, labels = sets.setdefault(row.get("set", ""), ([], []))
        texts.append(row["text"]), labels.append(row["label"])
    found = [{"sentences": texts, "labels": labels} for texts, labels in sets.values()]
    return {"test": columns(found, {"sentences": "sentences", "labels": "labels"})}


def clustering_fast(task, folder):
    task.max_fraction_of_documents_to_embed, task.max_documents_per_cluster = None, DRAWN
    return {"test": columns(leveled(folder), {"sentences": "sentences", "labels": "labels"})}


def leveled(folder):
    """A legacy set in the newer layout, its parts as the first level."""
    return [{"sentences": r["text"], "labels": [r.get("set", ""), r["label"]]} for r in rows(folder, "test")]


def task_of(kind, folder):
    """mteb's task on the set, in memory."""
    import mteb.abstasks as types
    from mteb.abstasks.task_metadata import TaskMetadata

    if kind == "sts":
        return sts_task(str(folder))
    name = "ClusteringLegacy" if kind == "clustering" else TYPES[kind]
    load = globals()[kind.replace("-", "_")]
    main = {"retrieval": "ndcg_at_10", "reranking": "map_at_1000", "pairs": "max_ap", "bitext": "f1",
            "summary": "cosine_spearman", "classification": "accuracy"}.get(kind, "v_measure")  # fmt: skip
    metadata = TaskMetadata(
        name=f"Local{name}", description=folder.name, type=TYPES[kind], category="t2t", modalities=["text"],
        dataset={"path": str(folder), "revision": "local"}, eval_splits=["test"], eval_langs=["eng-Latn"], main_score=main,
    )  # fmt: skip

    def load_data(self, **kwargs):
        self.dataset = load(self, folder)
        self.data_loaded = True

    return type(f"Local{name}", (getattr(types, f"AbsTask{name}"),), {"metadata": metadata, "load_data": load_data})()


def compared(kind, folder, model, command):
    """Lines of what both have, and the largest difference."""
    import mteb

    result = mteb.evaluate(model, [task_of(kind, folder)], cache=None).task_results[0]
    theirs = result.scores["test"][0]
    with tempfile.TemporaryDirectory() as place:
        out = os.path.join(place, "scores.json")
        if kind == "clustering-fast":
            lines = [json.dumps(row) + "\n" for row in leveled(folder)]
            folder = Path(place)
            (folder / "test.jsonl").write_text("".join(lines), encoding="utf-8")
        own = [command[0], "eval", kind.removesuffix("-fast"), "--data", str(folder), "--empty", "zero", "-q", "-o", out]
        subprocess.run([*own, *FLAGS.get(kind, []), *command[1:]], check=True, stdout=subprocess.DEVNULL)
        ours = json.load(open(out))["scores"]
    names, both = NAMES.get(kind, {}), {}
    for name, value in ours.items():
        other = theirs.get(names.get(name, name))
        if name != "main_score" and isinstance(value, float) and isinstance(other, (int, float)):
            both[name] = (value, float(other))
    return both


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=Path, help="folders TYPE/NAME, or TYPE:FOLDER")
    parser.add_argument("--binary", default="target/release/llm2vec")
    parser.add_argument("--verbose", action="store_true", help="every figure")
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options, arguments = parser.parse_args(sys.argv[1:at]), sys.argv[at + 1 :]
    model, failed = Llm2Vec(arguments, binary=options.binary), 0
    for folder in options.sets:
        kind, _, path = str(folder).rpartition(":")
        folder = Path(path)
        kind = kind or folder.parent.name
        both = compared(kind, folder, model, [options.binary, *arguments])
        if not both:
            sys.exit(f"error: {kind}/{folder.name}: no figure that both have")
        gaps = {name: abs(ours - theirs) for name, (ours, theirs) in both.items() if "threshold" not in name}
        worst = max(gaps, key=gaps.get)
        wrong = gaps[worst] > TOLERANCE.get(kind, 1e-4)
        failed += wrong
        said = f"{len(gaps)} figures\tlargest difference {gaps[worst]:.1e} ({worst})"
        print(f"{'DIFFERS' if wrong else 'equal'}\t{kind}/{folder.name}\t{said}", flush=True)
        if options.verbose or wrong:
            for name, (ours, theirs) in both.items():
                print(f"\t{name}\tours {ours:.6f}\tmteb {theirs:.6f}")
    model.close()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
