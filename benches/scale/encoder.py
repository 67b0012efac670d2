"""One `llm2vec encode` that is kept running: a batch of texts in, its vectors out. For Ray, Spark and Dask, below."""

import json
import subprocess
import threading

import numpy as np


class Encoder:
    """Flags are those of `llm2vec encode`, for instance `Encoder("DIR", "--adapter", "mntp", "--device", "cuda:0")`."""

    def __init__(self, model, *flags, program="llm2vec"):
        command = [program, "encode", "-m", model, "-i", "-", "-o", "-", "--input-format", "jsonl", "--quiet", *flags]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self, texts):
        """Vectors [texts, C] in f32; a text without one is a ValueError that has its number."""
        texts = [str(text) for text in texts]
        # Beside the reading: whoever writes many lines at once has to read meanwhile.
        writer = threading.Thread(target=self._write, args=(texts,))
        writer.start()
        rows = [self._row(i) for i in range(len(texts))]
        writer.join()
        return np.array(rows, np.float32)

    def _write(self, texts):
        self.child.stdin.write("".join(json.dumps({"text": text}) + "\n" for text in texts).encode())
        self.child.stdin.flush()

    def _row(self, i):
        line = self.child.stdout.readline()
        if not line:
            raise RuntimeError(f"llm2vec has ended with status {self.child.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise ValueError(f"text {i} of the batch: {answer['error']}")
        return answer["embedding"]
