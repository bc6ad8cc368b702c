"""The block of whole-grid decoders: modulated self-attention, cross-attention to `z`, an MLP.

TransDiff's velocity network is built from it, and so is the one-step `GridDecoder`; what modulates
it (time, entropy, guidance) is the caller's.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from driftar_jax.layers.attention import attention_with_entropy
from driftar_jax.layers.blocks import QKV
from driftar_jax.layers.dense import dense, layer_norm, of_batch

# Shift, scale and gate of self-attention, then of the MLP.
CHUNKS = 6


class ModulatedBlock(nn.Module):
    """Pre-norm block whose shifts, scales and gates are a table plus a modulation.

    `x += gate_a * attn(LN1(x) * (1 + scale_a) + shift_a)`; `x += cross(LN2(x), condition)`, neither
    modulated nor gated; `x += gate_m * mlp(LN3(x) * (1 + scale_m) + shift_m)`. Affine norms, exact
    GELU, biases everywhere (the block of TransDiff's `diffdecoder` and of Drift-AR's decoder).

    Attributes:
      width: D; a multiple of `num_heads`.
      num_heads: attention heads H.
      mlp_ratio: hidden width of the MLP over D.
      zero_start: the table starts at zero, so that a fresh block with a zero modulation only
        cross-attends; False draws it with standard deviation D^-0.5, as published.
      attention_dropout: on attention weights, in training.
      projection_dropout: after projections and twice in the MLP, in training.
      dtype: type of the matrix products and of the result; norms and softmax stay float32.
    """

    width: int
    num_heads: int
    mlp_ratio: float = 4.0
    zero_start: bool = False
    attention_dropout: float = 0.0
    projection_dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        """Make the table, norms, both attentions and the MLP.

        Raises:
          ValueError: the heads do not divide the width.
        """
        if self.width % self.num_heads:
            raise ValueError(
                f"num_heads: got {self.num_heads}, allowed divisors of width {self.width}"
            )
        init = nn.initializers.normal(self.width**-0.5)
        init = nn.initializers.zeros_init() if self.zero_start else init
        self.table = self.param(
            "table", nn.with_logical_partitioning(init, (None, "embed")), (CHUNKS, self.width)
        )
        self.norm1 = layer_norm()
        self.qkv = QKV(self.num_heads, self.width // self.num_heads, self.dtype)
        self.proj = dense(self.width, ("heads", "embed"), self.dtype)
        self.norm2 = layer_norm()
        self.cross_q = dense(self.width, ("embed", "heads"), self.dtype)
        self.cross_k = dense(self.width, ("embed", "heads"), self.dtype)
        self.cross_v = dense(self.width, ("embed", "heads"), self.dtype)
        self.cross_proj = dense(self.width, ("heads", "embed"), self.dtype)
        self.norm3 = layer_norm()
        self.fc1 = dense(round(self.width * self.mlp_ratio), ("embed", "mlp"), self.dtype)
        self.fc2 = dense(self.width, ("mlp", "embed"), self.dtype)
        self.dropout = nn.Dropout(self.projection_dropout)

    def read(self, condition: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Compute keys and values `[B, M, H, K]` of a condition `[B, M, width]`, once for many
        calls.
        """
        condition = condition.astype(self.dtype)
        return self._split(self.cross_k(condition)), self._split(self.cross_v(condition))

    def __call__(
        self,
        x: jax.Array,
        condition: tuple[jax.Array, jax.Array],
        modulation: jax.Array,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Run the block on grids that share conditions.

        Args:
          x: `[B * G, N, width]`: G grids for each condition, those of one condition together.
          condition: keys and values of `read`, `[B, M, H, K]`.
          modulation: `[B, 6, width]` float32, added to the table.
          deterministic: False draws dropout from the `dropout` key.

        Returns:
          Like `x`.
        """
        contexts, grids = len(modulation), len(x) // len(modulation)
        # Grids of one condition stand together, so that each modulation is repeated for its
        # neighbours.
        rows = jnp.repeat(self.table[None] + modulation, grids, axis=0)[:, :, None]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (rows[:, i] for i in range(CHUNKS))

        x = of_batch(x)
        h = self.norm1(x) * (1 + scale_a) + shift_a
        h = self._attend(*self.qkv(h), deterministic)
        x = self._add(x, gate_a * self.dropout(self.proj(h), deterministic=deterministic))

        # Queries never meet each other, so the grids of a condition are one long row of them.
        q = self._split(self.cross_q(self.norm2(x).astype(self.dtype)))
        q = q.reshape(contexts, -1, *q.shape[2:])
        h = self.cross_proj(self._attend(q, *condition, deterministic)).reshape(x.shape)
        x = self._add(x, self.dropout(h, deterministic=deterministic))

        h = (self.norm3(x) * (1 + scale_m) + shift_m).astype(self.dtype)
        h = nn.gelu(self.fc1(h), approximate=False)
        h = self.fc2(self.dropout(h, deterministic=deterministic))
        return self._add(x, gate_m * self.dropout(h, deterministic=deterministic))

    def _split(self, x):
        return x.reshape(*x.shape[:2], self.num_heads, -1)

    def _add(self, x, change):
        return x + change.astype(x.dtype)

    def _attend(self, q, k, v, deterministic):
        if deterministic or self.attention_dropout == 0.0:
            out = jax.nn.dot_product_attention(q, k, v)
        else:
            key = self.make_rng("dropout")
            dropout = dict(dropout=self.attention_dropout, dropout_key=key)
            # The fused attention has no dropout on its weights.
            out, _ = attention_with_entropy(q, k, v, **dropout)
        return out.reshape(*out.shape[:2], self.width)
