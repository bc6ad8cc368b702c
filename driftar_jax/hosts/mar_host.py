"""MAR among the hosts: its family, and its walk for speculative decoding.

A group is what one masked step reveals. Attention is bidirectional, so there is no cache: several
contexts are stacked on the batch axis. They differ in their known counts, so the encoder masks
unknown keys instead of dropping them.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from driftar_jax.config import blocks, choice, flag, former, of_tasks, whole, wrong
from driftar_jax.hosts import fields, mar
from driftar_jax.hosts.base import BaseFamily, ImageSpec, Model
from driftar_jax.hosts.mar import MAR
from driftar_jax.hosts.schedules import (
    EVERYWHERE,
    TRIMMED_LAST,
    cosine_counts,
    guidance_at,
    guided_steps,
)
from driftar_jax.types import Encoding


@dataclasses.dataclass(frozen=True)
class MARWalk:
    """A `Walk` (`base.py`) over MAR.

    Attributes:
      module: the backbone.
      params: its parameters.
      label: `[B]` int32, -1 for none.
      order: `[B, N]` int32; groups are revealed from its end.
      rank: `[B, N]` int32; where each position stands in its order.
      counts: T sizes of groups.
      branches: 2 adds the unconditional rows.
      draft_head: `DraftHead`; it predicts the encoding of all N positions.
      draft_params: its parameters.
      guidance: `[T]` float32.
    """

    module: MAR
    params: Any
    label: jax.Array
    order: jax.Array
    rank: jax.Array
    counts: tuple[int, ...]
    branches: int = 1
    draft_head: Any = None
    draft_params: Any = None
    guidance: Any = None

    @classmethod
    def of(cls, *, order: jax.Array, **fields) -> "MARWalk":
        """Make a walk with the rank of `order`: computed here once, and not in every round."""
        return cls(order=order, rank=jnp.argsort(order, axis=-1), **fields)

    @property
    def num_steps(self) -> int:
        """Return T, the autoregressive steps."""
        return len(self.counts)

    @property
    def group_size(self) -> int:
        """Return K, the tokens of the largest step."""
        return max(self.counts)

    @property
    def num_tokens(self) -> int:
        """Return N."""
        return self.module.num_tokens

    @property
    def token_dim(self) -> int:
        """Return C."""
        return self.module.token_dim

    def _unknown(self, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the numbers of unknown tokens before and after the groups of `step`."""
        # T + 1 numbers, N first and 0 last: entry k is what is unknown before step k.
        before = self.num_tokens - np.cumsum((0, *self.counts))
        step = jnp.clip(step, 0, self.num_steps - 1)
        before = jnp.asarray(before, jnp.int32)
        return before[step], before[step + 1]

    def group(self, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See `Walk.group`."""
        before, after = self._unknown(step)
        # Groups differ in size along the cosine schedule; each is padded to the largest, and the
        # second result says which slots are real.
        slots = after[:, None] + jnp.arange(self.group_size)[None]
        positions = jnp.take_along_axis(self.order, jnp.minimum(slots, self.num_tokens - 1), axis=1)
        return positions, slots < before[:, None]

    def known(self, step: jax.Array) -> jax.Array:
        """See `Walk.known`."""
        return self.rank >= self._unknown(step)[0][:, None]

    def memory(self) -> tuple[()]:
        """Return nothing: calls share no cache."""
        return ()

    def encode(self, memory, tokens, step, contexts: int):
        """Call the backbone once, on `contexts * branches * B` rows; see `Walk.encode`."""
        # One tensor of tokens serves all contexts: a context simply knows fewer of them, and tokens
        # outside `known` are zeroed before the encoder.
        known = jnp.concatenate([self.known(step + s) for s in range(contexts)])
        tokens = jnp.concatenate([tokens] * contexts)
        label = jnp.concatenate([self.label] * contexts)
        if self.branches == 2:
            known, tokens = jnp.concatenate([known] * 2), jnp.concatenate([tokens] * 2)
            # The branch is the slowest axis of the batch, the context the next: `_by_context`
            # undoes just that.
            label = jnp.concatenate([label, jnp.full_like(label, -1)])
        encoding = self.module.apply({"params": self.params}, tokens, known, label)
        return jax.tree.map(lambda a: self._by_context(a, contexts), encoding), memory

    def _by_context(self, rows: jax.Array, contexts: int) -> jax.Array:
        """`[branches * S * B, ...]` -> `[S, branches * B, ...]`."""
        # The order in which `encode` stacked them, made `[S, branches, B]`: for each context all
        # conditional rows, then all unconditional ones.
        a = rows.reshape(self.branches, contexts, -1, *rows.shape[1:])
        return jnp.swapaxes(a, 0, 1).reshape(contexts, -1, *rows.shape[1:])

    def roll_back(self, memory, step):
        """Return `memory` as it is."""
        return memory

    def take(self, tree: Any, step: jax.Array) -> Any:
        """See `Walk.take`."""
        positions = jnp.concatenate([self.group(step)[0]] * self.branches)
        return jax.tree.map(lambda a: mar.take(a, positions), tree)

    def read(self, encoding: Encoding) -> Encoding:
        """Return the encoding as it is."""
        return encoding

    def draft(self, last: Encoding, tokens: jax.Array, step: jax.Array) -> Encoding:
        """See `Walk.draft`."""
        known = jnp.concatenate([self.known(step)] * self.branches)
        tokens = jnp.concatenate([tokens] * self.branches)
        # The draft head sees the whole grid at once: the next group may lie anywhere in it.
        return self.draft_head.apply({"params": self.draft_params}, last, tokens, known)

    def scales(self) -> jax.Array:
        """See `Walk.scales`."""
        return self.guidance


_FIELDS = {
    **fields.TOKENS,
    **fields.SHARED_HEAD,
    **fields.OWN_BESIDE,
    **fields.DROPOUT,
    **fields.ANNEALED,
    "host.encoder_depth": blocks(1, "Blocks over known tokens."),
    "host.decoder_depth": blocks(2, "Blocks over all tokens; the last gives the entropy."),
    "host.buffer_size": whole(1, "Rows of class tokens in front of the image's."),
    "mask.law": choice(
        mar.LAWS, "Unknown share in training: MAR's, or half of it what sampling meets."
    ),
    "mask.ratio_min": former(mar.RATIO_MIN, "Smallest unknown share under MAR's law."),
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


# Why an accelerator wants one number of head evaluations.
_CONSTANT = {
    "lazymar": "whose head caches by the step's number",
    "recap": "whose cheap steps have a number of their own",
}


def _check(flat: dict[str, Any], tokens: int) -> None:
    """Raise ValueError where values do not fit together."""
    fields.check_sizes(flat)
    fields.check_tokens(flat, tokens)
    fields.check_own_head(flat)
    if flat["sample.ar_steps"] > tokens:
        raise wrong("sample.ar_steps", flat["sample.ar_steps"], f"1 to {tokens} (one per token)")
    fields.check_steps(flat)


@dataclasses.dataclass(frozen=True)
class MARFamily(BaseFamily):
    """Serve as the `Family` (`base.py`) of MAR: class-conditional, masked, tokens in any order."""

    name: str = "mar"
    order: str = "any"
    drafts: bool = True
    fields = _FIELDS
    tasks = ("host", "drift", "draft")
    check = staticmethod(_check)

    def backbone(self, config: Any, images: ImageSpec) -> MAR:
        """See `Family.backbone`."""
        return MAR(
            num_tokens=images.num_tokens,
            token_dim=images.token_dim,
            num_classes=images.num_classes,
            encoder_depth=config.host.encoder_depth,
            decoder_depth=config.host.decoder_depth,
            buffer_size=config.host.buffer_size,
            **fields.with_dropout(config),
        )

    def own_head(self, config: Any, images: ImageSpec) -> nn.Module:
        """See `Family.own_head`."""
        from driftar_jax.heads.diffusion import DiffusionHead  # a Drift-AR run has none

        return DiffusionHead(
            token_dim=images.token_dim,
            width=config.head.width,
            depth=config.head.depth,
            dtype=jnp.dtype(config.host.dtype),
        )

    def examples(self, model: Model):
        """See `Family.examples`."""
        n, c = model.images.num_tokens, model.images.token_dim
        z, x, e = jnp.zeros((1, n, model.host.width)), jnp.zeros((1, n, c)), jnp.zeros((1, n))

        def head(key):
            return model.head.init(key, x, jnp.zeros((1, 1), jnp.int32), z)

        def draft(key):
            return model.draft.init(key, Encoding(z=z, entropy=e), x, e.astype(bool))

        def host(key):
            return model.host.init(key, x, e.astype(bool), jnp.zeros((1,), jnp.int32))

        return {"host": host, "head": head, "draft": draft}

    def contexts(self, config: Any, model: Model):
        """See `Family.contexts`."""
        from driftar_jax.hosts import mar_contexts  # of training alone

        return mar_contexts.contexts(config, model)

    def check_settings(self, settings: Any, model: Model) -> None:
        """See `Family.check_settings`."""
        if not 1 <= settings.ar_steps <= model.images.num_tokens:
            allowed = f"1 to {model.images.num_tokens} (one per token)"
            raise wrong("ar_steps", settings.ar_steps, allowed)
        most = TRIMMED_LAST + 1 if settings.spacing == "trimmed" else 1000
        if not 1 <= settings.nfe <= most:
            raise wrong("nfe", settings.nfe, f"1 to {most} (spacing {settings.spacing})")
        if settings.order not in mar.ORDERS:
            raise wrong("order", settings.order, " | ".join(mar.ORDERS))
        if settings.accelerator not in mar.ACCELERATORS:
            raise wrong("accelerator", settings.accelerator, " | ".join(mar.ACCELERATORS))
        if settings.accelerator != "none" and settings.gamma:
            allowed = f"none with gamma {settings.gamma}: one or the other"
            raise wrong("accelerator", settings.accelerator, allowed)
        guided_steps(settings.ar_steps, settings.guidance_interval)
        if settings.guidance_interval != EVERYWHERE:
            for name, none in (("gamma", 0), ("accelerator", "none"), ("draft_steps", 0)):
                if getattr(settings, name) != none:
                    allowed = f"{EVERYWHERE} with {name} {getattr(settings, name)}"
                    raise wrong("guidance_interval", settings.guidance_interval, allowed)
        why = _CONSTANT.get(settings.accelerator)
        if why is not None and settings.nfe_schedule != "constant":
            allowed = f"constant with accelerator {settings.accelerator}, {why}"
            raise wrong("nfe_schedule", settings.nfe_schedule, allowed)

    def rows(self, model: Model, settings: Any) -> int:
        """See `Family.rows`."""
        if settings.accelerator == "none":
            return settings.rows
        from driftar_jax.hosts import mar_lazy  # of rivals alone

        return mar_lazy.rows(model, settings)

    def work(self, model: Model, settings: Any) -> list[Any]:
        """See `Family.work`."""
        from driftar_jax.hosts import mar_work

        count = mar_work.pair if settings.draft_steps else mar_work.table
        return count(model, settings)

    def plain(self, model, settings, params, condition, keys, head, hole=None, trace=False):
        """See `Family.plain`."""
        from driftar_jax.hosts import mar_plain  # of the lock-step road alone

        return mar_plain.tokens_of(model, settings, params, condition, keys, head, hole, trace)

    def paired(self, model, settings, params, condition, keys, judge):
        """See `Family.paired`."""
        from driftar_jax.hosts import mar_pair  # of a rival alone

        return mar_pair.tokens_of(model, settings, params, condition, keys, judge)

    def walk(self, model, settings, params, condition, keys, contexts: int) -> MARWalk:
        """See `Family.walk`."""
        from driftar_jax.hosts import orders

        num_tokens = model.images.num_tokens
        return MARWalk.of(
            module=model.host,
            params=params["host"],
            label=condition,
            order=orders.draw(keys, model.images.grid, settings.order),
            counts=cosine_counts(num_tokens, settings.ar_steps),
            branches=2 if settings.guided else 1,
            draft_head=model.draft,
            draft_params=params.get("draft"),
            guidance=guidance_at(
                settings.guidance, num_tokens, settings.ar_steps, settings.guidance_schedule
            ),
        )

    def pieces(self, model: Model, settings: Any, params, condition, index, head):
        """Time backbone and head as the loop runs them, one without the other."""
        if settings.accelerator != "none":
            return {}  # calls differ from step to step
        from driftar_jax.hosts import mar_plain

        return {
            "backbone": (
                functools.partial(mar_plain.backbone_alone, model, settings),
                (params, condition),
            ),
            "head": (
                functools.partial(mar_plain.head_alone, model, settings, head),
                (params, index),
            ),
        }

    def known_encoding(self, model: Model, params: Any, tokens, known, condition) -> Encoding:
        """See `Family.known_encoding`."""
        return model.host.apply({"params": params["host"]}, tokens, known, condition)

    def own_draws(self, model: Model, settings: Any, params: Any, z, noise, **guided) -> jax.Array:
        """See `Family.own_draws`."""
        from driftar_jax.hosts import mar_own

        return mar_own.draws(model, settings, params, z, noise, **guided)


FAMILY = MARFamily()
