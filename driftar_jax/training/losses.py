"""Loss terms of Drift-AR: the draft's (Eq. 3, 5), the two-phase weights (Eq. 9-10)."""

import jax
import jax.numpy as jnp
import optax

from driftar_jax.types import Encoding

ENTROPY_LOSSES = ("match", "maximize", "none")


def at_least_one(weight: jax.Array) -> jax.Array:
    """Sum of weights to divide by: rows may all be left out."""
    return jnp.maximum(jnp.sum(weight), 1.0)


def draft_regression(
    draft: Encoding, target: Encoding, weight: jax.Array, total: jax.Array | None = None
) -> jax.Array:
    """Smooth L1 between drafted and real next features (Eq. 3); the target is detached.

    Args:
      draft: the draft head's prediction, `z [B, N, D]`.
      target: the backbone's own encoding of the same contexts.
      weight: `[B]` float32, 0 where an image has no next context.
      total: what the sum is divided by; None: the sum of these weights, at least 1.

    Returns:
      float32 scalar, mean over weighted images, tokens and channels.
    """
    goal = jax.lax.stop_gradient(target.z).astype(jnp.float32)
    # Huber at 1 is SmoothL1 at beta 1.
    per_image = optax.huber_loss(draft.z.astype(jnp.float32), goal).mean(axis=(1, 2))
    return jnp.sum(per_image * weight) / (at_least_one(weight) if total is None else total)


def draft_entropy(
    draft: Encoding,
    target: Encoding,
    weight: jax.Array,
    kind: str,
    total: jax.Array | None = None,
) -> jax.Array:
    """Compute the entropy term of the draft head; never of the target.

    Args:
      draft: `entropy [B, N]` of the draft head's own attention.
      target: `entropy [B, N]` of the backbone, detached here.
      weight: `[B]` float32.
      kind: `match`: `mean |E_draft - E_target|`; `maximize`: Eq. 5, `-(1/R) sum_{r>=2} E_draft`;
        `none`: 0.
      total: as in `draft_regression`.

    Returns:
      float32 scalar.

    Raises:
      ValueError: an unknown `kind`.
    """
    if kind == "match":
        per_image = jnp.abs(draft.entropy - jax.lax.stop_gradient(target.entropy)).mean(axis=1)
    elif kind == "maximize":
        # Eq. 5 leaves the first row out of the sum and not out of the divisor R.
        per_image = -draft.entropy[:, 1:].sum(axis=1) / draft.entropy.shape[1]
    elif kind == "none":
        return jnp.zeros((), jnp.float32)
    else:
        raise ValueError(f"loss.entropy_loss: got {kind!r}, allowed {ENTROPY_LOSSES}")
    return jnp.sum(per_image * weight) / (at_least_one(weight) if total is None else total)


def prior_divergence(draft, target, weight: jax.Array, total: jax.Array | None = None) -> jax.Array:
    """Measure how far the drafted prior is from the target's: `KL(p || q)` per channel.

    It bounds what the gaussian rule rejects (Pinsker): features may differ where the prior does not
    look, and a little where it does look is much when sigma is small.

    Args:
      draft, target: (mu `[B, N, C]`, sigma `[B, N]`) of q and p; p is detached.
      weight: `[B, N]` float32.
      total: as in `draft_regression`.

    Returns:
      float32 scalar in nats, mean over weighted tokens and channels.
    """
    (mu_q, std_q), (mu_p, std_p) = draft, jax.lax.stop_gradient(target)
    # A sigma of 0 (entropy 0) would make the divergence infinite for any difference of means.
    std_q, std_p = jnp.maximum(std_q, 1e-3), jnp.maximum(std_p, 1e-3)
    ratio = std_p / std_q
    far = jnp.mean(jnp.square(mu_q - mu_p), axis=-1) / jnp.square(std_q)
    # KL of isotropic normals, per channel: the C channels share one standard deviation.
    nats = 0.5 * (jnp.square(ratio) - 1.0 + far) - jnp.log(ratio)
    return jnp.sum(nats * weight) / (at_least_one(weight) if total is None else total)


def freeze_step(steps: int, freeze_at: float) -> int:
    """Return the first step of Phase II: from here on only the decoder learns (Eq. 10)."""
    return round(freeze_at * steps)


def repulsion(step: jax.Array, steps: int, *, start: float, schedule: str) -> float | jax.Array:
    """Return the weight of the field's repulsive part: `start`, or from it to 1 at the last step.

    Args:
      step: int32 scalar, traced or not.
      steps: length of the run.
      start: the weight at step 0.
      schedule: `constant`, or `annealed`: in a line.

    Returns:
      `start` itself, or a float32 scalar.

    Raises:
      ValueError: an unknown `schedule`.
    """
    if schedule == "constant":
        return start
    if schedule != "annealed":
        raise ValueError(f"drift.repulsion_schedule: got {schedule!r}, allowed constant | annealed")
    done = jnp.asarray(step, jnp.float32) / max(steps - 1, 1)
    return start + (1.0 - start) * jnp.minimum(done, 1.0)


def alpha(step: jax.Array, steps: int, *, start: float, freeze_at: float) -> jax.Array:
    """Return the weight of the draft terms: `start` at step 0, linearly to 0 at the freeze (Eq. 9).

    Args:
      step: int32 scalar, traced or not.
      steps: length of the run.
      start: alpha at step 0, in [0, 1].
      freeze_at: share of the run after which alpha is 0, in (0, 1].

    Returns:
      float32 scalar in [0, start].
    """
    # A run of few steps may freeze at step 0, which would divide by zero.
    end = max(freeze_step(steps, freeze_at), 1)
    return start * jnp.clip(1.0 - jnp.asarray(step, jnp.float32) / end, 0.0, 1.0)
