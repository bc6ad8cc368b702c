"""Drift fields of Eq. 8: `V = V_p - V_q`, pure functions on arrays.

The one here, `energy`, is the field of per-token decoders: every context has exactly one real
continuation, and this field is linear in the data distribution, so that one is enough.
"""

import jax
import jax.numpy as jnp


def unit_vectors(v: jax.Array) -> jax.Array:
    """`v / ||v||` over the last axis, 0 at v = 0; float32, finite gradient everywhere."""
    v = v.astype(jnp.float32)
    square = jnp.sum(v * v, axis=-1, keepdims=True)
    # The double where keeps the unused branch's gradient finite: sqrt has none at 0.
    inverse = jax.lax.rsqrt(jnp.where(square > 0, square, 1.0))
    return v * jnp.where(square > 0, inverse, 0.0)


def energy(x: jax.Array, positives: jax.Array, negatives: jax.Array | None = None) -> jax.Array:
    """`V(x) = E_p[u(y - x)] - E_q[u(y' - x)]`, `u(v) = v / ||v||` (Eq. 8, field `energy`).

    Its expectation is minus the gradient of the energy distance between q and p, a strictly proper
    score, so it vanishes everywhere only if p = q; as a loss it is the energy score at alpha = 1
    of EAR (arXiv 2505.07812).

    Args:
      x: `[..., G, C]` floating; where the field is wanted, G draws per context.
      positives: `[..., P, C]` real samples of the same contexts; P = 1 is unbiased.
      negatives: `[..., M, C]` generated samples; `None` takes the other draws of `x`, so that the
        mean runs over G - 1 of them and never over a draw itself.

    Returns:
      `[..., G, C]` float32. Swapping `positives` and `negatives` flips its sign exactly.

    Raises:
      ValueError: fewer than two draws without explicit `negatives`.
    """
    attraction = _mean_unit(x, positives, positives.shape[-2])
    if negatives is not None:
        return attraction - _mean_unit(x, negatives, negatives.shape[-2])
    draws = x.shape[-2]
    if draws < 2:
        raise ValueError(f"drift.draws: got {draws}, allowed 2 or more (draws repel each other)")
    # A draw's own pair is u(0) = 0, so only the divisor has to leave it out.
    return attraction - _mean_unit(x, x, draws - 1)


def _mean_unit(x: jax.Array, points: jax.Array, count: int) -> jax.Array:
    """Sum over `points` of the unit vectors from each row of `x`, divided by `count`."""
    return unit_vectors(points[..., None, :, :] - x[..., :, None, :]).sum(axis=-2) / count


def drift_loss(x: jax.Array, field: jax.Array) -> jax.Array:
    """`|| x - stop_grad(x + V) ||^2` per row (Eq. 8): `[..., C]` twice -> `[...]` float32.

    Its gradient with respect to `x` is `-2 V`; its value is `|V|^2` and no measure of progress.
    """
    x = x.astype(jnp.float32)
    return jnp.sum(jnp.square(x - jax.lax.stop_gradient(x + field)), axis=-1)


def energy_score(x: jax.Array, y: jax.Array) -> jax.Array:
    """Energy score of draws against what really followed; lower is better, in token units.

    `mean_g |x_g - y| - 1/2 mean_{g != h} |x_g - x_h|`.

    Args:
      x: `[..., G, C]` draws, G >= 2.
      y: `[..., C]` the real token.

    Returns:
      `[...]` float32.
    """
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    draws = x.shape[-2]
    to_real = _norm(x - y[..., None, :]).mean(axis=-1)
    between = _norm(x[..., :, None, :] - x[..., None, :, :]).sum(axis=(-1, -2))
    return to_real - 0.5 * between / (draws * (draws - 1))


def _norm(v: jax.Array) -> jax.Array:
    square = jnp.sum(v * v, axis=-1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
