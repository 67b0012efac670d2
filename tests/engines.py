"""The examples of benches/scale in their engines: Ray, Dask and Spark give each text the vector that `encode` gives it, bit for bit.

    pip install 'ray[data]' 'dask[dataframe]' pyspark pyarrow     # Spark asks for Java too
    python tests/engines.py --binary target/release/llm2vec

One line per engine, "skipped" where this Python lacks it; exit status 0 only if none fails. Tried with ray 2.60, dask 2026.8 and pyspark 4.3.
"""

import argparse
import gzip
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent
MODEL = TESTS / "models" / "novel5m"
SCALE = TESTS.parent / "benches" / "scale"

# Package, how its example starts, and the column of the texts.
ENGINES = {
    "ray": ([sys.executable, SCALE / "ray_encode.py"], "text"),
    "dask": ([sys.executable, SCALE / "dask_encode.py"], "text"),
    "pyspark": (["spark-submit", "--py-files", SCALE / "encoder.py", SCALE / "spark_encode.py"], "value"),
}


def lacks(engine):
    if engine == "pyspark" and not (shutil.which("java") or os.environ.get("JAVA_HOME")):
        return "java"
    return next((name for name in (engine, "pandas", "pyarrow") if importlib.util.find_spec(name) is None), None)


def encoded(engine, folder):
    """What the example has written: pairs of a text and its vector."""
    import pyarrow.parquet

    start, column = ENGINES[engine]
    out = folder / engine
    done = subprocess.run([*start, MODEL, folder / "texts" / "*.txt", out], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr.strip()[-800:]
    table = pyarrow.parquet.read_table(out).to_pydict()
    return sorted(zip(table[column], table["embedding"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=Path, default=Path("target/release/llm2vec"))
    binary = parser.parse_args().binary.absolute()
    if not binary.exists():
        sys.exit(f"error: no binary at {binary}: run `cargo build --release`")
    for name in [n for n in os.environ if n.startswith("LLM2VEC_")]:
        del os.environ[name]  # they would set flags
    os.environ["LLM2VEC_DEVICE"] = "cpu"
    # The examples look for llm2vec and spark-submit, and Spark for its own home, in PATH.
    os.environ["PATH"] = os.pathsep.join([str(binary.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    os.environ["PYSPARK_PYTHON"] = sys.executable
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        lines = gzip.open(TESTS / "texts" / "persuasion.valid.txt.gz", "rt", encoding="utf-8").read().split("\n")
        lines = [line.strip() for line in lines if line.strip()]
        (folder / "texts").mkdir()
        for part in range(3):
            (folder / "texts" / f"{part}.txt").write_text("\n".join(lines[part::3]) + "\n", encoding="utf-8")
        (folder / "all.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = [binary, "encode", "-q", "-m", MODEL, "-i", folder / "all.txt", "-o", folder / "all.jsonl"]
        subprocess.run(command, check=True)
        vectors = [json.loads(line)["embedding"] for line in (folder / "all.jsonl").open(encoding="utf-8")]
        wanted = sorted(zip(lines, vectors))
        for engine in ENGINES:
            if what := lacks(engine):
                print(f"skipped {engine}: no {what}", flush=True)
                continue
            try:
                rows = encoded(engine, folder)
                assert [text for text, _ in rows] == [text for text, _ in wanted], f"{len(rows)} texts of {len(wanted)}"
                wrong = sum(single(row) != single(vector) for (_, row), (_, vector) in zip(rows, wanted))
                assert wrong == 0, f"{wrong} vectors of {len(wanted)} differ"
                print(f"ok      {engine}: {len(rows)} vectors, as encode has them", flush=True)
            except Exception as e:  # the next engine still runs
                failed += 1
                print(f"FAILED  {engine}: {type(e).__name__}: {e}", flush=True)
    sys.exit(1 if failed else 0)


def single(vector):
    """As f32, which Spark stores."""
    import pyarrow

    return pyarrow.array(vector, pyarrow.float32())


if __name__ == "__main__":
    main()
