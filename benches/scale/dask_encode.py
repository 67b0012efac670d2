"""Dask: python dask_encode.py MODEL 'texts/*.txt' OUT. Each process of the scheduler keeps one llm2vec."""

import sys

import dask.bag
import pandas as pd
from encoder import kept


def encoded(frame, model):
    if len(frame) == 0:
        return frame.assign(embedding=pd.Series(dtype=object))
    return frame.assign(embedding=kept(model, "--threads", "1")(frame["text"]))


if __name__ == "__main__":
    model, texts, out = sys.argv[1:4]
    lines = dask.bag.read_text(texts).map(str.rstrip).map(lambda line: {"text": line})
    meta = {"text": object, "embedding": object}
    rows = lines.to_dataframe(meta={"text": object}).map_partitions(encoded, model, meta=meta)
    rows.compute(scheduler="processes").reset_index(drop=True).to_parquet(out)
