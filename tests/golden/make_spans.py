"""Makes spans.json: what seqeval gives for tags of words, well formed and not.

    python make_spans.py        writes beside this file

Python with seqeval 1.2.2, numpy 2.4, scikit-learn 1.9.
"""

import json
import random
import warnings
from pathlib import Path

from seqeval.metrics import accuracy_score
from seqeval.metrics.sequence_labeling import get_entities, precision_recall_fscore_support

warnings.filterwarnings("ignore")


def iob2(draw, words, kinds):
    """Well formed: a span is B- and then I- of its type."""
    tags = []
    while len(tags) < words:
        if draw.random() < 0.5:
            tags.append("O")
            continue
        kind = draw.choice(kinds)
        tags += ["B-" + kind] + ["I-" + kind] * draw.randrange(3)
    return tags[:words]


def iob1(tags):
    """B- only between two neighbours of one type."""
    made, before = [], "O"
    for tag in tags:
        neighbour = before != "O" and before[2:] == tag[2:]
        made.append("I" + tag[1:] if tag[0] == "B" and not neighbour else tag)
        before = tag
    return made


def iobes(tags):
    """With the last word of a span marked."""
    made = []
    for tag, after in zip(tags, tags[1:] + ["O"]):
        ends = not after.startswith("I-")
        made.append({"B": "S", "I": "E"}[tag[0]] + tag[1:] if ends and tag != "O" else tag)
    return made


def noisy(draw, tags, pool, rate):
    return [draw.choice(pool) if draw.random() < rate else tag for tag in tags]


def sets():
    draw = random.Random(20261130)
    kinds = ["PER", "LOC", "ORG", "creative-work"]
    pool = ["O"] + [letter + "-" + kind for letter in "BI" for kind in kinds]
    all_letters = ["O"] + [letter + "-" + kind for letter in "BIES" for kind in kinds]
    sentence = lambda: iob2(draw, draw.randrange(1, 25), kinds)
    for rate in [0.0, 0.1, 0.5, 1.0]:
        truth = [sentence() for _ in range(20)]
        yield f"iob2, {rate} wrong", truth, [noisy(draw, tags, pool, rate) for tags in truth]
        truth = [iob1(tags) for tags in truth]
        yield f"iob1, {rate} wrong", truth, [noisy(draw, tags, pool, rate) for tags in truth]
        truth = [iobes(sentence()) for _ in range(20)]
        yield f"iobes, {rate} wrong", truth, [noisy(draw, tags, all_letters, rate) for tags in truth]
    malformed = lambda: [draw.choice(all_letters) for _ in range(draw.randrange(1, 15))]
    truth = [malformed() for _ in range(120)]
    yield "malformed", truth, [noisy(draw, tags, all_letters, 0.3) for tags in truth]
    yield "I- after O", [["O", "I-PER", "I-PER", "O"]], [["O", "B-PER", "I-PER", "O"]]
    yield "type changes", [["B-PER", "I-LOC", "I-LOC", "B-LOC"]], [["B-PER", "B-LOC", "I-LOC", "I-LOC"]]
    yield "ends of sentences", [["B-PER"], ["I-PER", "O"]], [["B-PER"], ["I-PER", "O"]]
    yield "a type never answered", [["B-PER", "O", "B-LOC"]], [["B-PER", "O", "O"]]
    yield "a type never there", [["B-PER", "O", "O"]], [["B-PER", "O", "B-LOC"]]
    yield "nothing answered", [["B-PER", "I-PER"]], [["O", "O"]]
    yield "nothing there", [["O", "O"]], [["B-PER", "O"]]


def main():
    cases = []
    for name, truth, answers in sets():
        kinds = sorted({e[0] for e in get_entities(truth)} | {e[0] for e in get_entities(answers)})
        figures = lambda average: [float(v) for v in precision_recall_fscore_support(truth, answers, average=average)[:3]]
        by_type = precision_recall_fscore_support(truth, answers, average=None)
        cases.append({
            "name": name,
            "truth": [" ".join(tags) for tags in truth],
            "answers": [" ".join(tags) for tags in answers],
            "spans": [[[kind, first, last] for kind, first, last in get_entities(tags)] for tags in answers[:40]],
            "accuracy": float(accuracy_score(truth, answers)),
            "micro": figures("micro"),
            "macro": figures("macro"),
            "by_type": {kind: [float(column[i]) for column in by_type] for i, kind in enumerate(kinds)},
        })
    path = Path(__file__).with_name("spans.json")
    path.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


main()
