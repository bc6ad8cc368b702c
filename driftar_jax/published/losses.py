"""Losses and the two phases of the published training program (Eq. 3, 5, 8-10).

Source: `models/drift_ar.py` and `engine_drift.py` of aSleepyTree/Drift-AR at 04977d1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from driftar_jax.drift.laplace import WIDTHS, laplace_loss
from driftar_jax.published.model import DriftAR
from driftar_jax.types import Encoding

# Groups of parameters that learn, by phase. Phi's block never does; its input projection always.
TRAINED = (
    ("host", "prior", "decoder", "draft", "to_features"),
    ("decoder", "to_features"),
)


class Terms(NamedTuple):
    """Float32 scalars, and what was generated on the way.

    Attributes:
      drift: Eq. 8 in feature space, the N positions of an image as its draws.
      regression: Eq. 3.
      entropy: Eq. 5, of the target encoder.
      tokens: `[B, N, C]`.
    """

    drift: jax.Array
    regression: jax.Array
    entropy: jax.Array
    tokens: jax.Array


def regression_loss(draft: jax.Array, z: jax.Array) -> jax.Array:
    """Return the smooth L1 between row r of `draft [B, N, D]` and row r + 1 of `z`, mean of all
    (Eq. 3).
    """
    # The target is detached (Eq. 3): otherwise the backbone would learn to be easy to predict.
    goal = jax.lax.stop_gradient(z[:, 1:])
    return jnp.mean(optax.huber_loss(draft[:, :-1], goal))


def entropy_loss(entropy: jax.Array) -> jax.Array:
    """Return `-(1/N) sum_{r>=2} E_r` of `[B, N]`, mean over images (Eq. 5)."""
    return -jnp.mean(jnp.sum(entropy[:, 1:], axis=1)) / entropy.shape[1]


def terms(
    model: DriftAR,
    params: dict,
    label: jax.Array,
    eps: jax.Array,
    positives: jax.Array,
    negatives: jax.Array,
    *,
    phase_two: bool,
    widths: tuple[float, ...] = WIDTHS,
    dropout_key: jax.Array | None = None,
) -> Terms:
    """Return all three loss terms of one batch, unweighted.

    Args:
      model: the module.
      params: its parameters, phi's block included.
      label: `[B]` integer, -1 where the label was dropped.
      eps: `[B, N, C]` float32, standard normal.
      positives: `[B, P, D]` features of real images of the class.
      negatives: `[B, M, D]` features of generated images.
      phase_two: detaches `z` and `E`, so that the encoder learns nothing. Which parameters are
        trained is `TRAINED`: the regression still reaches the draft model here.
      widths: of the field.
      dropout_key: typed key of a training step; None is deterministic.

    Returns:
      `Terms`; gradients reach phi's input projection, never phi's block.
    """
    params = {**params, "feature_block": jax.lax.stop_gradient(params["feature_block"])}
    how = dict(deterministic=dropout_key is None)
    if dropout_key is not None:
        how["rngs"] = {"dropout": dropout_key}

    def run(method, *args):
        return model.apply({"params": params}, *args, method=method, **how)

    encoding = run("encode", label)
    if phase_two:
        # Phase II of the published program detaches instead of freezing parameters.
        encoding = jax.lax.stop_gradient(encoding)
    draft: Encoding = run("propose", jax.lax.stop_gradient(encoding.z))
    tokens = run("generate", encoding, eps)
    features = run("features", tokens)
    drift, _ = laplace_loss(features, positives, negatives, widths=widths)
    return Terms(
        drift=jnp.mean(drift),
        regression=regression_loss(draft.z, encoding.z),
        entropy=entropy_loss(encoding.entropy),
        tokens=tokens,
    )


def alpha(epoch: jax.Array, epochs: int, *, start: float, freeze_at: float) -> jax.Array:
    """Return the weight of the draft terms, constant inside an epoch: linear to 0 at the freeze
    (Eq. 9).

    Args:
      epoch: integer, any shape, from 0.
      epochs: length of the run.
      start: alpha of epoch 0.
      freeze_at: share of the run after which alpha is 0.

    Returns:
      float32 like `epoch`.
    """
    e = jnp.asarray(epoch, jnp.float32)
    return start * jnp.maximum(1.0 - e / (freeze_at * epochs), 0.0)


def in_phase_two(epoch: jax.Array, epochs: int, *, freeze_at: float) -> jax.Array:
    """Say whether it is strictly after the freeze epoch; the freeze epoch itself is Phase I with
    alpha 0 (Eq. 10).
    """
    return jnp.asarray(epoch, jnp.float32) > freeze_at * epochs


def total(parts: Terms, weight: jax.Array, phase_two: bool) -> jax.Array:
    """Return `alpha (L_reg + L_entropy) + (1 - alpha) L_drift`, or `L_drift` in Phase II (Eq.
    9-10).
    """
    if phase_two:
        return parts.drift
    return weight * (parts.regression + parts.entropy) + (1.0 - weight) * parts.drift
