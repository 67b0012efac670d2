"""Ray Data: python ray_encode.py MODEL 'texts/*.txt' OUT [ACTORS]. An actor keeps one llm2vec, with CPUS cores or a GPU."""

import glob
import os
import sys

import ray
from encoder import Encoder

CPUS = 1


class Rows:
    def __init__(self, model):
        gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
        self.encoder = Encoder(model, "--threads", str(CPUS), *(["--device", "cuda:0"] if gpus else []))

    def __call__(self, batch):
        batch["embedding"] = self.encoder(batch["text"])
        return batch


if __name__ == "__main__":
    model, texts, out = sys.argv[1:4]
    actors = int(sys.argv[4]) if len(sys.argv) > 4 else max(1, (os.cpu_count() or 2) // CPUS - 1)
    # More CPUs than the actors hold: reading needs one, or waits for ever.
    ray.init(num_cpus=actors * CPUS + 1, runtime_env={"env_vars": {"PYTHONPATH": os.path.dirname(os.path.abspath(__file__))}})
    pool = ray.data.ActorPoolStrategy(size=actors)
    # Ray takes paths and folders, no patterns.
    rows = ray.data.read_text(glob.glob(texts) or texts).map_batches(Rows, fn_constructor_args=[model], compute=pool, num_cpus=CPUS, batch_size=256)
    rows.write_parquet(out)
