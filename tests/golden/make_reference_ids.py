"""Makes reference_ids.json: the rows and pooled spans that the reference implementation makes of texts.

    python make_reference_ids.py            writes reference_ids.json beside this file

Python with tokenizers (0.23). Its own statement, in Python, of what McGill-NLP/llm2vec 0.2.3 does between `encode` and
the model (`_convert_to_str`, `prepare_for_tokenization`, `tokenize`), on the tokenizer of tests/models/novel5m; where
transformers is installed, every tokenisation is checked against its AutoTokenizer. No truth is taken from the Rust code.
"""

import json
from pathlib import Path

from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / "models" / "novel5m"
SEPARATOR = "!@#$%^&*()"
INST = ["mistralai/Mistral-7B-Instruct-v0.2", "meta-llama/Llama-2-7b-chat-hf"]
LLAMA3 = "meta-llama/Meta-Llama-3-8B-Instruct"
QWEN = ["Qwen/Qwen2-1.5B-Instruct", "Qwen/Qwen2-7B-Instruct"]
LLAMA3_BASE = "meta-llama/Meta-Llama-3-8B"
QWEN25 = "Qwen/Qwen2.5-1.5B-Instruct"


class Reference:
    """One encoder: the tokenizer with a name, a pooling mode and two limits."""

    def __init__(self, name, pooling, max_length, doc_max_length):
        self.name, self.pooling = name, pooling
        self.qwen2 = name in [*QWEN, QWEN25]  # the class of the model's config
        self.max_length, self.doc_max_length = max_length, doc_max_length
        self.tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(max_length=max_length)
        self.check = auto_tokenizer()

    def ids(self, text, specials):
        ids = self.tokenizer.encode(text, add_special_tokens=specials).ids
        if self.check:
            same = self.check(text, add_special_tokens=specials, truncation=True, max_length=self.max_length)
            assert same["input_ids"] == ids, (text, ids, same["input_ids"])
        return ids

    def joined(self, instruction, text):
        """Q-E1: words are dropped from the end until the count fits; a text of one long word loses it all."""
        tokens = len(self.ids(text, False))
        while tokens > self.doc_max_length:
            words = text.split()
            text = " ".join(words[: int(len(words) * (self.doc_max_length / tokens))])
            tokens = len(self.ids(text, False))
        return f"{instruction.strip()} {SEPARATOR}{text}" if instruction else f"{SEPARATOR}{text}"

    def templated(self, text):
        if self.name == LLAMA3:
            return "<|start_header_id|>user<|end_header_id|>\n\n" + text.strip() + "<|eot_id|>"
        if self.name in INST:
            text = "[INST] " + text.strip() + " [/INST]"
        if self.name in QWEN:
            text = "<|im_start|>user\n" + text.strip() + "<|im_end|>"
        if self.pooling == "eos_token":
            if self.name == LLAMA3_BASE:
                text = text.strip() + "<|end_of_text|>"
            elif self.qwen2:
                text = text.strip() + "<|endoftext|>"
            else:
                text = text.strip() + " </s>"
        return text

    def row(self, instruction, text):
        """The ids, and the span whose states are averaged; None where the reference raises (Q-E3)."""
        pieces = self.templated(self.joined(instruction, text)).split(SEPARATOR)
        ids = self.ids("".join(pieces), True)
        count = len(self.ids(pieces[1] if len(pieces) > 1 else "", False))  # Q-E2: counted on its own
        if count > len(ids):
            return ids, None
        # A mask of none selects [-0:], the whole row.
        return ids, [len(ids) - count if count else 0, len(ids)]


def auto_tokenizer():
    try:
        from transformers import AutoTokenizer
    except ImportError:
        return None
    return AutoTokenizer.from_pretrained(MODEL)


NOVEL = "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife."
QUERY = "Given a web search query, retrieve relevant passages that answer the query:"
CJK = "機械学習は、経験からの学習により自動で改善するコンピューターアルゴリズムの研究である。"
TEXTS = [
    ("", NOVEL), (QUERY, NOVEL), ("  padded instruction \n", "  padded text \t\n"), ("   ", "blank instruction"),
    ("", ""), (QUERY, ""), ("", "   "), (QUERY, " leading space"), ("", "one"), (QUERY, "'s"), (QUERY, "\nnew line"),
    ("", CJK), (QUERY, CJK), ("", f"before {SEPARATOR} between {SEPARATOR} after"), (QUERY, f"{SEPARATOR}twice"),
    (f"an instruction with {SEPARATOR} inside", "text"), ("", "a_b _ __ 12345 e\u0301 \u00e9 \U0001f600\U0001f468\u200d\U0001f469"),
    (QUERY, "tabs\tand\u00a0spaces\u2003of\u3000many\x1ckinds"), ("", "<bos>literal<eos> specials<mask>"), (QUERY, "trailing?!"),
]
LONG = [
    ("", " ".join([NOVEL] * 12)), (QUERY, "  \n".join([NOVEL] * 12)), ("", CJK * 12), (QUERY, CJK + " " + CJK * 3 + "\u3000" + CJK),
    (" ".join([QUERY] * 6), NOVEL), (QUERY, " ".join([NOVEL] * 3) + "x" * 300),
]


def main():
    encoders = [
        (name, pooling, 512, 400)
        for name in ["", LLAMA3, *INST, *QWEN, QWEN25, LLAMA3_BASE]
        for pooling in ["mean", "eos_token"]
    ]
    # Limits at which shortening, truncation and their combination set in.
    limits = [(512, 100), (48, 400), (48, 40), (20, 10), (16, 16), (3, 2)]
    cases = [(e, t) for e in encoders for t in TEXTS]
    cases += [((n, "mean", m, d), t) for n in ["", INST[0], LLAMA3] for m, d in limits for t in LONG + TEXTS[:3]]
    rows = []
    for encoder, (instruction, text) in cases:
        reference = Reference(*encoder)
        ids, span = reference.row(instruction, text)
        keys = ["model", "pooling", "max_length", "doc_max_length"]
        rows.append(dict(zip(keys, encoder), qwen2=reference.qwen2, instruction=instruction, text=text, ids=ids, span=span))
    plain = Reference("", "mean", 10**6, 10**6)
    start = lambda r: len(plain.ids(r["instruction"].strip(), True))  # where the text starts, if tokens are not shared
    instructed = [r for r in rows if r["instruction"].strip() and not r["model"] and r["pooling"] == "mean"]
    assert any(r["text"].strip() and len(r["ids"]) == 1 for r in rows), "no text was emptied (Q-E1)"
    assert any(r["span"] and abs(r["span"][0] - start(r)) == 1 for r in instructed), "no span is one off (Q-E2)"
    assert any(r["span"] and r["span"][0] < start(r) - 1 for r in instructed), "no span reaches into one (Q-E3)"
    assert any(r["span"] is None for r in rows), "no row is shorter than its span (Q-E3)"
    lines = ",\n".join(json.dumps(r, separators=(",", ":")) for r in rows)
    (HERE / "reference_ids.json").write_text(f"[\n{lines}\n]\n")
    print(len(rows), "rows,", sum(len(r["ids"]) for r in rows), "ids")


if __name__ == "__main__":
    main()
