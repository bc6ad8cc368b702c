"""The residual MLP that heads of single tokens share: one token, a time and its condition.

Source: `SimpleMLPAdaLN` of LTH14/mar at fe470ac; the source of `heads/flow_token.py` has the same
network, and differs in what the output means and in the times it is told.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from driftar_jax.layers.dense import dense, layer_norm, sinusoid_features


def lift(x: jax.Array, ndim: int) -> jax.Array:
    """Put axes of size 1 in front until `x` has `ndim` axes."""
    return x.reshape((1,) * (ndim - x.ndim) + x.shape)


class ResBlock(nn.Module):
    """Residual MLP block of the head; the identity when fresh, for its gate starts at zero."""

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, y: jax.Array, output: jax.Array | None = None, *, returned: bool = False
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Map `x [..., width]`, SiLU of the condition `y [..., width]` (may broadcast) -> like `x`.

        Args:
          x, y: as above.
          output: what the MLP gave before, which then does not run.
          returned: whether what the MLP gave is returned as well.
        """
        zeros = nn.initializers.zeros_init()
        ada = dense(3 * self.width, ("embed", "mlp"), self.dtype, zeros, "adaLN_modulation")
        shift, scale, gate = jnp.split(ada(y), 3, axis=-1)
        if output is None:
            h = layer_norm(name="in_ln")(x) * (1 + scale) + shift
            h = dense(self.width, ("embed", "mlp"), self.dtype, name="mlp_0")(h)
            output = dense(self.width, ("mlp", "embed"), self.dtype, name="mlp_2")(nn.silu(h))
        out = x + gate * output
        return (out, output) if returned else out


class TokenMLP(nn.Module):
    """Residual MLP of one noisy token, modulated by a time and the token's condition.

    Rows never meet, so any leading axes work and may broadcast against each other.

    Attributes:
      outputs: numbers predicted per channel; fixed by the subclass.
      token_dim: C, channels of a token.
      width: W, hidden width.
      depth: residual blocks.
      dtype: type of the matrix products; inputs and outputs are float32.
    """

    outputs: ClassVar[int] = 1

    token_dim: int
    width: int
    depth: int
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        """Make the embeddings and blocks; a fresh network predicts 0."""
        small = nn.initializers.normal(0.02)
        zeros = nn.initializers.zeros_init()
        self.time_embed_0 = dense(self.width, (None, "mlp"), self.dtype, small)
        self.time_embed_2 = dense(self.width, ("mlp", "embed"), self.dtype, small)
        self.cond_embed = dense(self.width, ("mlp", "embed"), self.dtype)
        self.input_proj = dense(self.width, (None, "embed"), self.dtype)
        self.res_blocks = [ResBlock(self.width, self.dtype) for _ in range(self.depth)]
        self.final_modulation = dense(2 * self.width, ("embed", "mlp"), self.dtype, zeros)
        self.final_norm = layer_norm(affine=False)
        out = self.outputs * self.token_dim
        self.final_linear = dense(out, ("embed", None), self.dtype, zeros)

    def condition(self, z: jax.Array) -> jax.Array:
        """Map `z [..., D]` -> `c [..., W]`; once per token, the same at every step."""
        return self.cond_embed(z)

    def predict(self, x: jax.Array, t: jax.Array, c: jax.Array) -> jax.Array:
        """Map noisy tokens `x [..., C]`, times `t [...]`, `c [..., W]` -> `[..., outputs * C]`
        float32.

        A scalar `t` embeds the time once for all rows.
        """
        time = self.time_embed_2(nn.silu(self.time_embed_0(sinusoid_features(t))))
        # Leading axes of size 1 let one time serve all tokens and one condition all copies, without
        # a repeat.
        ndim = max(x.ndim, time.ndim, c.ndim)
        # SiLU once for all blocks: each of their modulations starts with it in the published
        # program.
        y = nn.silu(lift(time, ndim) + lift(c, ndim))
        h = lift(self.input_proj(x), ndim)
        for block in self.res_blocks:
            h = block(h, y)
        shift, scale = jnp.split(self.final_modulation(y), 2, axis=-1)
        return self.final_linear(self.final_norm(h) * (1 + scale) + shift).astype(jnp.float32)
