"""The draft head on a host that makes one token after another: it sees the last few tokens.

A draft has to be cheap beside one cached call, so it reads the last encoding and a window of tokens
that reaches back to the one above, not the whole image.
"""

from typing import Any

import jax
import jax.numpy as jnp

from driftar_jax.types import Encoding


def size(parts: Any) -> int:
    """Return W, the tokens of the window: in raster order they reach the token above."""
    return parts.images.grid[1] + 1


def around(parts: Any, tokens: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the tokens before each step.

    Args:
      parts: modules and sizes of a run.
      tokens: `[B, N, C]`.
      step: `[B, K]` int32 in 1..N; the window of step k ends with token k - 1.

    Returns:
      tokens `[B, K, W, C]`, and which of them there are, bool `[B, K, W]`.
    """
    # The W tokens that end with token k - 1; before the first token of the image there is nothing.
    index = step[..., None] - size(parts) + jnp.arange(size(parts))[None, None]
    flat = jnp.clip(index, 0, tokens.shape[1] - 1).reshape(step.shape[0], -1, 1)
    before = jnp.take_along_axis(tokens, flat, axis=1)
    return before.reshape(*index.shape, -1), index >= 0


def predict(parts: Any, params: Any, last: Encoding, tokens: jax.Array, known: jax.Array):
    """Return the encoding behind each window.

    Args:
      parts: modules of a run; `params` of its draft head.
      last: encoding before the window's last token, `z [R, 1, D]`.
      tokens, known: `[R, 1, W, C]` and `[R, 1, W]` of `around`.

    Returns:
      `Encoding` with `z [R, 1, D]`, `entropy [R, 1]`.
    """
    # Every place of the window gets the same last encoding; only the last place's answer is read.
    spread = jax.tree.map(lambda a: jnp.repeat(a, known.shape[2], axis=1), last)
    encodings = parts.draft.apply({"params": params}, spread, tokens[:, 0], known[:, 0])
    return jax.tree.map(lambda a: a[:, -1:], encodings)


def zeros(parts: Any) -> tuple[Encoding, jax.Array, jax.Array]:
    """Return arguments of the draft head, to make its parameters."""
    shape = (1, size(parts))
    last = Encoding(z=jnp.zeros((*shape, parts.host.width)), entropy=jnp.zeros(shape))
    return last, jnp.zeros((*shape, parts.images.token_dim)), jnp.zeros(shape, bool)
