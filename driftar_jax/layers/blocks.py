"""The ViT block of the hosts, and what the backward pass of any block keeps."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from driftar_jax.layers.attention import attention, attention_with_entropy
from driftar_jax.layers.dense import dense, layer_norm, of_batch

# What a block's backward pass keeps of its forward pass; the rest is made again.
REMAT = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def recomputed(remat: str, call, block: nn.Module, *arrays):
    """Return `call(block, *arrays)`, its intermediate values kept for the gradient or made again.

    Args:
      remat: `none` keeps them all, `dots` the matrix products with parameters, `full` the input.
      call: of the block and trees of arrays.
      block: a submodule; its parameters keep their names.
      *arrays: trees of arrays.

    Raises:
      ValueError: an unknown `remat`.
    """
    if remat == "none":
        return call(block, *arrays)
    # The lifted transform of flax and not `jax.checkpoint`: it knows the block's parameters and
    # keys.
    return nn.remat(call, policy=remat_policy(remat))(block, *arrays)


def remat_policy(remat: str):
    """Return the policy of `jax.checkpoint` of that name; raises ValueError for an unknown one."""
    if remat not in REMAT:
        raise ValueError(f"host.remat: got {remat!r}, allowed {' | '.join(['none', *REMAT])}")
    return REMAT[remat]


class QKV(nn.Module):
    """Queries, keys and values from one kernel `[D, 3, H, K]`.

    The head axis is an axis of its own, so that it can be split over devices without cutting
    across the border between queries, keys and values.
    """

    num_heads: int
    head_dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Map `x [B, N, D]` -> q, k, v, each `[B, N, H, K]`."""
        shape = (x.shape[-1], 3, self.num_heads, self.head_dim)

        def xavier_as_one_matrix(key, shape, dtype=jnp.float32):
            # Xavier takes the last two axes for inputs and outputs; those of the split kernel are
            # heads and channels of a head.
            flat = nn.initializers.xavier_uniform()(key, (shape[0], 3 * shape[2] * shape[3]), dtype)
            return flat.reshape(shape)

        kernel_init = nn.with_logical_partitioning(
            xavier_as_one_matrix, ("embed", None, "heads", None)
        )
        bias_init = nn.with_logical_partitioning(
            nn.initializers.zeros_init(), (None, "heads", None)
        )
        kernel = self.param("kernel", kernel_init, shape).astype(self.dtype)
        kernel = nn.with_logical_constraint(kernel, (None, None, "heads", None))
        bias = self.param("bias", bias_init, shape[1:]).astype(self.dtype)
        # In this order of axes the product is one plain matrix product; the split comes after it.
        qkv = jnp.einsum("bnd,dshk->bnshk", x.astype(self.dtype), kernel) + bias[None, None]
        qkv = nn.with_logical_constraint(qkv, ("batch", None, None, "heads", None))
        return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]


def _both(key_mask: jax.Array | None, mask: jax.Array | None) -> jax.Array | None:
    """Keys that may be seen, `[B, N]`, and by which rows, `[N, N]` or `[B, N, N]`: three axes."""
    if mask is not None and mask.ndim == 2:
        mask = mask[None]
    if key_mask is None:
        return mask
    keys = key_mask[:, None, :]
    return keys if mask is None else keys & mask


class TransformerBlock(nn.Module):
    """Pre-norm ViT block: `x += proj(attn(LN(x)))`, `x += fc2(gelu(fc1(LN(x))))`.

    Exact GELU, eps 1e-6, biases everywhere, no q/k norm (timm 0.9.12 `Block`, as MAR uses it).

    Attributes:
      width: D; a multiple of `num_heads`.
      num_heads: attention heads H.
      mlp_ratio: hidden width of the MLP over D.
      attention_dropout: on attention weights, in training.
      projection_dropout: after the attention projection and twice in the MLP, in training.
      entropy_chunk: most query rows of attention weights held at once.
      entropy_floor: `floor` of `attention_with_entropy`.
      attention: `kind` of both attentions.
      dtype: type of the matrix products and of the result; norms and softmax stay float32.
    """

    width: int
    num_heads: int
    mlp_ratio: float = 4.0
    attention_dropout: float = 0.0
    projection_dropout: float = 0.0
    entropy_chunk: int = 256
    entropy_floor: float = 0.0
    attention: str = "auto"
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        """Make norms, projections and MLP.

        Raises:
          ValueError: the heads do not divide the width.
        """
        if self.width % self.num_heads:
            raise ValueError(
                f"num_heads: got {self.num_heads}, allowed divisors of width {self.width}"
            )
        self.norm1 = layer_norm()
        self.qkv = QKV(self.num_heads, self.width // self.num_heads, self.dtype)
        self.proj = dense(self.width, ("heads", "embed"), self.dtype)
        self.norm2 = layer_norm()
        self.fc1 = dense(round(self.width * self.mlp_ratio), ("embed", "mlp"), self.dtype)
        self.fc2 = dense(self.width, ("mlp", "embed"), self.dtype)
        self.dropout = nn.Dropout(self.projection_dropout)

    def __call__(
        self,
        x: jax.Array,
        key_mask: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        first_keys: bool = False,
        deterministic: bool = True,
    ) -> jax.Array:
        """Map `x [B, N, width]` -> like it; mask of `with_entropy`, `first_keys` of `attention`."""
        q, k, v = self.heads(x)
        out, _ = self.attend(
            x,
            q,
            k,
            v,
            _both(key_mask, mask),
            content_start=None,
            first_keys=first_keys,
            deterministic=deterministic,
        )
        return out

    def with_entropy(
        self,
        x: jax.Array,
        key_mask: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        content_start: int = 0,
        deterministic: bool = True,
    ) -> tuple[jax.Array, jax.Array]:
        """Run the same block, and return the entropy of its attention over content keys (Eq. 4).

        Args:
          x: `[B, N, width]`.
          key_mask: `[B, N]` bool, True where a key may be attended; None: all.
          mask: `[N, N]` or `[B, N, N]` bool, True where a row may look at a key; None: everywhere.
          content_start: rows and keys before it are not content.
          deterministic: False draws dropout from the `dropout` key.

        Returns:
          Block output like `x`, and entropy `[B, N - content_start]` float32 in [0, 1].
        """
        q, k, v = self.heads(x)
        out, rows = self.attend(
            x,
            q,
            k,
            v,
            _both(key_mask, mask),
            content_start=content_start,
            deterministic=deterministic,
        )
        return out, rows[:, content_start:]

    def heads(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Map `x [B, N, width]` -> its queries, keys and values, each `[B, N, H, K]`."""
        return self.qkv(self.norm1(of_batch(x)))

    def attend(
        self,
        x: jax.Array,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        mask: jax.Array | None = None,
        *,
        content_start: int | None,
        first_keys: bool = False,
        deterministic: bool = True,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Run all of the block behind `heads`, on keys and values from wherever (a cache).

        Args:
          x: `[B, Q, width]`, the rows that `q` was made of.
          q: `[B, Q, H, K]`.
          k: `[B, N, H, K]`.
          v: `[B, N, H, K]`.
          mask: bool, three axes broadcastable to `[B, Q, N]`, True where a row may look.
          content_start: first content key of the entropy; None asks for no entropy.
          first_keys: as in `attention`.
          deterministic: False draws dropout from the `dropout` key.

        Returns:
          Block output like `x`, and entropy `[B, Q]` float32 in [0, 1] or None.
        """
        dropout = 0.0 if deterministic else self.attention_dropout
        # The fused attention where nothing is asked of its weights: neither an entropy nor a
        # dropout.
        if content_start is None and dropout == 0.0:
            out = attention(q, k, v, mask, kind=self.attention, first_keys=first_keys)
            rows = None
        else:
            out, rows = attention_with_entropy(
                q,
                k,
                v,
                mask,
                content_start=content_start or 0,
                floor=self.entropy_floor,
                chunk=self.entropy_chunk,
                dropout=dropout,
                dropout_key=self.make_rng("dropout") if dropout > 0.0 else None,
                kind=self.attention,
            )
        return self._after_attention(x, out, deterministic), rows

    def _after_attention(self, x, out, deterministic):
        x = of_batch(x)
        out = self.proj(out.reshape(*out.shape[:2], self.width))
        x = x + self.dropout(out, deterministic=deterministic)
        h = nn.gelu(self.fc1(self.norm2(x)), approximate=False)
        h = self.fc2(self.dropout(h, deterministic=deterministic))
        return x + self.dropout(h, deterministic=deterministic)
