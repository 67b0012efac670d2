"""Times whole steps in PyTorch + Transformers + PEFT, in turn with `llm2vec bench train --against pytorch`.

LoRA on the seven projections of every layer, in f32, the rest frozen; InfoNCE of cosines, or the cross-entropy of the
hidden tokens with logits at their rows alone; gradients clipped, fused AdamW; with bf16 weights under autocast, the loss
in f32 outside of it. `recompute` is gradient checkpointing of every layer. See model.py for what both sides have in common.
"""

import sys

from model import Whole, load
from rival import serve, torch

F = torch.nn.functional


class Train(Whole):
    def make(self):
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM
        s = self.settings
        whole = load(s, self.device, self.operands, AutoModelForCausalLM).requires_grad_(False)
        body, self.head = whole.model, whole.lm_head if s["stage"] == "mntp" else None
        self.layers = body.layers
        if s["recompute"]:
            body.gradient_checkpointing_enable({"use_reentrant": False})
        # Around the inner model, as the method's own code has it. PEFT keeps adapters in f32.
        lora = LoraConfig(r=s["rank"], lora_alpha=s["alpha"], lora_dropout=s["lora_dropout"], target_modules=s["modules"],
                          bias="none")
        body = get_peft_model(body, lora).train()
        self.drops = [m for name, m in body.named_modules() if name.endswith("lora_dropout.default")]
        self.learned = {name: p for name, p in body.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for name, p in self.learned.items():
                module, side = name.split(".")[-4], name.split(".")[-3]
                p.copy_(self.operands[f"{module}.{side}"])
        self.optimiser = torch.optim.AdamW(self.learned.values(), lr=s["rate"], weight_decay=0.0, fused=True)
        # What is moved between a GPU and the host: the head with the body.
        self.model = torch.nn.ModuleList([body] + ([self.head] if self.head is not None else []))

        def states(ids):
            with self.autocast():
                return body(input_ids=ids, use_cache=False).last_hidden_state

        def contrastive(ids):
            unit = F.normalize(states(ids).float().mean(1), dim=1)
            scores = s["scale"] * unit[:s["queries"]] @ unit[s["queries"]:].T
            return F.cross_entropy(scores, torch.arange(s["queries"], device=ids.device))

        def mntp(ids, rows, labels):
            h = states(ids).flatten(0, 1)[rows]
            with self.autocast():
                logits = self.head(h)
            return F.cross_entropy(logits.float(), labels)
        self.loss = self.fast(mntp if s["stage"] == "mntp" else contrastive)

    def batch(self):
        more = ("rows", "labels") if self.settings["stage"] == "mntp" else ()
        return [self.ids(), *(self.operands[name].to(self.device).long() for name in more)]

    def once(self, chance):
        """Loss and norm of the gradient; without chance from where the adapters began, which they keep."""
        for layer in self.layers:
            layer.self_attn.attention_dropout = self.settings["attention_dropout"] * chance
        for drop in self.drops:
            drop.p = self.settings["lora_dropout"] * chance
        loss = self.loss(*self.batch())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.learned.values(), self.settings["most"])
        if chance:
            self.optimiser.step()
        self.optimiser.zero_grad()
        return torch.tensor([loss.item(), norm.item()])


if __name__ == "__main__":
    sys.exit(serve(lambda settings, device: Train(settings, device).answer, ["transformers", "peft"]))
