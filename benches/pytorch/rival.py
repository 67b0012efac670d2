"""What `llm2vec bench --against pytorch` starts has in common: the talk with it, the device, the clock's neighbours.

From stdin one line of settings, then an order a line; to stdout a line that says what this is, then an answer a line.
"""

import json
import os
import sys
import warnings

try:
    import torch
except ImportError as e:  # said in one line to whoever started this
    print(json.dumps({"error": str(e)}), flush=True)
    sys.exit(1)


# Of what is to be renamed in a version to come.
warnings.simplefilter("ignore", FutureWarning)


class Refused(Exception):
    """A way that does not take this work."""


def reason(e):
    """What was thrown, in one phrase."""
    if "out of memory" in str(e):
        most = f" ({torch.cuda.max_memory_allocated() / 2 ** 30:.1f} GiB were taken)" if torch.cuda.is_available() else ""
        return f"out of memory{most}"
    lines = str(e).strip().splitlines() or [type(e).__name__]
    return lines[0][:200]


def attempt(make, name, dead):
    """What `make` gives; nothing where it fails, and the reason under its name in `dead`."""
    try:
        return make()
    except Exception as e:  # whatever a library throws is its answer, and no end of the run
        dead[name] = reason(e)


def describe(device, others):
    name = f"PyTorch {torch.__version__}"
    if device.type == "cuda":
        name += f" (CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()})"
    for other in others:
        try:
            name += f", {other} {__import__(other).__version__}"
        except ImportError:
            name += f", no {other}"
    return name


def prepare(settings):
    device = torch.device(settings["device"])
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise RuntimeError("this PyTorch sees no GPU")
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(settings["threads"])
    try:
        torch._dynamo.config.recompile_limit = 4096
    except AttributeError:
        torch._dynamo.config.cache_size_limit = 4096
    return device


def serve(work, others):
    """`work(settings, device)` gives what answers an order; `others` are libraries to be named beside PyTorch."""
    # What libraries print must not get between the lines of the protocol.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(what):
        out.write(json.dumps(what) + "\n")
        out.flush()
    settings = json.loads(sys.stdin.readline())
    try:
        device = prepare(settings)
        name = describe(device, others)
        answer = work(settings, device)
    except Exception as e:
        say({"error": reason(e)})
        return 1
    say({"name": name})
    for line in sys.stdin:
        say(answer(json.loads(line)))
    return 0
