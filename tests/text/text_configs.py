"""Configurations of small runs on captioned digits."""

import json

from tiny_run import tiny_config

WIDTH, NUM_TOKENS = 8, 6


def text_config(table, *overrides, **text):
    """The tiny run on captioned digits, told in words."""
    told = {"pooled": WIDTH, "tokens": WIDTH, "num_tokens": NUM_TOKENS, "attn_resolutions": [8]}
    encoder = {"kind": "static", "source": str(table), "num_tokens": NUM_TOKENS, **text}
    return tiny_config(
        "data.source=text.captioned_digits:digits",
        "data.label_dropout=0.1",
        "total_nimg=640",
        "checkpoint_nimg=640",
        "net.backbone.label_dim=0",
        f"net.backbone.text={json.dumps(told)}",
        f"text={json.dumps(encoder) if table else 'null'}",
        *overrides,
    )
