"""Writes configs.json: what Transformers' AutoConfig makes of each config.json here, keys left out and all.

For each: the sizes, the rotary frequencies of the model's own module, the window of each layer (null: none), which
projections have a bias; or "refused" where Transformers itself cannot run the file. `window` are states of
mistral-window/model opened as a user does with "is_causal": false, by each attention back-end that a CPU has.
Made by: python make_configs.py (transformers 5.24, torch 2.15).
"""
import json
import pathlib
import tempfile

import torch
import transformers
from transformers import AutoConfig, AutoModel

HERE = pathlib.Path(__file__).parent
SMALL = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
             vocab_size=64)
LINEAR, LLAMA3 = dict(type="linear", factor=4.0), dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0,
                                                       high_freq_factor=4.0)
NEW = dict(rope_theta=5e5, rope_type="default")
F, W = "full_attention", "sliding_attention"

ROPES = [
    dict(rope_theta=2e4),
    dict(rope_scaling=LINEAR),
    dict(rope_parameters=NEW),
    dict(rope_scaling=LINEAR, rope_parameters=NEW),
    dict(rope_scaling=LINEAR, rope_parameters=NEW, rope_theta=2e4),
    dict(rope_scaling={}, rope_parameters=NEW, rope_theta=2e4),
    dict(rope_scaling=None, rope_parameters=dict(rope_type="default"), rope_theta=2e4),
    dict(rope_scaling=dict(LINEAR, rope_type="default")),
    dict(rope_scaling=dict(factor=2.0)),
    dict(rope_scaling=dict(LINEAR, rope_theta=3e4), rope_theta=2e4),
    dict(rope_parameters=dict(LLAMA3, rope_theta=5e5, original_max_position_embeddings=32)),
    dict(rope_scaling=LLAMA3, max_position_embeddings=64),
    dict(rope_scaling=LLAMA3),
    dict(rope_scaling=dict(LLAMA3, original_max_position_embeddings=32), original_max_position_embeddings=16),
    dict(rope_parameters=dict(LINEAR, partial_rotary_factor=0.5)),
    dict(rope_parameters=dict(LINEAR, partial_rotary_factor=1.0), partial_rotary_factor=0.5),
    dict(rope_parameters=dict(rope_type="default", rope_theta=None), rope_theta=2e4),
    dict(rope_theta=None),
    dict(rope_scaling=dict(rope_type=None, type="linear", factor=2.0)),
]
WINDOWS = {
    "llama": [dict(sliding_window=5), dict(sliding_window=5, layer_types=[W] * 3)],
    "mistral": [
        {}, dict(sliding_window=5), dict(sliding_window=None),
        # AutoConfig makes a Ministral of these, which wants a head_dim.
        dict(sliding_window=5, head_dim=8, layer_types=None), dict(sliding_window=5, head_dim=8, layer_types=[F] * 3),
        dict(sliding_window=5, head_dim=8, layer_types=[W, F, W]), dict(head_dim=8, layer_types=[W] * 3),
        dict(sliding_window=5, head_dim=8, layer_types=[W] * 2),
    ],
    "qwen2": [
        {}, dict(sliding_window=5), dict(use_sliding_window=True), dict(use_sliding_window=True, sliding_window=5),
        dict(use_sliding_window=True, sliding_window=5, max_window_layers=3),
        dict(use_sliding_window=True, sliding_window=5, max_window_layers=1),
        dict(use_sliding_window=True, max_window_layers=0),
        dict(use_sliding_window=True, sliding_window=None, max_window_layers=0),
        dict(use_sliding_window=True, sliding_window=5, layer_types=[W] * 3),
        dict(use_sliding_window=True, sliding_window=5, layer_types=[F] * 3, max_window_layers=0),
        dict(use_sliding_window=True, sliding_window=5, layer_types=["attention", W, F]),
        dict(use_sliding_window=True, sliding_window=5, layer_types=["full", W, F]),
    ],
}
OTHERS = [dict(attention_bias=True), dict(head_dim=16),
          dict(hidden_size=None), dict(rms_norm_eps=None), dict(tie_word_embeddings=True, rms_norm_eps=1e-5)]
LEFT_OUT = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "vocab_size"]


def cases():
    for family in ["llama", "mistral", "qwen2"]:
        yield dict(model_type=family)
        for key in LEFT_OUT:
            yield dict(model_type=family, **{k: v for k, v in SMALL.items() if k != key})
        # Null is "as many as query heads" and "width over heads" where the class says so.
        nulls = dict(llama=["num_key_value_heads", "head_dim"], mistral=["head_dim"], qwen2=["num_key_value_heads"])
        nulls = [{key: None} for key in nulls[family]]
        for more in ROPES + WINDOWS[family] + OTHERS + nulls:
            yield dict(model_type=family, **dict(SMALL, **more))


def opened(config, **options):
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "config.json").write_text(json.dumps(config))
        return AutoConfig.from_pretrained(folder, **options)


def effective(written):
    config = opened(written)
    with torch.device("meta"):
        layer_types = dict(layer_types=[F]) if "layer_types" in written else {}
        small = opened({**written, "num_hidden_layers": 1, **layer_types})
        model = AutoModel.from_config(small)
        attention = model.layers[0].self_attn
        # The sizes must be ones that a forward runs with.
        if config.num_attention_heads % config.num_key_value_heads:
            raise ValueError("heads do not divide")
    rope = type(model.rotary_emb)(config)
    windows = [config.sliding_window if kind == W else None for kind in config.layer_types] \
        if hasattr(config, "layer_types") and written["model_type"] != "llama" \
        else [getattr(config, "sliding_window", None) if written["model_type"] == "mistral" else None] \
        * config.num_hidden_layers
    width = attention.head_dim
    if len(rope.inv_freq) * 2 != width:
        raise ValueError("the rotary width is not the heads'")
    return dict(width=config.hidden_size, layers=config.num_hidden_layers,
                heads=[config.num_attention_heads, config.num_key_value_heads, width],
                feed_forward=config.intermediate_size, vocab=config.vocab_size,
                max_positions=config.max_position_embeddings, norm_eps=config.rms_norm_eps,
                frequencies=rope.inv_freq.double().tolist(), windows=windows, tied=config.tie_word_embeddings,
                qkv_bias=attention.q_proj.bias is not None, o_bias=attention.o_proj.bias is not None)


def windowed(ids):
    folder = HERE / "mistral-window" / "model"
    written = json.loads((folder / "config.json").read_text())
    states = {}
    for backend in ["sdpa", "eager"]:
        config = opened(dict(written, is_causal=False))
        model = AutoModel.from_pretrained(folder, config=config, attn_implementation=backend).eval()
        with torch.no_grad():
            states[backend] = model(torch.tensor([ids])).last_hidden_state[0].double().flatten().tolist()
    return dict(model="mistral-window/model", ids=ids, **states)


def main():
    transformers.logging.set_verbosity_error()
    rows = []
    for written in cases():
        try:
            rows.append(dict(config=written, effective=effective(written)))
        except Exception as e:
            print("refused", {k: v for k, v in written.items() if SMALL.get(k) != v}, str(e)[:100].replace("\n", " "))
            rows.append(dict(config=written, refused=True))
    body = ",\n".join(json.dumps(row) for row in rows)
    window = json.dumps(windowed([5, 17, 3, 88, 41, 9, 60, 23, 71, 12, 30, 54]))
    text = f'{{"transformers": "{transformers.__version__}", "configs": [\n{body}\n],\n"window": {window}}}\n'
    (HERE / "configs.json").write_text(text)


main()
