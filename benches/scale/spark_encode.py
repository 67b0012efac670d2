"""Spark: spark-submit --py-files encoder.py spark_encode.py MODEL 'texts/*.txt' OUT. A task keeps one llm2vec."""

import sys

from encoder import Encoder
from pyspark.sql import SparkSession

model, texts, out = sys.argv[1:4]


def encoded(frames):
    encoder = Encoder(model, "--threads", "1")
    for frame in frames:
        frame["embedding"] = encoder(frame["value"])
        yield frame


if __name__ == "__main__":
    spark = SparkSession.builder.appName("llm2vec").getOrCreate()
    rows = spark.read.text(texts)
    rows.mapInPandas(encoded, "value string, embedding array<float>").write.parquet(out)
