"""The drift of whole grids in a feature space: the loss of every key of phi, summed (Eq. 8).

Source: arXiv 2602.04770, section 4 and appendix A.5.
"""

import jax
import jax.numpy as jnp

from driftar_jax.drift.fields import Weights
from driftar_jax.drift.laplace import BLOCK_BYTES, energy_loss, laplace_loss


def loss(
    field: str,
    draws: dict[str, jax.Array],
    positives: dict[str, jax.Array],
    negatives: dict[str, jax.Array] | None,
    weights: Weights,
    *,
    block_bytes: int = BLOCK_BYTES,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the drift loss of every key, summed; gradients reach `draws` alone.

    Args:
      field: `laplace` or `energy`.
      draws: `{key: [L, G, V, S]}` of L classes.
      positives: `{key: [L, P, V, S]}`.
      negatives: `{key: [L, M, V, S]}`, or None.
      weights: `[L, ...]`, those of a class for all its rows.
      block_bytes: as for `laplace.force`.

    Returns:
      float32 scalar; and `strength` float32 `[nR]` (`[1]` for `energy`): the mean square of each
      width's force before it is rescaled, averaged over the keys. It falls in training.

    Raises:
      ValueError: an unknown field.
    """
    losses = {"laplace": laplace_loss, "energy": energy_loss}
    if field not in losses:
        raise ValueError(f"drift.field: got {field!r}, allowed {' | '.join(losses)}")

    def loss_of(group):
        x, y, n = group
        # Every vector of phi is a row of its own of the field; those of a class share its weights.
        each = jax.tree.map(lambda w: jnp.repeat(w, x.shape[2], axis=0), weights)
        n = None if n is None else _rows(n)
        rows, info = losses[field](_rows(x), _rows(y), n, each, block_bytes=block_bytes)
        return rows.mean(), info.strength

    by_shape = []
    for keys in _alike(draws):
        group = [None if t is None else [t[k] for k in keys] for t in (draws, positives, negatives)]
        # One program for all keys of a shape: most of them are, and each takes long to compile.
        stacked = [None if t is None else jnp.stack(t) for t in group]
        by_shape.append(jax.lax.map(loss_of, tuple(stacked)))
    total = sum(rows.sum() for rows, _ in by_shape)
    strength = jnp.concatenate([each for _, each in by_shape]).mean(axis=0)
    return total, {"strength": strength}


def _alike(keys: dict[str, jax.Array]) -> list[list[str]]:
    """Names of arrays of one shape, together."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, array in keys.items():
        groups.setdefault(array.shape, []).append(name)
    return list(groups.values())


def _rows(x: jax.Array) -> jax.Array:
    """`[L, samples, V, S]` -> `[L V, samples, S]`."""
    x = jnp.swapaxes(x, 1, 2)
    return x.reshape(-1, *x.shape[2:])
