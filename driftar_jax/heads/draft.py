"""The draft head: from the last encoding and the tokens revealed since to the next encoding."""

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
