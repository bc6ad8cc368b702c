"""One signal, two uses: row entropy (Eq. 4), its spread (Eq. 6) and the prior draw (Eq. 7)."""

import jax
import jax.numpy as jnp

# Where the two halves of Eq. 6 are finite numbers of float32, far from its ends.
_CURVED, _STRAIGHT = 0.02, 1e6
# Smallest share of a head's attention on content keys that is still renormalised for Eq. 4.
TINY = 1e-30


def row_entropy(weights: jax.Array, visible: jax.Array, *, floor: float = 0.0) -> jax.Array:
    """Return the entropy of attention rows, relative to the largest each row could have (Eq. 4).

    Args:
      weights: `[B, Q, N]` floating; head-averaged attention over content keys, rows sum to 1.
      visible: `[Q]` or `[B, Q]` integer; n_r, how many content keys row r may see.
      floor: least weight, of masked keys too; the published program has 1e-8, of no use here.

    Returns:
      `[B, Q]` float32 in [0, 1], unitless: 0 is certain (also where n_r <= 1), 1 is uniform.

    Raises:
      ValueError: `weights` is not `[B, Q, N]`, or `visible` does not match its rows.

    Source: DESIGN section 3. The divisor log n_r is ours: with a fixed log N the first rows of a
    causal model would look certain only because they see little.
    """
    if weights.ndim != 3:
        raise ValueError(f"weights: got shape {weights.shape}, allowed [B, Q, N]")
    rows = weights.shape[:2]
    if visible.shape not in (rows, rows[1:]):
        raise ValueError(f"visible: got shape {visible.shape}, allowed {rows[1:]} or {rows}")
    w = weights.astype(jnp.float32)
    if floor > 0.0:
        w = jnp.maximum(w, floor)
    # log(0) has an infinite slope, and 0 * inf makes the gradient of a masked row NaN.
    nats = -jnp.sum(w * jnp.log(jnp.where(w > 0, w, 1.0)), axis=-1)
    n = jnp.broadcast_to(visible, rows)
    relative = nats / jnp.log(jnp.maximum(n, 2).astype(jnp.float32))
    return jnp.where(n > 1, jnp.clip(relative, 0.0, 1.0), 0.0)


def sigma(entropy: jax.Array, *, sigma_max: float, tau: float) -> jax.Array:
    """Return the standard deviation of the decoder's start at a given entropy (Eq. 6).

    Args:
      entropy: any shape, floating, in [0, 1].
      sigma_max: standard deviation at entropy 1, in units of a token.
      tau: curvature; large is close to a straight line.

    Returns:
      Like `entropy`, float32 in [0, sigma_max]; finite for every `tau` above 0.
    """
    e = jnp.clip(entropy.astype(jnp.float32), 0.0, 1.0)
    if _CURVED <= tau <= _STRAIGHT:
        # `expm1`, for `exp(x) - 1` loses its digits where the entropy is small, and sigma with it.
        return sigma_max * jnp.expm1(e / tau) / jnp.expm1(1.0 / tau)
    # The same, divided by exp(1 / tau), which is beyond float32 for small tau. Past these ends the
    # curve is a step at 1, or a straight line, to float32's last bit.
    tau = min(max(tau, 1e-30), 1e8)
    return sigma_max * jnp.exp((e - 1.0) / tau) * (jnp.expm1(-e / tau) / jnp.expm1(-1.0 / tau))


def prior_draw(mu: jax.Array, std: jax.Array, eps: jax.Array) -> jax.Array:
    """Return `x0 = mu + std * eps` (Eq. 7): `mu`, `eps` `[..., C]` and `std` `[...]`, float32."""
    return mu + std[..., None] * eps
