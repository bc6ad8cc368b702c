"""CSpD's acceptance test as released, for comparison and parity; the engine's rules are our own.

Source: CSpD (arXiv 2411.11925), MarkXCloud/CSpD at d91f721. It tests the last reverse step of two
MAR models that share their noise.
"""

import jax
import jax.numpy as jnp

from driftar_jax.heads.diffusion import LastStep


def factor(draft: LastStep, target: LastStep) -> jax.Array:
    """Return F `[...]`: what the earlier reverse steps contribute, as released.

    The paper's product is the inverse; test and residual use this form consistently.
    """
    return jnp.exp(_log_factor(draft, target))


def _log_factor(draft: LastStep, target: LastStep) -> jax.Array:
    return jnp.sum(target.half_log_variance - draft.half_log_variance, axis=-1)


def probability(
    x: jax.Array, draft: LastStep, target: LastStep, inner_temperature: float
) -> jax.Array:
    """Return CSpD's acceptance `a [...]` of drafted tokens; not capped at 1.

    Guarantee: none. A draft equals its own mean by construction (the last step adds no noise), so
    this measures the distance of two deterministic results, in units of `inner_temperature * std`.

    Args:
      x: `[..., C]` drafted tokens.
      draft, target: of the same tokens.
      inner_temperature: tau, 42 as published.

    Source: mar.md section 9.1.
    """
    far = lambda s: jnp.square((x - s.mean) / (inner_temperature * s.std))  # noqa: E731
    scale = jnp.log(draft.std) - jnp.log(target.std)
    # The log ratio of two diagonal normals, summed over the channels of a token.
    exponent = jnp.sum(scale + 0.5 * (far(draft) - far(target)), axis=-1)
    # One exponential: a factor that overflows times a ratio that underflows would be no number.
    return jnp.exp(_log_factor(draft, target) + exponent)


def density(x: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Return `[...]` density of `x [..., C]` under a diagonal normal; may underflow, as
    published.
    """
    return jnp.exp(_log_density(x, mean, std))


def _log_density(x: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    log = -0.5 * jnp.square((x - mean) / std) - jnp.log(std) - 0.5 * jnp.log(2 * jnp.pi)
    return jnp.sum(log, axis=-1)


def residual_ratio(y: jax.Array, draft: LastStep, target: LastStep) -> jax.Array:
    """Return `max(p - q/F, 0) / p`, `[...]`: the chance of a residual proposal `y [..., C]` of the
    target.
    """
    # As logs: with stds of 0.006 a density of some ten channels is beyond float32.
    p = _log_density(y, target.mean, target.std)
    q = _log_density(y, draft.mean, draft.std)
    return jnp.maximum(-jnp.expm1(q - _log_factor(draft, target) - p), 0.0)


def correct(
    x: jax.Array,
    draft: LastStep,
    target: LastStep,
    u: jax.Array,
    noise: jax.Array,
    noise_u: jax.Array,
    inner_temperature: float,
) -> tuple[jax.Array, jax.Array]:
    """Return CSpD's test with its corrections, as released.

    Every round proposes for all rows while any row, accepted drafts included, has no accepted
    proposal; a row keeps its latest one, and a row without any becomes zero.

    Args:
      x: `[n, C]` drafted tokens.
      draft, target: of the same tokens.
      u: `[n]` uniform draws of the test.
      noise, noise_u: `[R, n, C]` and `[R, n]` draws of at most R rounds (100 as published).
      inner_temperature: tau of the test; the residual has none.

    Returns:
      accepted `[n]` bool, and tokens `[n, C]` after the test.
    """
    accepted = probability(x, draft, target, inner_temperature) > u

    def propose(state, draws):
        proposals, has = state
        eps, chance = draws
        y = target.mean + target.std * eps
        passes = (chance < residual_ratio(y, draft, target)) & ~has.all()
        return (jnp.where(passes[:, None], y, proposals), has | passes), None

    start = jnp.zeros_like(x), jnp.zeros(x.shape[:1], bool)
    (proposals, _), _ = jax.lax.scan(propose, start, (noise, noise_u))
    return accepted, jnp.where(accepted[:, None], x, proposals)
