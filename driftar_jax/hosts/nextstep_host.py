"""NextStep-1 among the hosts: its family; how it is asked stands in `nextstep_encodings.py`."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from driftar_jax.config import blocks, former, of_tasks, real, whole, wrong
from driftar_jax.hosts import fields
from driftar_jax.hosts.base import BaseFamily, ImageSpec, Model, Walk
from driftar_jax.hosts.nextstep import NextStep
from driftar_jax.types import Encoding, Prompt

_FIELDS = {
    **fields.TOKENS,
    "host.depth": blocks(2, "Blocks; the last gives the entropy."),
    "host.num_kv_heads": whole(1, "Heads of keys and values, a divisor of host.num_heads."),
    "host.mlp_width": whole(1, "Hidden channels of a block's MLP."),
    "host.norm_eps": real(0, math.inf, "Added to the variance in RMSNorm.", open_low=True),
    "host.rope_theta": real(1, math.inf, "Base of the rotary positions."),
    "host.context_noise": real(
        0,
        math.inf,
        "Most noise (standard deviation) on tokens as the host reads them in training.",
        before=0.0,
        may_miss=True,
    ),
    "text.length": whole(1, "Most words of a caption; longer ones are refused."),
    "text.unknown": real(0, 1, "Share of the words that training hides.", open_high=True),
    **of_tasks(("host",), {"text.loss": former(0.01, "Weight of the text's cross entropy.")}),
}


def _check(flat: dict[str, Any], tokens: int) -> None:
    """Raise ValueError where values do not fit together."""
    fields.check_sizes(flat)
    heads, groups = flat["host.num_heads"], flat["host.num_kv_heads"]
    if heads % groups:
        raise wrong("host.num_kv_heads", groups, f"a divisor of host.num_heads {heads}")
    if flat["host.width"] // heads % 2:
        raise wrong("host.num_heads", heads, "heads of an even width: they are rotated in pairs")
    fields.check_in_turn(flat, tokens)
    if flat["task"] == "host" and flat["sample.nfe"] < 2:
        raise wrong("sample.nfe", flat["sample.nfe"], "2 to 1000 (of a flow head)")
    fields.check_steps(flat)


@dataclasses.dataclass(frozen=True)
class NextStepFamily(BaseFamily):
    """Serve as the `Family` (`base.py`) of NextStep-1: from text, one token after another."""

    name: str = "nextstep"
    order: str = "raster"
    drafts: bool = True
    fields = _FIELDS
    tasks = ("host", "drift", "draft")
    check = staticmethod(_check)

    def backbone(self, config: Any, images: ImageSpec) -> NextStep:
        """See `Family.backbone`."""
        return NextStep(
            vocab_size=images.text.vocab_size,
            placeholder=images.text.placeholder,
            token_dim=images.token_dim,
            depth=config.host.depth,
            num_kv_heads=config.host.num_kv_heads,
            head_dim=config.host.width // config.host.num_heads,
            mlp_width=config.host.mlp_width,
            norm_eps=config.host.norm_eps,
            rope_theta=config.host.rope_theta,
            **fields.backbone(config),
        )

    def own_head(self, config: Any, images: ImageSpec) -> nn.Module:
        """See `Family.own_head`."""
        from driftar_jax.heads.flow_token import FlowTokenHead  # a Drift-AR run has none

        dtype = jnp.dtype(config.host.dtype)
        return FlowTokenHead(images.token_dim, config.head.width, config.head.depth, dtype)

    def examples(self, model: Model):
        """See `Family.examples`."""
        x = jnp.zeros((1, model.images.token_dim))

        def host(key):
            ids = jnp.zeros((1, 2), jnp.int32)
            return model.host.init(key, ids, x[:, None], method="everything")

        def head(key):
            return model.head.init(key, x, jnp.zeros(1), jnp.zeros((1, model.host.width)))

        def draft(key):
            from driftar_jax.heads.draft import window_zeros

            return model.draft.init(key, *window_zeros(model))

        return {"host": host, "head": head, "draft": draft}

    def contexts(self, config: Any, model: Model):
        """See `Family.contexts`."""
        from driftar_jax.hosts import nextstep_contexts  # of training alone

        return nextstep_contexts.contexts(config, model)

    def check_settings(self, settings: Any, model: Model) -> None:
        """See `Family.check_settings`."""
        num_tokens = model.images.num_tokens
        if settings.ar_steps != num_tokens:
            raise wrong("ar_steps", settings.ar_steps, f"{num_tokens} (one per token of this host)")
        if settings.nfe_schedule != "constant":
            raise wrong("nfe_schedule", settings.nfe_schedule, "constant (of this host)")
        if not 0 < settings.shift < math.inf:
            raise wrong("shift", settings.shift, "a number above 0")
        for field in ("guidance", "guidance_image"):
            value = getattr(settings, field)
            if not 1 <= value < math.inf:
                allowed = "1 (none) or more: below 1 it is no guidance, and the published program "
                raise wrong(field, value, allowed + "pairs the wrong rows")
        if settings.guidance_image > 1 and settings.guidance == 1:
            allowed = "1 while guidance is 1: the image-only branch lies between the conditional "
            raise wrong("guidance_image", settings.guidance_image, allowed + "and the other one")

    def check_conditions(self, model: Model, condition: Any) -> None:
        """See `Family.check_conditions`."""
        rows = condition.rows if isinstance(condition, Prompt) else np.asarray(condition)
        if isinstance(condition, Prompt):
            if not len(rows):
                raise wrong("prompt", None, "at least one text")
            return
        want = 1 + model.images.text.prompt
        if rows.ndim != 2 or not len(rows) or rows.shape[1] != want:
            raise wrong("captions", f"shape {rows.shape}", f"at least one row of {want} numbers")

    def plain(self, model, settings, params, condition, keys, head, hole=None, trace=False):
        """See `Family.plain`."""
        from driftar_jax.hosts import nextstep_plain  # of the lock-step road alone

        return nextstep_plain.tokens_of(model, settings, params, condition, keys, head, trace)

    def walk(self, model, settings, params, condition, keys, contexts: int) -> Walk:
        """See `Family.walk`."""
        from driftar_jax.hosts import nextstep_walk  # of drafts and lookahead alone

        return nextstep_walk.walk_of(model, settings, params, condition, contexts)

    def known_encoding(self, model: Model, params, tokens, known, condition) -> Encoding:
        """See `Family.known_encoding`."""
        from driftar_jax.hosts.nextstep_encodings import encodings, projected  # of known images

        prompt = condition if isinstance(condition, Prompt) else Prompt(condition[:, None])
        rows = prompt.rows[:, 0]
        encoding = encodings(model, params, rows[:, 1:], rows[:, 0], tokens, prompt.sources)
        return projected(model.host, params["host"], encoding)


FAMILY = NextStepFamily()
