"""Times whole packs to vectors in PyTorch + Transformers, in turn with `llm2vec bench encode --against pytorch`.

A pack is a batch of texts of one length; the mean of a text's last hidden states is its vector, in f32 on the host. See
model.py for what both sides have in common.
"""

import sys

from model import Whole, load
from rival import serve, torch


class Encode(Whole):
    def make(self):
        from transformers import AutoModel
        self.model = load(self.settings, self.device, self.operands, AutoModel).eval()
        body = self.model
        self.vectors = self.fast(lambda ids: body(input_ids=ids, use_cache=False).last_hidden_state.float().mean(1))

    def once(self, _):
        with torch.inference_mode():
            return self.vectors(self.ids()).cpu()


if __name__ == "__main__":
    sys.exit(serve(lambda settings, device: Encode(settings, device).answer, ["transformers"]))
