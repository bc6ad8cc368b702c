"""A host that makes whole grids, trained with its own flow head (TransDiff).

Source: `forward` of `models/transdiff.py` and `models/transdiff_mrar.py` of TransDiff/TransDiff at
0081b3a. Its images in a row come from a published list; here they are drawn at random from the last
ones of the class that training has met.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from driftar_jax import model
from driftar_jax.drift import bank as bank_lib
from driftar_jax.heads import flow
from driftar_jax.hosts.transdiff_flow import flow_terms
from driftar_jax.training import losses
from driftar_jax.training.drawn import Drawn
from driftar_jax.training.tokens import tokenise

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class GridHostTask(Drawn):
    """Train the 1-step form: every image on its own.

    Attributes:
      parts: host and head.
      copies: times and noises of each image in a step; they share its encoding.
      label_drop: share of the images that learn without a label.
      mirror: of latents; pixels were mirrored when they were read.
    """

    parts: model.Model
    copies: int
    label_drop: float
    mirror: bool = False
    freeze_step: None = None
    tracked: tuple[str, ...] = ()

    def init(self, key: jax.Array) -> Params:
        """See `Task.init`."""
        host, net = self.parts.host, self.parts.head
        label = jnp.zeros((1,), jnp.int32)
        x = jnp.zeros((1, net.num_tokens, net.token_dim))
        z = jnp.zeros((1, host.group_rows, host.width))
        head = net.init(jax.random.fold_in(key, 1), x, label, z)["params"]
        return {"host": host.init(key, label)["params"], "head": head}

    def trainable(self, frozen: bool) -> tuple[str, ...]:
        """See `Task.trainable`: host and velocity network."""
        return ("host", "head")

    def tokens(self, batch: dict, key: jax.Array) -> jax.Array:
        """Return `[B, N, C]` of a batch."""
        return tokenise(batch, key, patch_size=self.parts.images.patch_size, mirror=self.mirror)

    def draw(self, batch, key, frozen):
        """See `Drawn.draw`: every image is a row of one grid."""
        grids = self.tokens(batch, key)[:, None]
        return self.drawn(batch["label"], grids, jnp.ones(len(grids)), key)

    def drawn(self, label, grids, weight, key):
        """Return rows and totals of `grids [B, groups, N, C]`, images that count `weight [B]`."""
        key_drop, key_time, key_noise, _ = jax.random.split(self.own_key(key), 4)
        batch, groups = grids.shape[:2]
        dropped = jax.random.bernoulli(key_drop, jnp.float32(self.label_drop), (batch,))
        # Copy after copy of the batch in every group, as `flow_terms` takes them; rows have images
        # in front.
        shape = (groups, self.copies * batch)
        rows = {
            "label": jnp.where(dropped, -1, label),
            "grids": grids,
            "weight": weight,
            "u": _by_image(
                flow.times(jax.random.normal(key_time, shape, dtype=jnp.float32)), batch
            ),
            "noise": _by_image(
                jax.random.normal(key_noise, (*shape, *grids.shape[2:]), dtype=jnp.float32), batch
            ),
        }
        return rows, {"images": losses.at_least_one(weight)}

    def own_key(self, key: jax.Array) -> jax.Array:
        """Return the key of all draws but those of the bank."""
        return key

    def terms(self, params, rows, totals, key, step, frozen):
        """See `Drawn.terms`: the flow loss of every grid, over the images that count."""
        grids, weight, count = rows["grids"], rows["weight"], totals["images"]
        key_dropout = jax.random.split(self.own_key(key), 4)[3]
        losses, encoding = flow_terms(
            self.parts.host,
            self.parts.head,
            params,
            rows["label"],
            grids,
            _by_group(rows["u"]),
            _by_group(rows["noise"]),
            shape=self.parts.images.grid,
            dropout_key=key_dropout,
        )
        # A weighted mean over images, copies and groups, with the denominator of the whole batch.
        share = jnp.tile(weight, self.copies)[None] / (count * self.copies * grids.shape[1])
        metrics = {"entropy_mean": jnp.sum(encoding.entropy.mean(axis=1) * weight) / count}
        return jnp.sum(losses * share), metrics


def _by_image(a: jax.Array, batch: int) -> jax.Array:
    """`[groups, copies * B, ...]` -> `[B, groups, copies, ...]`."""
    return jnp.moveaxis(a.reshape(a.shape[0], -1, batch, *a.shape[2:]), 2, 0)


def _by_group(a: jax.Array) -> jax.Array:
    """`[B, groups, copies, ...]` -> `[groups, copies * B, ...]`."""
    a = jnp.moveaxis(a, 0, 2)
    return a.reshape(a.shape[0], -1, *a.shape[3:])


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
        """See `step.OwnsExtra`: an empty bank of grids by class."""
        images = self.parts.images
        shape = (images.num_tokens, images.token_dim)
        return {"bank": bank_lib.empty(images.num_classes, self.bank_size, shape, self.bank_dtype)}

    def update_extra(self, extra, batch, key):
        """See `step.OwnsExtra`: the batch's grids pushed into the bank."""
        return {"bank": bank_lib.push(extra["bank"], batch["label"], self.tokens(batch, key))}

    def draw(self, batch, key, frozen, extra):
        """See `Drawn.draw`: rows of grids of one class, from the bank."""
        # Half of a key of its own; `own_key` is the other half, so that the bank's draws and the
        # rest never share random numbers.
        key_bank = jax.random.split(jax.random.fold_in(key, 1))[0]
        label, groups = batch["label"], self.parts.host.groups
        grids, present = bank_lib.draw(extra["bank"], key_bank, label, groups)
        # A class that lacks images would be trained on the zeros of empty slots: its whole row
        # counts nothing.
        return self.drawn(label, grids, present.all(axis=1).astype(jnp.float32), key)

    def own_key(self, key):
        """Return the key of what is no draw from the bank."""
        return jax.random.split(jax.random.fold_in(key, 1))[1]

    def terms(self, params, rows, totals, key, step, frozen):
        """See `Drawn.terms`; `bank_present` is the share of rows that count."""
        loss, metrics = super().terms(params, rows, totals, key, step, frozen)
        return loss, metrics | {"bank_present": rows["weight"].mean()}


def build(config: Any, parts: model.Model, space: None = None) -> GridHostTask:
    """Return the task of a checked config of task `host` on a host of whole grids.

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
