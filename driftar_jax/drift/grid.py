"""The one-step drift decoder of a whole grid, `x = g(x0, z, E)`: its tokens see each other."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from driftar_jax.drift.networks import SIGMA_MIN, example
from driftar_jax.layers.dense import dense, layer_norm, sinusoid_features
from driftar_jax.layers.modulated import CHUNKS, ModulatedBlock


class GridDecoder(nn.Module):
    """Transformer over the grid with cross-attention to `z` and Entropy-AdaLN.

    The mean entropy modulates every block, each token's own entropy the input of the first. By
    default the start is read twice, as `x0` and standardised, and the output is the start plus a
    residual that is zero when fresh. `residual=False, standardised=False, zero_start=False` is the
    decoder of aSleepyTree/Drift-AR at 04977d1 (`models/drift_decoder.py`).

    Attributes:
      token_dim: C, channels of a token.
      width: D of the decoder.
      depth: blocks.
      num_heads: attention heads; divides `width`.
      mlp_ratio: hidden width of a block's MLP over `width`.
      standardised: reads `(x0 - mu) / max(std, SIGMA_MIN)` beside `x0`.
      residual: adds the start to the output.
      guidance: takes a guidance scale, so that sampling needs no unconditional branch.
      zero_start: gates of the blocks start at zero instead of at random.
      attention_dropout: in training, on attention weights.
      projection_dropout: in training, after projections.
      dtype: type of the matrix products; norms and softmax stay float32.
    """

    token_dim: int
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    standardised: bool = True
    residual: bool = True
    guidance: bool = False
    zero_start: bool = True
    attention_dropout: float = 0.0
    projection_dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    def scales(self, scale: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Return guidance scales `[R]`, one for each grid of `shape` (R, N)."""
        return jnp.broadcast_to(scale, shape[:1])

    def example(self, num_tokens: int, width: int) -> tuple[jax.Array | None, ...]:
        """Return arguments of `__call__` for features of `width`, to make parameters with."""
        return example(self, num_tokens, width)

    @nn.compact
    def __call__(
        self,
        x0: jax.Array,
        mu: jax.Array,
        std: jax.Array,
        z: jax.Array,
        entropy: jax.Array | None,
        alpha: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Decode G grids per context in one evaluation.

        Args:
          x0: `[B, N, G, C]` float32 starts, `mu + std * eps` (Eq. 7).
          mu: `[B, N, C]` float32 prior means.
          std: `[B, N]` float32 standard deviations of the prior.
          z: `[B, M, D']` features; any number of rows, shared by the G draws.
          entropy: `[B, N]` float32 in [0, 1]; None leaves Entropy-AdaLN out.
          alpha: `[B]` float32 guidance scale, 1 is none; given where `guidance` is set.
          deterministic: False draws dropout from the `dropout` key.

        Returns:
          `[B, N, G, C]` float32; fresh parameters return `x0`, or 0 without `residual`.

        Raises:
          ValueError: `alpha` is missing, or given to a decoder without `guidance`.
        """
        if (alpha is not None) != self.guidance:
            got = "none" if alpha is None else "a scale"
            raise ValueError(f"alpha: got {got}, allowed with guidance=True only, and needed there")
        # One modulation per context, shared by its G grids: none of its inputs depends on the draw.
        modulation = self._modulation(len(z), entropy, alpha)

        parts = [x0]
        if self.standardised:
            noise = (x0 - mu[:, :, None]) / jnp.maximum(std, SIGMA_MIN)[..., None, None]
            parts.append(noise)
        h = jnp.concatenate(parts, axis=-1).astype(self.dtype)
        h = dense(self.width, (None, "embed"), self.dtype, name="input")(h)
        h = h + self._table("position", (x0.shape[1], self.width), "position")[None, :, None]
        if entropy is not None:
            # Where each token is uncertain enters once, at the input; how uncertain the grid is as
            # a whole modulates every block.
            scale, shift = jnp.split(self._mlp("spatial", entropy[..., None], 2), 2, axis=-1)
            h = h * (1 + scale)[:, :, None] + shift[:, :, None]
        # G grids of a context side by side, `[B * G, N, D]`: tokens attend within their own grid
        # only.
        h = jnp.moveaxis(h, 2, 1).reshape(-1, x0.shape[1], self.width).astype(self.dtype)

        condition = dense(self.width, ("embed", "mlp"), self.dtype, name="cond_z")(
            z.astype(self.dtype)
        )
        for i in range(self.depth):
            block = ModulatedBlock(
                self.width,
                self.num_heads,
                self.mlp_ratio,
                self.zero_start,
                self.attention_dropout,
                self.projection_dropout,
                self.dtype,
                name=f"block_{i}",
            )
            h = block(h, block.read(condition), modulation, deterministic=deterministic)

        h = layer_norm(name="norm")(h).astype(self.dtype)
        zeros = nn.initializers.zeros_init()
        out = dense(self.token_dim, ("embed", None), self.dtype, zeros, "output")(h)
        out = out.astype(jnp.float32).reshape(len(z), -1, *out.shape[1:])
        out = jnp.moveaxis(out, 1, 2)
        return x0 + out if self.residual else out

    def _modulation(self, batch, entropy, alpha):
        """`[B, 6, D]` float32: what modulates every block alike."""
        init = nn.initializers.zeros_init() if self.zero_start else nn.initializers.normal(0.02)
        level = self._table("level", (CHUNKS, self.width), None, init)
        modulation = jnp.broadcast_to(level[None], (batch, *level.shape))
        if entropy is not None:
            mean = jnp.mean(entropy.astype(jnp.float32), axis=1, keepdims=True)
            modulation += self._mlp("global", mean, CHUNKS).reshape(modulation.shape)
        if alpha is not None:
            modulation += self._guided(alpha).reshape(modulation.shape)
        return modulation

    def _table(self, name, shape, axis, init=None):
        init = nn.initializers.normal(0.02) if init is None else init
        return self.param(name, nn.with_logical_partitioning(init, (axis, "embed")), shape)

    def _mlp(self, name, x, chunks):
        """`[..., 1] -> [..., chunks * D]` float32, zero when fresh."""
        zeros = nn.initializers.zeros_init()
        h = dense(self.width, (None, "embed"), jnp.float32, name=f"{name}_in")(x)
        last = dense(chunks * self.width, ("embed", "mlp"), jnp.float32, zeros, f"{name}_out")
        return last(nn.silu(h))

    def _guided(self, alpha):
        """`[B] -> [B, 6 * D]` float32, zero when fresh.

        The embedding of Drifting (arXiv 2602.04770) without its factor 0.02: that one fits the
        size of class embeddings it is added to, and here a projection of its own follows.
        """
        small, zeros = nn.initializers.normal(0.02), nn.initializers.zeros_init()
        h = sinusoid_features(alpha)
        h = dense(self.width, (None, "embed"), jnp.float32, small, "alpha_in")(h)
        h = dense(self.width, ("embed", "mlp"), jnp.float32, small, "alpha_mid")(nn.silu(h))
        h = nn.RMSNorm(epsilon=1e-6, name="alpha_norm")(h)
        last = dense(CHUNKS * self.width, ("embed", "mlp"), jnp.float32, zeros, "alpha_out")
        return last(nn.silu(h))
