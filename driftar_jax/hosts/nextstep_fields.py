"""NextStep-1's part of a config."""

import math
from typing import Any

from driftar_jax.config import blocks, former, of_tasks, real, whole, wrong
from driftar_jax.hosts import fields as shared

tasks = ("host", "drift", "draft")

fields = {
    **shared.TOKENS,
    "host.depth": blocks(2, "Blocks; the last gives the entropy."),
    "host.num_kv_heads": whole(1, "Heads of keys and values, a divisor of host.num_heads."),
    "host.mlp_width": whole(1, "Hidden channels of a block's MLP."),
    "host.norm_eps": real(0, math.inf, "Added to the variance in RMSNorm.", open_low=True),
    "host.rope_theta": real(1, math.inf, "Base of the rotary positions."),
    "text.length": whole(1, "Most words of a caption; longer ones are refused."),
    "text.unknown": real(0, 1, "Share of the words that training hides.", open_high=True),
    **of_tasks(("host",), {"text.loss": former(0.01, "Weight of the text's cross entropy.")}),
}


def check(flat: dict[str, Any], tokens: int) -> None:
    """Raise ValueError where values do not fit together."""
    shared.check_sizes(flat)
    heads, groups = flat["host.num_heads"], flat["host.num_kv_heads"]
    shared.check_tokens(flat, tokens)
    if heads % groups:
        raise wrong("host.num_kv_heads", groups, f"a divisor of host.num_heads {heads}")
    if flat["host.width"] // heads % 2:
        raise wrong("host.num_heads", heads, "heads of an even width: they are rotated in pairs")
    shared.check_in_turn(flat, tokens)
    if flat["task"] == "host" and flat["sample.nfe"] < 2:
        raise wrong("sample.nfe", flat["sample.nfe"], "2 to 1000 (of a flow head)")
    shared.check_steps(flat)
