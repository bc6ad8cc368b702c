"""The ViT block of the hosts, and attention that returns its own row entropy (Eq. 4).

The entropy layer pays for one softmax and reads both its output and its entropy from it; query
chunks keep `[B, H, Q, N]` bounded, so a long sequence never holds its whole attention map.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec

from driftar_jax import entropy

# Smallest share of a head's attention on content keys that is still renormalised.
_TINY = 1e-30
# Bytes of attention weights that a CPU's cache still holds.
_CACHED = 8 * 2**20


# What a block's backward pass keeps of its forward pass; the rest is made again.
REMAT = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def recomputed(remat: str, call, block: nn.Module, *arrays):
    """`call(block, *arrays)`, its intermediate values kept for the gradient or made again.

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
    return nn.remat(call, policy=remat_policy(remat))(block, *arrays)


def remat_policy(remat: str):
    """The policy of `jax.checkpoint` of that name; raises ValueError for an unknown one."""
    if remat not in REMAT:
        raise ValueError(f"host.remat: got {remat!r}, allowed {' | '.join(['none', *REMAT])}")
    return REMAT[remat]


def of_batch(x: jax.Array, axis: int = 0) -> jax.Array:
    """`x` as it is; on several devices the rows of `axis` are split over them and nothing else.

    For what enters a stack: random numbers, residual streams. Left alone, XLA splits channels as
    the kernels are split, and every device computes all rows.
    """
    axes = [None] * x.ndim
    axes[axis] = "batch"
    return nn.with_logical_constraint(x, tuple(axes))


# Parameters lie in pieces along these axes, and are whole where they are used.
_GATHERED = ("embed", "table")


class FlatDense(nn.Dense):
    """`nn.Dense` on rows: leading axes are flattened first.

    With several leading axes XLA's CPU gradients of kernel and bias take about twice as long.

    Attributes:
      axes: logical axes of the kernel where it is used, `(in, out)`; the second is the result's.
    """

    axes: tuple[str | None, str | None] = (None, None)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """`[..., in]` -> `[..., features]`."""
        if not nn.get_logical_axis_rules():
            rows = super().__call__(inputs.reshape(-1, inputs.shape[-1]))
            return rows.reshape(*inputs.shape[:-1], self.features)
        # On several devices the axis that is split over them has to stay an axis of its own.
        free = [PartitionSpec.UNCONSTRAINED] * (inputs.ndim - 1)
        return nn.with_logical_constraint(super().__call__(inputs), (*free, self.axes[1]))


def dense(
    features: int,
    axes: tuple[str | None, str | None],
    dtype: jnp.dtype,
    init: nn.initializers.Initializer | None = None,
    name: str | None = None,
    bias: bool = True,
) -> FlatDense:
    """Linear layer with logical axis names on its `[in, out]` kernel; Xavier uniform by default."""
    init = nn.initializers.xavier_uniform() if init is None else init
    used = tuple(None if axis in _GATHERED else axis for axis in axes)

    def gathered(*arrays, **types):
        inputs, kernel, bias = nn.dtypes.promote_dtype(*arrays, **types)
        return inputs, nn.with_logical_constraint(kernel, used), bias

    return FlatDense(
        features,
        use_bias=bias,
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(init, axes),
        promote_dtype=gathered,
        name=name,
        axes=used,
    )


def layer_norm(affine: bool = True, name: str | None = None) -> nn.LayerNorm:
    """Float32 layer norm, eps 1e-6, with the two-pass variance of the official programs."""
    return nn.LayerNorm(
        epsilon=1e-6,
        dtype=jnp.float32,
        use_scale=affine,
        use_bias=affine,
        use_fast_variance=False,
        name=name,
    )


def attention_with_entropy(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None = None,
    *,
    content_start: int = 0,
    content: jax.Array | None = None,
    floor: float = 0.0,
    chunk: int = 256,
    dropout: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Softmax attention and the entropy of its rows over content keys, from one softmax (Eq. 4).

    Each head's row is renormalised over the content keys it may see, then heads are averaged
    (DESIGN section 3: the order matters). Dropout acts on the output, never on the entropy.

    Args:
      q: `[B, Q, H, K]` floating.
      k: `[B, N, h, K]`; h divides H, and consecutive query heads share a key head.
      v: `[B, N, h, K]`.
      mask: bool, three axes broadcastable to `[B, Q, N]`, True where a row may look; None: all.
      content_start: first content key; keys before it (class, text, buffer) stay out of `E`.
      content: `[B, N]` bool, True where a key is content, for content that is no suffix; the keys
        before `content_start` still stay out. None: all.
      floor: least sum of a head's row before it is renormalised, and least averaged weight in
        the entropy; published checkpoints of Drift-AR have 1e-8.
      chunk: most query rows whose `[B, H, rows, N]` is held at once.
      dropout: probability of dropping an attention weight.
      dropout_key: typed key, needed where `dropout` > 0.

    Returns:
      Output `[B, Q, H, K]` in the type of `q`, and entropy `[B, Q]` float32 in [0, 1] of every
      row. A row that may see nothing gives a finite output and entropy 0.

    Raises:
      ValueError: `content_start` leaves no content key, or `chunk` < 1.
    """
    batch, rows, keys = q.shape[0], q.shape[1], k.shape[1]
    if not 0 <= content_start < keys:
        raise ValueError(f"content_start: got {content_start}, allowed 0..{keys - 1}")
    if chunk < 1:
        raise ValueError(f"chunk: got {chunk}, allowed at least 1")
    if k.shape[2] != q.shape[2]:
        k, v = (jnp.repeat(a, q.shape[2] // k.shape[2], axis=2) for a in (k, v))
    if mask is None:
        mask = jnp.ones((1, 1, keys), bool)
    mask = jnp.broadcast_to(mask, (batch, mask.shape[1], keys))

    def attend(q_rows, mask_rows, key):
        logits = jnp.einsum("bqhk,bnhk->bhqn", q_rows, k, preferred_element_type=jnp.float32)
        logits = logits * q.shape[-1] ** -0.5
        # A finite floor: -inf throughout a row that sees nothing would make it NaN.
        logits = jnp.where(mask_rows[:, None], logits, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(logits, axis=-1)
        seen = mask_rows if content is None else mask_rows & content[:, None]
        share = jnp.where(seen[:, None], weights, 0.0)[..., content_start:]
        share = share / jnp.maximum(jnp.sum(share, axis=-1, keepdims=True), max(floor, _TINY))
        visible = jnp.sum(seen[..., content_start:], axis=-1)
        visible = jnp.broadcast_to(visible, (batch, q_rows.shape[1]))
        row_entropy = entropy.row_entropy(jnp.mean(share, axis=1), visible, floor=floor)
        if dropout > 0.0:
            kept = jax.random.bernoulli(key, 1.0 - dropout, weights.shape)
            weights = jnp.where(kept, weights / (1.0 - dropout), 0.0)
        return jnp.einsum("bhqn,bnhk->bqhk", weights.astype(v.dtype), v), row_entropy

    num_chunks = -(-rows // chunk)
    if num_chunks <= 1:
        return attend(q, mask, dropout_key)

    # Equal chunks: 320 rows in chunks of at most 256 become 2 x 160, not 256 + 64 padded to 512.
    size = -(-rows // num_chunks)
    pad = num_chunks * size - rows

    def split(x):
        x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, num_chunks, size, *x.shape[2:]), 1, 0)

    per_row = mask.shape[1] != 1
    chunks = (split(q), split(mask) if per_row else None, jnp.arange(num_chunks))

    # Without the checkpoint the backward pass would keep every chunk's weights at once.
    @jax.checkpoint
    def one(chunk_inputs):
        q_rows, mask_rows, index = chunk_inputs
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
        return attend(q_rows, mask_rows if per_row else mask, key)

    out, row_entropy = jax.lax.map(one, chunks)
    out = jnp.moveaxis(out, 0, 1).reshape(batch, num_chunks * size, *q.shape[2:])
    row_entropy = jnp.moveaxis(row_entropy, 0, 1).reshape(batch, num_chunks * size)
    return out[:, :rows], row_entropy[:, :rows]


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Softmax attention without its entropy.

    Args:
      q: `[B, Q, H, K]` floating.
      k: `[B, N, h, K]`; h divides H.
      v: `[B, N, h, K]`.
      mask: bool, three axes broadcastable to `[B, Q, N]`, True where a row may look; None: all.

    Returns:
      `[B, Q, H, K]` in the type of `q`.
    """
    batch, rows, heads, _ = q.shape
    if mask is not None:
        mask = mask[:, None]
    weights = 4 * batch * heads * rows * k.shape[1]
    # A scan over images would gather what several devices share.
    alone = jax.default_backend() == "cpu" and jax.device_count() == 1
    if not alone or batch == 1 or weights <= _CACHED:
        return jax.nn.dot_product_attention(q, k, v, mask=mask)
    # XLA's CPU program holds the weights of all images at once: 2.4 times as slow at MAR base.
    if mask is not None:
        mask = jnp.broadcast_to(mask, (batch, *mask.shape[1:]))
    return jax.lax.map(lambda a: jax.nn.dot_product_attention(*a[:3], mask=a[3]), (q, k, v, mask))


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
        """`x [B, N, D]` -> q, k, v, each `[B, N, H, K]`."""
        shape = (x.shape[-1], 3, self.num_heads, self.head_dim)

        def xavier_as_one_matrix(key, shape, dtype=jnp.float32):
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
      dtype: type of the matrix products and of the result; norms and softmax stay float32.
    """

    width: int
    num_heads: int
    mlp_ratio: float = 4.0
    attention_dropout: float = 0.0
    projection_dropout: float = 0.0
    entropy_chunk: int = 256
    entropy_floor: float = 0.0
    dtype: jnp.dtype = jnp.float32

    def setup(self):
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
        deterministic: bool = True,
    ) -> jax.Array:
        """`x [B, N, width]` -> like `x`; masks as in `with_entropy`."""
        q, k, v = self.heads(x)
        out, _ = self.attend(
            x, q, k, v, _both(key_mask, mask), content_start=None, deterministic=deterministic
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
        """The same block, and the entropy of its attention over content keys (Eq. 4).

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
        """`x [B, N, width]` -> its queries, keys and values, each `[B, N, H, K]`."""
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
        deterministic: bool = True,
    ) -> tuple[jax.Array, jax.Array | None]:
        """All of the block behind `heads`, on keys and values from wherever (a cache).

        Args:
          x: `[B, Q, width]`, the rows that `q` was made of.
          q: `[B, Q, H, K]`.
          k: `[B, N, H, K]`.
          v: `[B, N, H, K]`.
          mask: bool, three axes broadcastable to `[B, Q, N]`, True where a row may look.
          content_start: first content key of the entropy; None asks for no entropy.
          deterministic: False draws dropout from the `dropout` key.

        Returns:
          Block output like `x`, and entropy `[B, Q]` float32 in [0, 1] or None.
        """
        dropout = 0.0 if deterministic else self.attention_dropout
        if content_start is None and dropout == 0.0:
            out, rows = attention(q, k, v, mask), None
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
            )
        return self._after_attention(x, out, deterministic), rows

    def _after_attention(self, x, out, deterministic):
        x = of_batch(x)
        out = self.proj(out.reshape(*out.shape[:2], self.width))
        x = x + self.dropout(out, deterministic=deterministic)
        h = nn.gelu(self.fc1(self.norm2(x)), approximate=False)
        h = self.fc2(self.dropout(h, deterministic=deterministic))
        return x + self.dropout(h, deterministic=deterministic)
