"""MAR's part of a config."""

from typing import Any

from driftar_jax.config import blocks, choice, flag, former, of_tasks, whole, wrong
from driftar_jax.hosts import fields as shared
from driftar_jax.hosts.masks import LAWS, RATIO_MIN

tasks = ("host", "drift", "draft")

fields = {
    **shared.TOKENS,
    **shared.DROPOUT,
    **shared.ANNEALED,
    "host.encoder_depth": blocks(1, "Blocks over known tokens."),
    "host.decoder_depth": blocks(2, "Blocks over all tokens; the last gives the entropy."),
    "host.buffer_size": whole(1, "Rows of class tokens in front of the image's."),
    "mask.law": choice(
        LAWS, "Unknown share in training: MAR's, or half of it what sampling meets."
    ),
    "mask.ratio_min": former(RATIO_MIN, "Smallest unknown share under MAR's law."),
    "sample.spacing": choice(
        ("even", "trimmed"), "Times of the diffusion head's steps; trimmed skips the first ones."
    ),
    **of_tasks(
        ("drift", "draft"),
        {
            "drift.entropy_adaln": flag(
                "Whether the decoder's blocks are modulated by the entropy.", before=True
            ),
            "drift.entropy_gradient": flag(
                "Whether the drift shapes the entropy that it reads.", before=True
            ),
        },
    ),
}


def check(flat: dict[str, Any], tokens: int) -> None:
    """Raise ValueError where values do not fit together."""
    shared.check_sizes(flat)
    shared.check_tokens(flat, tokens)
    if flat["sample.ar_steps"] > tokens:
        raise wrong("sample.ar_steps", flat["sample.ar_steps"], f"1 to {tokens} (one per token)")
    shared.check_steps(flat)
