"""Sampling of the published program: plain, guided, and its speculative merge.

Source: `DriftAR.samples` and `models/speculative_decoding.py` of aSleepyTree/Drift-AR at 04977d1.
The merge comes after a complete call of the encoder, so it can only add work; it stands here for
comparison, and the engine of this project saves calls instead.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from driftar_jax.heads import early_stop
from driftar_jax.published.merge import Merge, merge, start, update
from driftar_jax.published.model import DriftAR
from driftar_jax.types import Counts, Encoding

# Bound on the L2 distance of two feature rows.
THRESHOLD = 0.1


class Speculated(NamedTuple):
    """One round of `speculate`.

    Attributes:
      tokens: `[B, N, C]` float32.
      merged: features and acceptance.
      draft_entropy: float32 scalar, mean over the batch.
      tracker: the statistics with this batch's conditional entropies.
      stopped: bool scalar, the early stop; only reported.
    """

    tokens: jax.Array
    merged: Merge
    draft_entropy: jax.Array
    tracker: early_stop.EntropyTracker
    stopped: jax.Array


def samples(
    model: DriftAR, params: dict, label: jax.Array, eps: jax.Array, *, guidance: float = 1.0
) -> jax.Array:
    """Generate one image per label from one encoder and one decoder call.

    Args:
      model: the module.
      params: its parameters; phi's block is not read.
      label: `[B]` integer in -1..num_classes-1.
      eps: `[B, N, C]` float32, standard normal; both branches of a guided image start from it.
      guidance: s of `u + s (c - u)`; 1 leaves the unconditional branch out.

    Returns:
      `[B, N, C]` float32 tokens.
    """
    encoding = _encode(model, params, label, guidance)
    return _generate(model, params, encoding, eps, guidance)


def cost(guidance: float) -> Counts:
    """Return what `samples` spends on an image: guided, each of its two calls sees two rows."""
    rows = 1 if guidance == 1.0 else 2
    return Counts(*map(jnp.int32, (1, 1, 0, rows)))


def speculate(
    model: DriftAR,
    params: dict,
    label: jax.Array,
    eps: jax.Array,
    tracker: early_stop.EntropyTracker,
    *,
    guidance: float = 1.0,
    threshold: float = THRESHOLD,
    gamma: float = early_stop.GAMMA,
) -> Speculated:
    """Do as `samples`, with the draft's features wherever they lie close to the target's.

    Args:
      model, params, label, eps, guidance: as in `samples`.
      tracker: statistics of the target's entropy; the program makes a fresh one for every batch.
      threshold: of `merge`.
      gamma: of the early stop.

    Returns:
      `Speculated`. With guidance the merged features set the mean of the prior alone, and the
      decoder reads the target's own.
    """
    encoding = _encode(model, params, label, guidance)
    target = jax.tree.map(lambda x: x[: len(label)], encoding)
    tracker = update(tracker, target.entropy, gamma=gamma)
    draft = model.apply({"params": params}, target.z, method="propose")
    merged = merge(draft.z, target.z, threshold)
    if guidance == 1.0:
        # Without guidance the merged features replace the target's everywhere, in the decoder as
        # well.
        condition, mean = None, merged.features
    else:
        condition = encoding.z
        mean = jnp.concatenate([merged.features, encoding.z[len(label) :]])
    start = Encoding(mean, encoding.entropy)
    tokens = _generate(model, params, start, eps, guidance, condition)
    spread = jnp.mean(draft.entropy)
    return Speculated(
        tokens, merged, spread, tracker, early_stop.stop(spread[None], tracker, gamma=gamma)
    )


def speculate_in_rounds(
    model: DriftAR, params: dict, label: jax.Array, noises: Iterable[jax.Array], **how
) -> tuple[Speculated, jax.Array]:
    """Do the same work again with new noise until the early stop; the last round counts.

    Args:
      model, params, label, how: as in `speculate`.
      noises: one `[B, N, C]` for each round that may be made; the program allows 4.

    Returns:
      The last round, and the reported acceptance rate: accepted prefixes over all positions.
    """
    tracker, accepted, rounds = start(), 0, 0
    for eps in noises:
        last = speculate(model, params, label, eps, tracker, **how)
        tracker, rounds = last.tracker, rounds + 1
        accepted += jnp.mean(last.merged.prefix.astype(jnp.float32)) / model.num_tokens
        if last.stopped:
            break
    return last, accepted / rounds


def _encode(model, params, label, guidance):
    if guidance != 1.0:
        label = jnp.concatenate([label, jnp.full_like(label, -1)])
    return model.apply({"params": params}, label, method="encode")


def _generate(model, params, encoding, eps, guidance, condition=None):
    if guidance != 1.0:
        eps = jnp.concatenate([eps, eps])
    out = model.apply({"params": params}, encoding, eps, condition, method="generate")
    if guidance == 1.0:
        return out
    conditional, unconditional = jnp.split(out, 2)
    return unconditional + guidance * (conditional - unconditional)
