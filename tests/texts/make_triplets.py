"""Writes triplets.jsonl.gz: a sentence, one that means the same, and one that shares its words and means something else.

    python tests/texts/make_triplets.py

Made from a small grammar with synonyms, so that contrastive training has something to learn from on a clean clone.
"""

import gzip
import json
import random
from pathlib import Path

# Each line: ways to say one thing.
WHO = [["the old man", "the aged man"], ["a young lady", "a girl"], ["the doctor", "the physician"], ["her husband", "the man she had married"],
       ["the soldier", "the man in uniform"], ["the captain", "the master of the ship"], ["my father", "papa"], ["the servant", "the maid"],
       ["the child", "the little one"], ["the clergyman", "the parson"], ["a stranger", "an unknown man"], ["the king", "his majesty"],
       ["the farmer", "the man who owned the farm"], ["the fisherman", "the man with the nets"], ["the widow", "the woman whose husband had died"]]
# (same meaning, another act)
DID = [(["was asleep", "slept", "was sleeping soundly"], ["was wide awake", "could not sleep at all"]),
       (["wept bitterly", "cried", "was in tears"], ["laughed aloud", "was in high spirits"]),
       (["walked slowly", "went on foot without haste"], ["ran as fast as possible", "rode away at a gallop"]),
       (["was reading a letter", "read through a note"], ["was playing the piano", "sang an old song"]),
       (["drank some wine", "emptied a glass of wine"], ["ate a piece of bread", "refused to drink"]),
       (["was very ill", "lay sick", "suffered from a fever"], ["was in excellent health", "had quite recovered"]),
       (["spoke in a low voice", "whispered"], ["shouted", "cried out loudly"]),
       (["arrived late", "came after the appointed hour"], ["arrived early", "went away at once"]),
       (["told the whole truth", "confessed everything"], ["told a lie", "kept silent"]),
       (["found a purse of gold", "discovered some money"], ["lost a purse of gold", "was robbed"]),
       (["lit the fire", "set the wood burning"], ["put out the fire", "sat in the cold"]),
       (["was waiting for the carriage", "waited until the coach should come"], ["drove the carriage", "jumped out of the coach"])]
WHERE = [["in the garden", "among the flower beds"], ["at home", "in the house"], ["by the sea", "on the shore"], ["in the church", "inside the chapel"],
         ["in the forest", "among the trees"], ["at the inn", "in the tavern"], ["on the bridge", "above the river"], ["in the library", "among the books"],
         ["upon the hill", "on the high ground"], ["in the street", "on the road through the town"]]
WHEN = [["in the morning", "after sunrise"], ["at night", "after dark"], ["in winter", "when the snow lay deep"], ["on Sunday", "upon the day of rest"],
        ["before dinner", "while the table was being laid"], ["last summer", "in the warm season of last year"], ["", ""], ["", ""]]


def sentence(rng, who, did, where, when):
    last = f"{did} {where}"
    text = f"{when}, {who} {last}" if when and rng.random() < 0.5 else f"{who} {last} {when}".strip()
    return text[0].upper() + text[1:] + "."


def triplet(rng):
    who, where, when = rng.choice(WHO), rng.choice(WHERE), rng.choice(WHEN)
    same, other = rng.choice(DID)
    a, b = rng.sample(same, 2)
    (w1, w2), (p1, p2), (t1, t2) = (rng.sample(x, 2) for x in (who, where, when))
    query = sentence(rng, w1, a, p1, t1)
    positive = sentence(rng, w2, b, p2, t2)
    if rng.random() < 0.7:
        negative = sentence(rng, w1, rng.choice(other), p1, t1)
    else:
        stranger = rng.choice([x for x in WHO if x is not who])
        negative = sentence(rng, rng.choice(stranger), rng.choice(other), p1, t2)
    return {"query": query, "positive": positive, "negative": negative}


def main():
    rng, rows, seen = random.Random(1), [], set()
    while len(rows) < 4000:
        row = triplet(rng)
        if row["query"] not in seen:
            seen.add(row["query"])
            rows.append(json.dumps(row))
    path = Path(__file__).parent / "triplets.jsonl.gz"
    with open(path, "wb") as f, gzip.GzipFile("", "wb", 9, f, mtime=0) as g:
        g.write(("\n".join(rows) + "\n").encode())
    print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    main()
