"""Drift fields of Eq. 8: `V = V_p - V_q`, pure functions on arrays.

The first here, `energy`, is the field of per-token decoders: every context has exactly one real
continuation, and this field is linear in the data distribution, so that one is enough. With
weights it serves whole grids too, beside `laplace`. The other, `matched`, is a rival's: it reads no
samples of the data, but what two denoisers make of the draws.
"""

import chex
import flax.struct
import jax
import jax.numpy as jnp

# Squared distances below it are rounding of equal points, whose unit vector is 0.
_COINCIDENT = 1e-8
# Below this a denoiser gives draws back as they were, and their distance divides by nothing.
_UNMOVED = 1e-4


def unit_vectors(v: jax.Array) -> jax.Array:
    """Return `v / ||v||` over the last axis, 0 at v = 0; float32, finite gradient everywhere."""
    v = v.astype(jnp.float32)
    square = jnp.sum(v * v, axis=-1, keepdims=True)
    # The double where keeps the unused branch's gradient finite: sqrt has none at 0.
    inverse = jax.lax.rsqrt(jnp.where(square > 0, square, 1.0))
    return v * jnp.where(square > 0, inverse, 0.0)


@flax.struct.dataclass
class Weights:
    """Weights of the samples of a call; None: 1 each, and all of them present.

    Attributes:
      draws: `[..., G]` float32.
      positives: `[..., P]` float32.
      negatives: `[..., M]` float32.
      positives_present: `[..., P]` bool; False where a sample is missing and in nothing.
      negatives_present: `[..., M]` bool.
    """

    draws: jax.Array | None = None
    positives: jax.Array | None = None
    negatives: jax.Array | None = None
    positives_present: jax.Array | None = None
    negatives_present: jax.Array | None = None


def squared_distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return `|x|^2 + |y|^2 - 2 x.y`: `[..., G, C]`, `[..., T, C]` -> `[..., G, T]` float32.

    Exact float32 products; rounding may leave a small number of either sign where x = y.
    """
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    # The difference of large squares: products rounded to TF32 or bfloat16 would leave distances
    # between near points that are mostly error.
    product = jnp.einsum("...gc,...tc->...gt", x, y, precision="highest")
    xx, yy = jnp.sum(x * x, axis=-1), jnp.sum(y * y, axis=-1)
    return xx[..., :, None] + yy[..., None, :] - 2.0 * product


def energy(
    x: jax.Array,
    positives: jax.Array,
    negatives: jax.Array | None = None,
    weights: Weights | None = None,
    *,
    repulsion: float | jax.Array = 1.0,
) -> jax.Array:
    """Return `V(x) = E_p[u(y - x)] - rho E_q[u(y' - x)]`, `u(v) = v / ||v||` (Eq. 8, `energy`).

    With rho = 1 its expectation is minus the gradient of the energy distance between q and p, a
    strictly proper score, so it vanishes everywhere only if p = q; as a loss it is the energy score
    at alpha = 1 of EAR (arXiv 2505.07812). Another rho is not proper (docs/theory.md, 10).

    Args:
      x: `[..., G, C]` floating; where the field is wanted, G draws per context.
      positives: `[..., P, C]` real samples of the same contexts; P = 1 is unbiased.
      negatives: `[..., M, C]` generated samples; `None` takes the other draws of `x`, so that the
        mean runs over G - 1 of them and never over a draw itself.
      weights: with them E_p and E_q are weighted means, the draws join the `negatives`, and no
        array is larger than `[..., G, samples]`. Give the draws weight 0 to leave them out.
      repulsion: rho, a number or a traced scalar; not with `weights`.

    Returns:
      `[..., G, C]` float32. Swapping `positives` and `negatives` flips its sign exactly at rho = 1
      (with `weights`: up to rounding, and where the draws weigh 0).

    Raises:
      ValueError: fewer than two draws without explicit `negatives`.
      AssertionError: samples of other contexts or of another width.
    """
    _same_contexts(x, positives, *(() if negatives is None else (negatives,)))
    if weights is not None:
        return _weighted_energy(x, positives, negatives, weights)
    attraction = _mean_unit(x, positives, positives.shape[-2])
    if negatives is not None:
        return attraction - repulsion * _mean_unit(x, negatives, negatives.shape[-2])
    draws = x.shape[-2]
    if draws < 2:
        raise ValueError(f"drift.draws: got {draws}, allowed 2 or more (draws repel each other)")
    # A draw's own pair is u(0) = 0, so only the divisor has to leave it out.
    return attraction - repulsion * _mean_unit(x, x, draws - 1)


def guided_energy(
    x: jax.Array,
    positives: jax.Array,
    unconditional: jax.Array,
    scale: jax.Array,
    *,
    repulsion: float | jax.Array = 1.0,
) -> jax.Array:
    """Return `V_{p,q} + (s - 1) V_{p,u}`: the energy field with guidance trained into it.

    `u` are unconditional samples of the same contexts, so a draw is pulled towards the data with
    weight s and pushed from `u` with s - 1, as guidance would at sampling time; s = 1 is `energy`.

    Args:
      x: `[..., G, C]` draws, G >= 2.
      positives: `[..., P, C]`; `unconditional`: `[..., M, C]`.
      scale: `[...]` float32, s >= 1, one per context.
      repulsion: as for `energy`, of the draws among themselves.

    Returns:
      `[..., G, C]` float32.

    Raises:
      AssertionError: as for `energy`; a scale that is not one per context.
    """
    # Positives pull in both terms and add up to s; the draws push with 1 and `u` with s - 1.
    # rho weighs the draws among themselves alone: the push away from `u` is guidance and stays
    # whole.
    chex.assert_shape(scale, x.shape[:-2])
    more = (scale - 1.0)[..., None, None] * energy(x, positives, unconditional)
    return energy(x, positives, repulsion=repulsion) + more


def matched(x: jax.Array, real: jax.Array, fake: jax.Array) -> jax.Array:
    """Return `V(x) = (real - fake) / mean |x - real|`, the field of distribution matching.

    `real` and `fake` are what two denoisers take for the clean tokens of the same noisy draws: one
    knows the distribution that is wanted, the other that of the draws. With exact ones the sum of V
    without its divisor over the draws of a context is, in expectation and up to a factor of the
    time, minus the gradient of KL(q_t || p_t) between the noised distributions, so it vanishes if
    q = p.

    Args:
      x: `[..., G, C]` floating; G draws per context, noised at one time per context.
      real, fake: like `x`.

    Returns:
      `[..., G, C]` float32.

    Raises:
      AssertionError: shapes differ.

    Source: DMD (arXiv 2311.18828, Eq. 7-8): there a sample is an image and divides by its own
    distance. A token has few numbers, whose distance may be near 0 by chance, so all draws of a
    context share theirs here.
    """
    chex.assert_equal_shape([x, real, fake])
    x, real, fake = (a.astype(jnp.float32) for a in (x, real, fake))
    far = jnp.abs(x - real).mean(axis=(-2, -1), keepdims=True)
    return (real - fake) / jnp.maximum(far, _UNMOVED)


def _same_contexts(*samples: jax.Array) -> None:
    """Samples of one context would broadcast to all the others, and teach them its token."""
    chex.assert_equal_shape_prefix(samples, samples[0].ndim - 2)
    chex.assert_equal_shape_suffix(samples, 1)


def _mean_unit(x: jax.Array, points: jax.Array, count: int) -> jax.Array:
    """Sum over `points` of the unit vectors from each row of `x`, divided by `count`."""
    return unit_vectors(points[..., None, :, :] - x[..., :, None, :]).sum(axis=-2) / count


def _weighted_energy(x, positives, negatives, weights: Weights) -> jax.Array:
    """The same field with weights, by matrix products instead of a vector for every pair."""
    draws = x.shape[-2]
    # A draw does not repel itself: its own column is left out of sum and weight.
    others = 1.0 - jnp.eye(draws, dtype=jnp.float32).reshape((1,) * (x.ndim - 2) + (draws, draws))
    own = _masses(x, weights.draws, None)[..., None, :] * others
    pull, pulled = _unit_sum(x, positives, weights.positives, weights.positives_present)
    push, pushed = _directed(x, x, own), jnp.sum(own, axis=-1)
    if negatives is not None:
        more, mass = _unit_sum(x, negatives, weights.negatives, weights.negatives_present)
        push, pushed = push + more, pushed + mass
    attraction = pull / jnp.where(pulled > 0, pulled, 1.0)[..., None]
    # Where nothing has weight the sums are 0, and so is the field: the divisor only avoids 0 / 0.
    return attraction - push / jnp.where(pushed > 0, pushed, 1.0)[..., None]


def _unit_sum(x, points, weight, present) -> tuple[jax.Array, jax.Array]:
    """Weighted sum of the unit vectors from `x` to `points`, and the weight `[..., 1]` in it."""
    mass = _masses(points, weight, present)
    every = jnp.broadcast_to(mass[..., None, :], (*x.shape[:-1], points.shape[-2]))
    return _directed(x, points, every), jnp.sum(mass, axis=-1, keepdims=True)


def _masses(points, weight, present) -> jax.Array:
    """Weight of each of `points [..., T, C]`, 0 where it is not present."""
    mass = jnp.ones(points.shape[:-1], jnp.float32) if weight is None else weight
    return mass if present is None else jnp.where(present, mass, 0.0)


def _directed(x, points, mass) -> jax.Array:
    """`sum_t mass_gt u(points_t - x_g)`: `[..., G, C]` of `mass [..., G, T]`."""
    square = squared_distances(x, points)
    # Rounding gives equal points a distance that is not quite 0, and its inverse would be enormous.
    near = square <= _COINCIDENT
    pair = mass * jnp.where(near, 0.0, jax.lax.rsqrt(jnp.where(near, 1.0, square)))
    moved = jnp.einsum("...gt,...tc->...gc", pair, points.astype(jnp.float32), precision="highest")
    # sum_t m (y_t - x) / |y_t - x| as two products, without a `[G, T, C]` array of differences.
    return moved - jnp.sum(pair, axis=-1)[..., None] * x.astype(jnp.float32)


def drift_loss(x: jax.Array, field: jax.Array) -> jax.Array:
    """Return `|| x - stop_grad(x + V) ||^2` per row (Eq. 8): `[..., C]` twice -> `[...]` float32.

    Its gradient with respect to `x` is `-2 V`; its value is `|V|^2` and no measure of progress.
    """
    x = x.astype(jnp.float32)
    # The target moves along with the sample and is no function of the parameters: what is left of
    # the gradient is the field.
    return jnp.sum(jnp.square(x - jax.lax.stop_gradient(x + field)), axis=-1)


def energy_score(x: jax.Array, y: jax.Array) -> jax.Array:
    """Score draws against what really followed, by energy; lower is better, in token units.

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
    # A draw's distance to itself is 0 in the sum and left out of the number of pairs.
    return to_real - 0.5 * between / (draws * (draws - 1))


def _norm(v: jax.Array) -> jax.Array:
    square = jnp.sum(v * v, axis=-1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
