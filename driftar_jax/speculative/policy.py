"""When to stop drafting: running statistics of the target's entropy, and the two thresholds.

Source: `EntropyTracker` of aSleepyTree/Drift-AR at 04977d1. There the stop is only reported, from
a tracker that one batch has fed; here it is a pure pytree, so that the statistics of training can
be stored and read by an engine that acts on them.
"""

import flax.struct
import jax
import jax.numpy as jnp

GAMMA = 0.8
DECAY = 0.9
_OF_MEAN, _OF_STD = 0.3, 0.1


@flax.struct.dataclass
class EntropyTracker:
    """Statistics of the target's entropies so far; float32 scalars.

    Attributes:
      mean: of all values.
      variance: pooled over the updates; that of one update is the unbiased one.
      count: how many values; 0 before the first update.
      ema: of the updates' means, from `global_threshold / gamma` at the first one.
    """

    mean: jax.Array
    variance: jax.Array
    count: jax.Array
    ema: jax.Array


def start() -> EntropyTracker:
    """A tracker that has seen nothing."""
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
    step = jnp.mean(values) - tracker.mean
    variance = jnp.var(values, ddof=1) if values.size > 1 else jnp.zeros((), jnp.float32)
    merged = EntropyTracker(
        mean=tracker.mean + new * step,
        variance=old * tracker.variance + new * variance + step**2 * old * new,
        count=total,
        ema=DECAY * tracker.ema + (1.0 - DECAY) * jnp.mean(values),
    )
    first = global_threshold(merged) / gamma
    return merged.replace(ema=jnp.where(tracker.count > 0, merged.ema, first))


def global_threshold(tracker: EntropyTracker) -> jax.Array:
    """`tau_g = 0.3 mean - 0.1 std` of everything seen; float32 scalar."""
    return _OF_MEAN * tracker.mean - _OF_STD * jnp.sqrt(tracker.variance)


def context_threshold(tracker: EntropyTracker, *, gamma: float = GAMMA) -> jax.Array:
    """`tau_c = gamma * EMA` of what was seen lately; float32 scalar."""
    return gamma * tracker.ema


def stop(entropy: jax.Array, tracker: EntropyTracker, *, gamma: float = GAMMA) -> jax.Array:
    """Where drafting should end: mean draft entropy below both thresholds.

    Args:
      entropy: `[..., N]` floating in [0, 1]; entropies of the drafted positions.
      tracker: of the target; one that has seen nothing stops nothing.
      gamma: of `context_threshold`.

    Returns:
      `[...]` bool.
    """
    bound = jnp.minimum(context_threshold(tracker, gamma=gamma), global_threshold(tracker))
    return jnp.mean(entropy.astype(jnp.float32), axis=-1) < bound
