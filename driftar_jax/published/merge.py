"""The published merge of draft and target features, and the published statistics of the entropy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from driftar_jax.heads.early_stop import GAMMA, EntropyTracker, follow, global_threshold


class Merge(NamedTuple):
    """What the published Drift-AR program makes of two feature maps.

    Attributes:
      features: `[B, N, D]`, the draft's at every accepted position, the target's elsewhere.
      accepted: `[B, N]` bool.
      distance: `[B, N]` float32.
      prefix: `[B]` int32, accepted positions before the first rejected one; reported only.
    """

    features: jax.Array
    accepted: jax.Array
    distance: jax.Array
    prefix: jax.Array


def merge(draft_features: jax.Array, target_features: jax.Array, threshold: float) -> Merge:
    """Return Drift-AR's published merge of features `[B, N, D]`.

    Guarantee: none; the result is neither the draft's nor the target's distribution.

    Args:
      draft_features: of the draft, compared at the same position although trained for the next.
      target_features: of the complete target pass.
      threshold: bound on the L2 norm over D, 0.1 as published.

    Source: drift_ar.md section 6, steps 3 to 5.
    """
    gap = (draft_features - target_features).astype(jnp.float32)
    distance = jnp.sqrt(jnp.sum(jnp.square(gap), axis=-1))
    accepted = distance < threshold
    features = jnp.where(accepted[..., None], draft_features, target_features)
    # Positions before the first rejected one, although acceptance above does not stop there.
    prefix = jnp.cumprod(accepted.astype(jnp.int32), axis=1).sum(axis=1)
    return Merge(features, accepted, distance, prefix)


def start() -> EntropyTracker:
    """Return a tracker that has seen nothing."""
    zero = jnp.zeros((), jnp.float32)
    return EntropyTracker(zero, zero, zero, zero)


def update(tracker: EntropyTracker, values: jax.Array, *, gamma: float = GAMMA) -> EntropyTracker:
    """Take in one batch of the target's entropies.

    Args:
      tracker: statistics so far.
      values: any shape, floating in [0, 1], at least one value. One value alone has variance 0.
      gamma: of `context_threshold`; sets where the EMA starts.

    Returns:
      The statistics with them.
    """
    values = values.astype(jnp.float32)
    n = jnp.float32(values.size)
    total = tracker.count + n
    new = n / total
    # The first update needs no case of its own: what stood before has weight 0.
    old = 1.0 - new
    # Means and variances of two sets are merged by their counts (Chan's formula), never by sums of
    # squares, which cancel in float32.
    step = jnp.mean(values) - tracker.mean
    variance = jnp.var(values, ddof=1) if values.size > 1 else jnp.zeros((), jnp.float32)
    merged = EntropyTracker(
        mean=tracker.mean + new * step,
        variance=old * tracker.variance + new * variance + step**2 * old * new,
        count=total,
        ema=follow(tracker.ema, jnp.mean(values)),
    )
    # The average has nothing to follow before the first update; started here, tau_c equals tau_g.
    first = global_threshold(merged) / gamma
    return merged.replace(ema=jnp.where(tracker.count > 0, merged.ema, first))
