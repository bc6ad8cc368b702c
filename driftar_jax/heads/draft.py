"""The draft head: from the last encoding and the tokens revealed since to the next encoding.

On a host that makes one token after another a draft has to be cheap beside one cached call, so it
reads the last encoding and a window of tokens that reaches back to the one above, not the whole
image.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from driftar_jax.layers.blocks import TransformerBlock
from driftar_jax.layers.dense import dense, layer_norm
from driftar_jax.types import Encoding


class DraftHead(nn.Module):
    """Small transformer over the positions; a fresh one predicts that nothing changes.

    Its entropy is Eq. 4 of its own last block, so that it can be held against the backbone's.
    """

    token_dim: int
    features: int
    width: int
    depth: int
    num_heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, last: Encoding, tokens: jax.Array, known: jax.Array) -> Encoding:
        """Predict the encoding of the context `(tokens, known)`.

        Args:
          last: encoding of an earlier context of the same images, `z [B, N, features]`.
          tokens: `[B, N, C]` floating; read where `known` is True.
          known: `[B, N]` bool, the tokens given in the context to predict.

        Returns:
          `Encoding` with `z [B, N, features]` float32.
        """
        num_tokens = tokens.shape[1]
        position = self.param(
            "position",
            nn.with_logical_partitioning(nn.initializers.normal(0.02), ("position", "embed")),
            (num_tokens, self.width),
        )
        flag = known[..., None].astype(self.dtype)
        # An unknown token may hold anything; 0 * NaN would pass.
        tokens = jnp.where(known[..., None], tokens.astype(self.dtype), 0)
        inputs = jnp.concatenate([tokens, flag], axis=-1)
        h = dense(self.width, ("embed", None), self.dtype, name="features_in")(
            last.z.astype(self.dtype)
        )
        # Two kernels, not one over both: D + C + 1 rows would not divide over a mesh axis.
        h += dense(self.width, (None, "embed"), self.dtype, name="tokens_in")(inputs)
        h += position[None].astype(self.dtype)
        blocks = [
            TransformerBlock(self.width, self.num_heads, dtype=self.dtype, name=f"block_{i}")
            for i in range(self.depth)
        ]
        for block in blocks[:-1]:
            h = block(h)
        # All positions are content here: there are no buffer or text rows in the draft head.
        h, entropy = blocks[-1].with_entropy(h)
        zeros = nn.initializers.zeros_init()
        change = dense(self.features, (None, "embed"), self.dtype, zeros, "features_out")(
            layer_norm(name="norm")(h)
        )
        # A residual on the last features: neighbouring contexts have encodings that differ by
        # little.
        return Encoding(z=last.z.astype(jnp.float32) + change.astype(jnp.float32), entropy=entropy)


def window_size(parts: Any) -> int:
    """Return W, the tokens of the window: in raster order they reach the token above."""
    return parts.images.grid[1] + 1


def window(parts: Any, tokens: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the tokens before each step.

    Args:
      parts: modules and sizes of a run.
      tokens: `[B, N, C]`.
      step: `[B, K]` int32 in 1..N; the window of step k ends with token k - 1.

    Returns:
      tokens `[B, K, W, C]`, and which of them there are, bool `[B, K, W]`.
    """
    # The W tokens that end with token k - 1; before the first token of the image there is nothing.
    index = step[..., None] - window_size(parts) + jnp.arange(window_size(parts))[None, None]
    flat = jnp.clip(index, 0, tokens.shape[1] - 1).reshape(step.shape[0], -1, 1)
    before = jnp.take_along_axis(tokens, flat, axis=1)
    return before.reshape(*index.shape, -1), index >= 0


def after_window(parts: Any, params: Any, last: Encoding, tokens: jax.Array, known: jax.Array):
    """Return the encoding behind each window.

    Args:
      parts: modules of a run; `params` of its draft head.
      last: encoding before the window's last token, `z [R, 1, D]`.
      tokens, known: `[R, 1, W, C]` and `[R, 1, W]` of `window`.

    Returns:
      `Encoding` with `z [R, 1, D]`, `entropy [R, 1]`.
    """
    # Every place of the window gets the same last encoding; only the last place's answer is read.
    spread = jax.tree.map(lambda a: jnp.repeat(a, known.shape[2], axis=1), last)
    encodings = parts.draft.apply({"params": params}, spread, tokens[:, 0], known[:, 0])
    return jax.tree.map(lambda a: a[:, -1:], encodings)


def window_zeros(parts: Any) -> tuple[Encoding, jax.Array, jax.Array]:
    """Return arguments of the draft head, to make its parameters."""
    shape = (1, window_size(parts))
    last = Encoding(z=jnp.zeros((*shape, parts.host.width)), entropy=jnp.zeros(shape))
    return last, jnp.zeros((*shape, parts.images.token_dim)), jnp.zeros(shape, bool)
