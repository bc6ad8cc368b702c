"""Which drafted tokens stand: acceptance rules as pure functions, each with its guarantee.

The rules of the engine (`gaussian`, `coupled`, `feature`) judge one token at a time; which tokens
form a group, and what happens after a failure, is the engine's business. `merge` is what the
published program does instead; another published test stands in `cspd.py`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Standard deviations that differ by no more than this (in the logarithm) count as equal: float32
# entropies differ by as much for the same context, and thinning would wait for ages.
AGREE = 1e-6

# Below this a density in float32 is a ratio of rounding errors.
LEAST_STD = 1e-6

# Residual proposals drawn at a time.
PROPOSALS = 8


class Normal(NamedTuple):
    """`N(mean, std^2 I)` per token: `mean [..., C]` and `std [...]`, float32, `std` above 0."""

    mean: jax.Array
    std: jax.Array

    def floored(self) -> "Normal":
        """Return it with `std` at least `LEAST_STD`."""
        return Normal(self.mean, jnp.maximum(self.std, LEAST_STD))


class Verdict(NamedTuple):
    """`accepted [...]` bool, and `x0 [..., C]`: the draft where accepted, else the correction."""

    accepted: jax.Array
    x0: jax.Array


def log_ratio(x: jax.Array, target: Normal, draft: Normal) -> jax.Array:
    """Return `log p(x) - log q(x)`, `[...]` float32, of isotropic normals in C dimensions.

    Args:
      x: `[..., C]` float32.
      target, draft: p and q.
    """
    channels = x.shape[-1]
    p = jnp.sum(jnp.square(x - target.mean), axis=-1) / jnp.square(target.std)
    q = jnp.sum(jnp.square(x - draft.mean), axis=-1) / jnp.square(draft.std)
    # Densities are compared in logarithms: with tens of channels their ratio leaves the range of
    # float32 long before it stops to matter. The factor (2 pi)^(-C/2) is the same on both sides.
    return channels * (jnp.log(draft.std) - jnp.log(target.std)) + 0.5 * (q - p)


def accept_probability(x: jax.Array, target: Normal, draft: Normal) -> jax.Array:
    """Return `min(1, p(x) / q(x))`, `[...]` float32; arguments as `log_ratio`."""
    # The minimum is taken before `exp`, which would overflow to infinity where p is far above q.
    return jnp.exp(jnp.minimum(log_ratio(x, target, draft), 0.0))


def accepts(x0: jax.Array, draft: Normal, target: Normal, keys: jax.Array) -> jax.Array:
    """Return the verdicts of `gaussian` without the corrections: `[...]` bool, same arguments."""
    # Number 0 of a token's verdict keys decides, number 1 corrects: the engine asks for verdicts
    # and for corrections in two places and both must see the same decision.
    u = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, 0), dtype=jnp.float32))(
        keys.reshape(-1)
    )
    chance = accept_probability(x0, target.floored(), draft.floored())
    return u.reshape(chance.shape) < chance


def gaussian(x0: jax.Array, draft: Normal, target: Normal, keys: jax.Array) -> Verdict:
    """Accept a drafted start with `min(1, p/q)`; on rejection draw from the residual.

    Guarantee: if `x0` was drawn from `draft`, independently of `keys`, then the returned `x0` is
    distributed exactly as `target`, whatever the two are, and it is the drafted one as often as any
    rule with that guarantee can manage (a maximal coupling). The residual `(p - q)+` is drawn by
    reflection at the plane half-way between the means where the standard deviations agree, by
    thinning proposals of `target` with `1 - q/p` otherwise. Thinning goes on until every rejected
    token has its correction: a bound on its rounds would bend the distribution. It ends with
    probability one; a token needs `1/TV(p, q)` proposals on average but is rejected with
    probability `TV(p, q)` only, so that there is about one proposal per token judged.

    Limits: float32, and standard deviations within `AGREE` of each other count as equal.

    Args:
      x0: `[..., C]` float32 drafted starts.
      draft, target: q and p of the same tokens.
      keys: `[...]` typed keys, one per token; the answer is a function of them.

    Returns:
      `Verdict`. Tokens with numbers that are not finite are not accepted and not corrected.

    Source: maximal coupling of Leviathan et al. (arXiv 2211.17192) for densities; reflection: Bou-
    Rabee, Eberle and Zimmer (arXiv 1805.00452), section 2.
    """
    shape, channels = x0.shape[:-1], x0.shape[-1]
    # Tokens are one flat axis from here on: how they form groups and images does not matter to the
    # law of any of them.
    accepted = accepts(x0, draft, target, keys).reshape(-1)
    x = x0.reshape(-1, channels)
    q, p = (Normal(n.mean.reshape(-1, channels), n.std.reshape(-1)) for n in (draft, target))
    q, p = q.floored(), p.floored()
    key_thin = jax.vmap(jax.random.fold_in, (0, None))(keys.reshape(-1), 1)
    # Reflection is exact for equal standard deviations only. Thinning is exact always, but its rate
    # is the total variation between the two, which goes to 0 as they agree.
    same = jnp.abs(jnp.log(p.std) - jnp.log(q.std)) <= AGREE
    # A NaN would keep the thinning loop waiting forever, for no proposal ever passes.
    finite = jnp.isfinite(log_ratio(x, p, q))
    thinned = _thinned(p, q, key_thin, ~accepted & ~same & finite)
    corrected = jnp.where(same[:, None], _reflected(x, p, q), thinned)
    # Both corrections are computed for all tokens, and the wrong ones thrown away: a branch per
    # token does not exist inside one program.
    chosen = jnp.where((accepted | ~finite)[:, None], x, corrected)
    return Verdict(accepted.reshape(shape), chosen.reshape(x0.shape))


def _reflected(x: jax.Array, target: Normal, draft: Normal) -> jax.Array:
    """The draft's noise mirrored along the line between the means, put on the target."""
    line = target.mean - draft.mean
    length = jnp.sqrt(jnp.sum(jnp.square(line), axis=-1, keepdims=True))
    # Equal means have no line between them: e is then 0 and nothing is mirrored, instead of 0 / 0.
    e = line / jnp.maximum(length, jnp.finfo(jnp.float32).tiny)
    eps = (x - draft.mean) / draft.std[:, None]
    # A mirrored standard normal is standard normal, and the mirror maps the region where q > p onto
    # the one where p > q: exactly the mass that the residual (p - q)+ needs.
    mirrored = eps - 2 * jnp.sum(eps * e, axis=-1, keepdims=True) * e
    return target.mean + target.std[:, None] * mirrored


def _thinned(target: Normal, draft: Normal, keys: jax.Array, wanted: jax.Array) -> jax.Array:
    """Draws of `(p - q)+ / TV(p, q)`, `[n, C]`, for the rows `wanted [n]`; zeros elsewhere."""
    count, channels = target.mean.shape
    wide = Normal(target.mean[:, None], target.std[:, None])
    other = Normal(draft.mean[:, None], draft.std[:, None])

    def propose(key):
        # Several proposals at once, since a turn of the loop costs more than eight draws; the first
        # that passes is taken, as if they had been drawn one by one.
        key_noise, key_u = jax.random.split(key)
        noise = jax.random.normal(key_noise, (PROPOSALS, channels), dtype=jnp.float32)
        return noise, jax.random.uniform(key_u, (PROPOSALS,), dtype=jnp.float32)

    def body(state):
        turn, draws, waiting = state
        # Each token has its own key, folded with the turn: its correction does not depend on how
        # long its neighbours in the batch make the loop run.
        noise, u = jax.vmap(propose)(jax.vmap(jax.random.fold_in, (0, None))(keys, turn))
        y = wide.mean + wide.std[..., None] * noise
        # Accept a proposal with 1 - min(1, q/p). As `1 - exp` it would be rounded to 0 where the
        # two are nearly equal, and no proposal would ever pass.
        passed = u < -jnp.expm1(jnp.minimum(-log_ratio(y, wide, other), 0.0))
        first = jnp.argmax(passed, axis=1)
        done = waiting & passed.any(axis=1)
        y = jnp.take_along_axis(y, first[:, None, None], axis=1)[:, 0]
        return turn + 1, jnp.where(done[:, None], y, draws), waiting & ~done

    start = jnp.int32(0), jnp.zeros((count, channels), jnp.float32), wanted
    return jax.lax.while_loop(lambda s: s[2].any(), body, start)[1]


def coupled(x_draft: jax.Array, x_target: jax.Array, std: jax.Array, delta: float) -> jax.Array:
    """Accept a token while draft and target, made from the same noise, stay close.

    Guarantee: `||x_draft - x_target|| <= delta * std` for every accepted token: no token of an
    image is further from what the target makes of the same context and noise. With `delta = 0` only
    equal tokens pass, and the image is that of plain AR decoding of the seed.

    Args:
      x_draft, x_target: `[..., C]` float32 tokens of one context, from the same noise.
      std: `[...]` float32 standard deviation of the target's start.
      delta: in standard deviations, at least 0; the norm is over the C channels, not their mean.

    Returns:
      `[...]` bool.
    """
    distance = jnp.sqrt(jnp.sum(jnp.square(x_draft - x_target), axis=-1))
    return distance <= delta * std


def feature(z_draft: jax.Array, z_target: jax.Array, delta: float) -> jax.Array:
    """Judge by the published idea: accept where draft and target features are close.

    Guarantee: none. Features are no measure of what the decoder makes of them.

    Args:
      z_draft, z_target: `[..., D]` features of one token.
      delta: bound on the root mean square over the D channels. The published threshold is on the
        norm, 0.1 at D of about a thousand, which hardly anything passes; with one over sqrt(D)
        the number means the same at every width.

    Returns:
      `[...]` bool.

    Source: drift_ar.md section 6, step 3.
    """
    gap = (z_draft - z_target).astype(jnp.float32)
    return jnp.sqrt(jnp.mean(jnp.square(gap), axis=-1)) < delta
