"""One `llm2vec encode` that is kept running: a batch of texts in, its vectors out. For Ray, Spark and Dask, beside this."""

import functools
import json
import subprocess
import threading


class Encoder:
    """Flags are those of `llm2vec encode`, for instance `Encoder("DIR", "--adapter", "mntp", "--device", "cuda:0")`."""

    def __init__(self, model, *flags, program="llm2vec"):
        command = [program, "encode", "-m", model, "-i", "-", "-o", "-", "--input-format", "jsonl", "--quiet", *flags]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self, texts):
        """A list of floats for each text; one without a vector is a ValueError that has its number."""
        lines = "".join(json.dumps({"text": str(text)}) + "\n" for text in texts).encode()
        # Beside the reading: whoever writes many lines at once has to read meanwhile.
        writer = threading.Thread(target=lambda: (self.child.stdin.write(lines), self.child.stdin.flush()))
        writer.start()
        vectors = [self._vector(i) for i in range(len(texts))]
        writer.join()
        return vectors

    def _vector(self, i):
        line = self.child.stdout.readline()
        if not line:
            raise RuntimeError(f"llm2vec has ended with status {self.child.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise ValueError(f"text {i} of the batch: {answer['error']}")
        return answer["embedding"]


@functools.cache
def kept(model, *flags):
    """The one Encoder of this process with these flags."""
    return Encoder(model, *flags)
