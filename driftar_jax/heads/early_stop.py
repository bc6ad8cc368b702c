"""When to stop drafting: running statistics of the target's entropy, and the two thresholds.

Source: `EntropyTracker` of aSleepyTree/Drift-AR at 04977d1. There the stop is only reported, from
a tracker that one batch has fed; here it is a pure pytree. A checkpoint holds the statistics of
its training, and the engine goes on from them: one average for each image, the same thresholds.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

GAMMA = 0.8

DECAY = 0.9

_OF_MEAN, _OF_STD = 0.3, 0.1

# In the place of a number: the statistics of the checkpoint.
TRAINED = -1.0


@flax.struct.dataclass
class EntropyTracker:
    """Statistics of the target's entropies so far; float32 scalars.

    Attributes:
      mean: of all values.
      variance: pooled over the updates; that of one update is the unbiased one.
      count: how many values; 0 before the first update.
      ema: of the updates' means, from `global_threshold / gamma` at the first one; or one for each
        image, `[B]`.
    """

    mean: jax.Array
    variance: jax.Array
    count: jax.Array
    ema: jax.Array


def of_training(mean: float, square: float) -> EntropyTracker:
    """Return the tracker of a checkpoint, from the running means of E and of E squared.

    They weigh the last hundred batches or so, so that the mean is the average of what was seen
    lately as well. The count says only that there is something.
    """
    # Two running means of slightly different batches: their difference may be negative by rounding.
    variance = max(square - mean**2, 0.0)
    return EntropyTracker(*map(np.float32, (mean, variance, 1, mean)))


def of_threshold(tau_g: float, *, gamma: float = GAMMA) -> EntropyTracker:
    """Return a tracker whose `global_threshold` is `tau_g`, as after its first update; 0 never
    stops.
    """
    # Solves tau_g = 0.3 mean - 0.1 std for a standard deviation of 0; the average starts where
    # tau_c is tau_g as well, so that the fixed threshold rules from the first round on.
    return EntropyTracker(*map(np.float32, (tau_g / _OF_MEAN, 0, 1, tau_g / gamma)))


def follow(ema: jax.Array, mean_entropy: jax.Array) -> jax.Array:
    """Return the average after one more mean entropy of the target; both scalars, or `[B]`."""
    return DECAY * ema + (1.0 - DECAY) * mean_entropy


def global_threshold(tracker: EntropyTracker) -> jax.Array:
    """Return `tau_g = 0.3 mean - 0.1 std` of everything seen; float32 scalar."""
    return _OF_MEAN * tracker.mean - _OF_STD * jnp.sqrt(tracker.variance)


def context_threshold(tracker: EntropyTracker, *, gamma: float = GAMMA) -> jax.Array:
    """Return `tau_c = gamma * EMA` of what was seen lately; float32, one for each average."""
    return gamma * tracker.ema


def stop(entropy: jax.Array, tracker: EntropyTracker, *, gamma: float = GAMMA) -> jax.Array:
    """Say where drafting should end: mean draft entropy below both thresholds.

    Args:
      entropy: `[..., N]` floating in [0, 1]; entropies of the drafted positions.
      tracker: of the target, its average a scalar or `[...]`; one that has seen nothing stops
        nothing.
      gamma: of `context_threshold`.

    Returns:
      `[...]` bool.
    """
    bound = jnp.minimum(context_threshold(tracker, gamma=gamma), global_threshold(tracker))
    return jnp.mean(entropy.astype(jnp.float32), axis=-1) < bound
