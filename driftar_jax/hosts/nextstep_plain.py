"""NextStep-1's lock-step road: the tokens of all images one after another, over a cache."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from driftar_jax.heads import randomness
from driftar_jax.hosts import causal_walk
from driftar_jax.hosts.base import Head, Model
from driftar_jax.hosts.nextstep import NextStep, guidance_at
from driftar_jax.hosts.nextstep_encodings import by_branch, projected
from driftar_jax.types import Encoding, Trace


def tokens_of(
    model: Model,
    settings: Any,
    params: Mapping[str, Any],
    condition: Any,
    keys: jax.Array,
    head: Head | None,
    trace: bool = False,
) -> jax.Array | Trace:
    """Generate all tokens `[B, N, C]` in raster order; arguments as for `Family.plain`."""
    images, host = model.images, model.host
    token_keys = randomness.token_keys(keys, images.num_tokens)
    prompt = by_branch(model, settings, condition)
    if head is None:
        from driftar_jax.hosts import nextstep_own  # a one-step head samples without it

        one = nextstep_own.sampler(host, model.head, settings, images.num_tokens, params)
        noise = nextstep_own.noise_of(model, settings, token_keys)

        def make(encoding, k):
            return one(encoding.z[:, -1], k, functools.partial(noise, k))
    else:
        schedule = settings.guidance_schedule
        scale = jnp.asarray(guidance_at(settings.guidance, images.num_tokens, schedule))

        def make(encoding, k):
            # The prior and the decoder were trained on projected features.
            encoding = projected(host, params["host"], encoding)
            mu, std = head.starts(encoding, randomness.prior_keys(keys))
            # The first draw of the token's own key: the same noise that speculation and lookahead
            # give it.
            eps = randomness.normal(token_keys[:, k], 0, images.token_dim)
            return head.tokens(encoding, mu, std, eps[:, None], scale[k])[:, 0]

    tokens, entropy = decode(
        host, params["host"], *prompt, images.num_tokens, settings.branches, make
    )
    return causal_walk.traced(tokens, entropy) if trace else tokens


def decode(
    host: NextStep,
    params: Any,
    ids: jax.Array,
    padding: jax.Array,
    sources: jax.Array | None,
    num_tokens: int,
    branches: int,
    make: Callable[[Encoding, jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Read the prompt in one call, then make one cached call for every token but the last.

    Args:
      host: the backbone, with its own `params`.
      ids: `[m * n, P]` int32 prompts that end with the begin-of-image mark, branch after branch.
      padding: `[m * n]` int32, leading positions that hold nothing.
      sources: `[m * n, M, C]` tokens of source images, at the placeholders of `ids`; None: none.
      num_tokens: N.
      branches: m, rows per image.
      make: `(encoding [m * n, 1, ...], token) -> [n, C]`, the head's part.

    Returns:
      tokens `[n, N, C]`, and `E [n, N]` of the conditional rows.
    """
    apply = functools.partial(host.apply, {"params": params})

    def begin():
        # Room for all tokens although the last is never put in: nobody reads an encoding after it.
        cache = host.empty_cache(ids.shape[1] + num_tokens, padding, ids.shape[1])
        return apply(ids, cache, sources, method="prefill")

    return causal_walk.in_turn(
        begin,
        functools.partial(apply, method="advance"),
        make,
        num_tokens=num_tokens,
        branches=branches,
    )
