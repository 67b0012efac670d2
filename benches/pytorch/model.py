"""A whole model in PyTorch + Transformers as `llm2vec bench encode|train` has it: the same weights, ids and mask.

bf16 on a GPU, f32 on the CPU (or bf16, where ours has it so); sdpa, texts of one length side by side without padding or
mask, every token seeing every other. In a process that answers `llm2vec bench` (see rival.py), between whose orders a GPU
is empty: what the other side cannot have, it would be blamed for.
"""

import time

from rival import reason, torch


def weights(model, drawn):
    """What a random model has: matrices of the same numbers over and over, vectors of ones."""
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.fill_(1.0)
            else:
                p.copy_(drawn.repeat(-(-p.numel() // drawn.numel()))[:p.numel()].view_as(p))


def load(settings, device, operands, kind):
    """A model of Transformers with the weights that ours has, bidirectional."""
    import transformers
    transformers.utils.logging.disable_progress_bar()
    dtype = torch.bfloat16 if settings["bf16"] else torch.float32
    if settings["folder"]:
        model = kind.from_pretrained(settings["folder"], dtype=dtype, attn_implementation="sdpa").to(device)
    else:
        shape = dict(settings["shape"], num_hidden_layers=settings["layers"])
        config = transformers.AutoConfig.for_model(shape.pop("model_type"), **shape)
        with torch.device(device):
            model = kind.from_config(config, dtype=dtype, attn_implementation="sdpa")
        weights(model, operands["drawn"].to(device))
    body = getattr(model, "model", model)
    body.layers = body.layers[:settings["layers"]]
    body.config.num_hidden_layers = settings["layers"]
    body.config.is_causal = False  # a missing mask means "all keys", not "causal"
    for layer in body.layers:
        layer.self_attn.is_causal = False
    with torch.inference_mode():
        first = lambda *row: body(input_ids=torch.tensor([row], device=device), use_cache=False).last_hidden_state[0, 0]
        if (first(1, 5, 6) == first(1, 5, 7)).all():
            raise RuntimeError("this version of transformers runs the model causally; that would not be the same work")
    return model


class Whole:
    """What answers: `once(chance)` does the work and gives f32 numbers on the CPU; made at the first order."""

    def __init__(self, settings, device):
        from safetensors.torch import load_file
        self.settings, self.device, self.gpu = settings, device, device.type == "cuda"
        self.operands = load_file(settings["operands"])
        self.name = "compile" if settings["compile"] else "eager"
        self.model = self.why = None

    def ids(self):
        """[B, T], from the host at every step."""
        return self.operands["ids"].view(-1, self.settings["length"]).to(self.device).long()

    def fast(self, function):
        return torch.compile(function, dynamic=False) if self.settings["compile"] else function

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings["bf16"])

    def peak(self):
        """The most bytes since the call before: allocated on a GPU, else resident."""
        if self.gpu:
            most = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            return most
        with open("/proc/self/status") as f:
            most = next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM:"))
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")
        return most

    def timed(self):
        start = time.perf_counter()
        self.once(True)
        return time.perf_counter() - start

    def here(self):
        """The model on its device."""
        if self.model is None:
            torch.manual_seed(1)
            self.make()
        elif self.gpu:
            self.model.to(self.device)

    def away(self):
        """Leaves a GPU to the other side."""
        if self.gpu and self.model is not None:
            self.model.to("cpu")
        if self.gpu:
            torch.cuda.empty_cache()

    def answer(self, order):
        if self.why is None:
            try:
                self.here()
                if "check" in order:
                    with open(order["check"], "wb") as f:
                        f.write(self.once(False).float().contiguous().numpy().tobytes())
                    return {}
                self.peak()
                for _ in range(2):
                    self.once(True)
                return {self.name: {"seconds": [self.timed() for _ in range(order["samples"])], "peak": self.peak()}}
            except Exception as e:  # whatever a library throws is its answer, and no end of the run
                self.why = reason(e)
            finally:
                self.away()
        return {"error" if "check" in order else self.name: self.why}
