"""Sampling of hosts that make whole grids: TransDiff with its own head.

An image's noise is a function of seed, image, token and draw alone, as for every host.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from driftar_jax.drift.head import DriftHead
from driftar_jax.heads import randomness
from driftar_jax.hosts.transdiff import TransDiff, class_table
from driftar_jax.hosts.transdiff_flow import generate
from driftar_jax.model import Parts


def guidance_at(scale: float, groups: int, schedule: str) -> tuple[float, ...]:
    """Scale of each image in a row: `constant`, or rising to s in equal steps (`linear`)."""
    if schedule == "constant":
        return (scale,) * groups
    return tuple(1.0 + (scale - 1.0) * (g + 1) / groups for g in range(groups))


def with_table(parts: Parts, params: dict[str, Any], rows: int) -> dict[str, Any]:
    """`params` with a group `table`, where a table of the classes costs less than `rows` rows.

    What the 1-step form encodes is its class alone: 1,000 images of 10 classes need 11 rows.
    """
    host = parts.host
    if not isinstance(host, TransDiff) or host.groups > 1 or rows <= host.num_classes + 1:
        return params
    return params | {"table": _table(host, params["host"])}


_table = functools.partial(jax.jit, static_argnums=0)(class_table)


def own(
    parts: Parts,
    params: dict[str, Any],
    label: jax.Array,
    keys: jax.Array,
    *,
    steps: Sequence[int],
    guidance: Sequence[float],
    drift_scale: float = 1.0,
    noise_scale: float = 1.0,
) -> jax.Array:
    """The last of the images in a row, `[B, N, C]` float32, by the host's own head.

    Args:
      parts: a TransDiff host and its head.
      params: groups `host` and `head`; a group `table` (of `class_table`) spares the 1-step form
        its backbone call.
      label: `[B]` int32 class, -1 for none.
      keys: `[B]`, of `draws.image_keys`.
      steps: head evaluations of each group.
      guidance: scale of each group.
      drift_scale: factor of the sampler's drift.
      noise_scale: factor of the sampler's noise.
    """
    token_keys = randomness.token_keys(keys, parts.images.num_tokens)
    most = max(steps)

    def noise(draw):
        return randomness.normal(token_keys, draw, parts.images.token_dim)

    grids = generate(
        parts.host,
        parts.head,
        params,
        label,
        noise(0),
        lambda group, step: noise(1 + group * most + step),
        shape=parts.images.grid,
        steps=steps,
        guidance=guidance,
        scale_drift=drift_scale,
        scale_noise=noise_scale,
        table=params.get("table"),
    )
    return grids[-1]


def drift(
    parts: Parts,
    head: DriftHead,
    params: dict[str, Any],
    label: jax.Array,
    keys: jax.Array,
    scale: float,
) -> jax.Array:
    """Whole grids `[B, N, C]` float32 by the one-step decoder, or the means of their prior.

    Args:
      parts: a TransDiff host of one group.
      head: prior and decoder.
      params: group `host`; a group `table` takes its place.
      label: `[B]` int32 class, -1 for none.
      keys: `[B]`, of `draws.image_keys`.
      scale: guidance; read as `head` says.
    """
    rows = jnp.concatenate([label, jnp.full_like(label, -1)]) if head.guided else label
    if "table" in params:
        encoding = jax.tree.map(lambda a: a[rows], params["table"])
    else:
        encoding = parts.host.apply({"params": params["host"]}, rows)
    mu, std = head.starts(encoding, randomness.prior_keys(keys))
    noise_keys = randomness.token_keys(keys, parts.images.num_tokens)
    eps = randomness.normal(noise_keys, 0, parts.images.token_dim)
    return head.tokens(encoding, mu, std, eps, jnp.float32(scale))
