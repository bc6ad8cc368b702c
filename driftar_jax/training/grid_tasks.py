"""A host that makes whole grids, trained with its own flow head (TransDiff).

Source: `forward` of `models/transdiff.py` and `models/transdiff_mrar.py` of TransDiff/TransDiff at
0081b3a. Its images in a row come from a published list; here they are drawn at random from the last
ones of the class that training has met.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from driftar_jax import assembly
from driftar_jax.drift import bank as bank_lib
from driftar_jax.heads import flow
from driftar_jax.hosts.transdiff_flow import flow_terms
from driftar_jax.training.tokens import tokenise

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class GridHostTask:
    """The 1-step form: every image on its own.

    Attributes:
      parts: host and head.
      copies: times and noises of each image in a step; they share its encoding.
      label_drop: share of the images that learn without a label.
      mirror: of latents; pixels were mirrored when they were read.
    """

    parts: assembly.Parts
    copies: int
    label_drop: float
    mirror: bool = False
    freeze_step: None = None
    tracked: tuple[str, ...] = ()

    def init(self, key: jax.Array) -> Params:
        host, net = self.parts.host, self.parts.head
        label = jnp.zeros((1,), jnp.int32)
        x = jnp.zeros((1, net.num_tokens, net.token_dim))
        z = jnp.zeros((1, host.group_rows, host.width))
        head = net.init(jax.random.fold_in(key, 1), x, label, z)["params"]
        return {"host": host.init(key, label)["params"], "head": head}

    def trainable(self, frozen: bool) -> tuple[str, ...]:
        return ("host", "head")

    def tokens(self, batch: dict, key: jax.Array) -> jax.Array:
        """`[B, N, C]` of a batch."""
        return tokenise(batch, key, patch_size=self.parts.images.patch_size, mirror=self.mirror)

    def loss(self, params, batch, key, step, frozen):
        grids = self.tokens(batch, key)[:, None]
        return self.terms(params, batch["label"], grids, jnp.ones(len(grids)), key)

    def terms(self, params, label, grids, weight, key):
        """Loss and metrics of `grids [B, groups, N, C]`, images that count `weight [B]`."""
        key_drop, key_time, key_noise, key_dropout = jax.random.split(key, 4)
        batch, groups = grids.shape[:2]
        dropped = jax.random.bernoulli(key_drop, self.label_drop, (batch,))
        rows = (groups, self.copies * batch)
        losses, encoding = flow_terms(
            self.parts.host,
            self.parts.head,
            params,
            jnp.where(dropped, -1, label),
            grids,
            flow.times(jax.random.normal(key_time, rows)),
            jax.random.normal(key_noise, (*rows, *grids.shape[2:])),
            shape=self.parts.images.grid,
            dropout_key=key_dropout,
        )
        count = jnp.maximum(jnp.sum(weight), 1.0)
        share = jnp.tile(weight, self.copies)[None] / (count * self.copies * groups)
        metrics = {"entropy_mean": jnp.sum(encoding.entropy.mean(axis=1) * weight) / count}
        return jnp.sum(losses * share), metrics


@dataclasses.dataclass(frozen=True)
class RowHostTask(GridHostTask):
    """MRAR: images of one class in a row, each decoded under those before it.

    A bank on the device holds the last images of every class; a class that has not shown enough of
    them yet is left out. The bank is neither averaged nor decayed.

    Attributes:
      bank_size: images kept of every class, at least as many as stand in a row.
      bank_dtype: `bfloat16` or `float32`.
    """

    bank_size: int = 16
    bank_dtype: str = "float32"

    def init_extra(self, key: jax.Array) -> dict[str, Any]:
        images = self.parts.images
        shape = (images.num_tokens, images.token_dim)
        return {"bank": bank_lib.empty(images.num_classes, self.bank_size, shape, self.bank_dtype)}

    def update_extra(self, extra, batch, key):
        return {"bank": bank_lib.push(extra["bank"], batch["label"], self.tokens(batch, key))}

    def loss(self, params, batch, key, step, frozen, extra):
        key_bank, key_terms = jax.random.split(jax.random.fold_in(key, 1))
        label, groups = batch["label"], self.parts.host.groups
        grids, present = bank_lib.draw(extra["bank"], key_bank, label, groups)
        weight = present.all(axis=1).astype(jnp.float32)
        loss, metrics = self.terms(params, label, grids, weight, key_terms)
        return loss, metrics | {"bank_present": weight.mean()}


def build(config: Any, parts: assembly.Parts) -> GridHostTask:
    """The task of a checked config of task `host` with host.name `transdiff`.

    Raises:
      ValueError: the bank is larger than its limit.
    """
    images = parts.images
    own = dict(copies=config.head.copies, label_drop=config.host.label_drop)
    if config.host.form == "one_step":
        return GridHostTask(parts, mirror=config.data.flip, **own)
    bank_lib.check_size(
        images.num_classes,
        config.bank.size,
        (images.num_tokens, images.token_dim),
        config.bank.dtype,
        limit_gib=config.bank.limit_gib,
    )
    bank = dict(bank_size=config.bank.size, bank_dtype=config.bank.dtype)
    return RowHostTask(parts, mirror=config.data.flip, **own, **bank)
