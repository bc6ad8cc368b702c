"""Attention, and attention that returns its own row entropy (Eq. 4).

The entropy layer pays for one softmax and reads both its output and its entropy from it; query
chunks keep `[B, H, Q, N]` bounded, so a long sequence never holds its whole attention map.
"""

import jax
import jax.numpy as jnp

from driftar_jax import entropy

# Smallest share of a head's attention on content keys that is still renormalised.
_TINY = 1e-30


# Bytes of attention weights that a CPU's cache still holds.
_CACHED = 8 * 2**20


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
