"""Tasks of mteb (2.x) over `llm2vec encode -i - -o -`, one process kept running.

    python benches/mteb/encoder.py STSBenchmark SciFact -- -m Mistral-7B --adapter mntp --adapter simcse
    python benches/mteb/encoder.py --prompts prompts.json --sts stsb.test.tsv -- -m tests/models/novel5m

Prompts are JSON with mteb's keys, the more exact first: "SciFact-query", "SciFact", "Retrieval-query", "Retrieval",
"query"; without one a text has no instruction. `--sts` makes a task of a table with score, sentence1 and sentence2.
What follows `--` is for `encode`. Python with mteb and numpy.
"""

import argparse
import json
import os
import subprocess
import sys
import threading

import numpy as np
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction


class Llm2Vec(AbsEncoder):
    """An encoder of mteb. One reader at a time: answers come in the order of the lines."""

    def __init__(self, arguments, prompts=None, binary="target/release/llm2vec", name="llm2vec/encode"):
        command = [binary, "encode", "-i", "-", "-o", "-", "--input-format", "jsonl", "--empty", "zero", "--quiet"]
        self.process = subprocess.Popen([*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.model_prompts = self.validate_task_to_prompt_name(prompts)
        meta = {"name": name, "revision": "local", "similarity_fn_name": ScoringFunction.COSINE, "framework": ["NumPy"]}
        self.mteb_model_meta = ModelMeta.create_empty(overwrites=meta)

    def vectors(self, texts, instruction=""):
        """An array [texts, C]."""
        lines = "".join(json.dumps({"text": text, "instruction": instruction}) + "\n" for text in texts)
        # Beside the reading: the program stops to read when nobody takes its answers.
        writer = threading.Thread(target=self._write, args=(lines.encode(),))
        writer.start()
        answers = [json.loads(self.process.stdout.readline() or '{"error": "the program has ended"}') for _ in texts]
        writer.join()
        wrong = [answer["error"] for answer in answers if "error" in answer]
        if wrong:
            raise RuntimeError(f"{len(wrong)} of {len(texts)} texts have no vector, the first: {wrong[0]}")
        return np.array([answer["embedding"] for answer in answers], dtype=np.float32)

    def _write(self, data):
        try:
            self.process.stdin.write(data)
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # what it said stands on stderr, and readline() ends

    def encode(self, inputs, *, task_metadata, hf_split, hf_subset, prompt_type=None, **kwargs):
        key = self.get_prompt_name(task_metadata, prompt_type)
        instruction = self.model_prompts[key] if key else ""
        return self.vectors([text for batch in inputs for text in batch["text"]], instruction)

    def close(self):
        self.process.stdin.close()
        return self.process.wait()


def sts_task(path):
    """A task of a table, scores from 0 to 5."""
    import csv

    import datasets
    from mteb.abstasks import AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata

    class LocalSts(AbsTaskSTS):
        min_score, max_score = 0, 5
        metadata = TaskMetadata(
            name="LocalSts", description=os.path.basename(path), type="STS", category="t2t", modalities=["text"],
            dataset={"path": path, "revision": "local"}, eval_splits=["test"], eval_langs=["eng-Latn"],
            main_score="cosine_spearman",
        )  # fmt: skip

        def load_data(self, **kwargs):
            with open(path, newline="") as table:
                rows = list(csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE))
            columns = {key: [row[key] for row in rows] for key in ("sentence1", "sentence2")}
            columns["score"] = [float(row["score"]) for row in rows]
            self.dataset = {"test": datasets.Dataset.from_dict(columns)}
            self.data_loaded = True

    return LocalSts()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", help="names of mteb's tasks")
    parser.add_argument("--prompts", help="JSON: prompt by task, task type and prompt type")
    parser.add_argument("--sts", help="a table of one's own")
    parser.add_argument("--binary", default="target/release/llm2vec")
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options, arguments = parser.parse_args(sys.argv[1:split]), sys.argv[split + 1 :]

    import mteb

    prompts = json.load(open(options.prompts)) if options.prompts else None
    tasks = [sts_task(options.sts)] if options.sts else []
    tasks += list(mteb.get_tasks(tasks=options.tasks)) if options.tasks else []
    model = Llm2Vec(arguments, prompts, options.binary)
    for result in mteb.evaluate(model, tasks, cache=None).task_results:
        print(f"{result.task_name}\t{100 * result.get_score():.2f}")
    model.close()


if __name__ == "__main__":
    main()
