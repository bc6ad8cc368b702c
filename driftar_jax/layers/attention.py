"""Attention, and attention that returns its own row entropy (Eq. 4).

The entropy layer pays for one softmax and reads both its output and its entropy from it; query
chunks keep `[B, H, Q, N]` bounded, so a long sequence never holds its whole attention map.
"""

import functools
import importlib.util

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental.layout import Layout, with_layout_constraint

from driftar_jax import entropy
from driftar_jax.config import wrong

# Who computes attention: the best of the platform that the program is lowered for, or one of them.
KINDS = ("auto", "xla", "cudnn", "pallas")

# Bytes of attention weights that a CPU's cache still holds.
_CACHED = 8 * 2**20

# Bytes of attention weights that a GPU's entropy layer holds at once; they keep all cores busy.
_AT_ONCE = 24 * 2**20


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
    kind: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Compute softmax attention and the entropy of its rows over content keys, from one softmax
    (Eq. 4).

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
      kind: one of `KINDS`. `auto` takes, for weights too many for a cache, the kernel of
        `entropy_kernel` on TPUs and few images at a time on GPUs; `pallas` the kernel on every
        platform, step by step where it is no TPU; the others XLA's program alone. With dropout, or
        split over devices, it is always XLA's.

    Returns:
      Output `[B, Q, H, K]` in the type of `q`, and entropy `[B, Q]` float32 in [0, 1] of every
      row. A row that may see nothing gives a finite output and entropy 0.

    Raises:
      ValueError: `content_start` leaves no content key, `chunk` < 1, or an unknown `kind`.
    """
    keys = k.shape[1]
    if kind not in KINDS:
        raise wrong("attention", kind, " | ".join(KINDS))
    if not 0 <= content_start < keys:
        raise ValueError(f"content_start: got {content_start}, allowed 0..{keys - 1}")
    if chunk < 1:
        raise ValueError(f"chunk: got {chunk}, allowed at least 1")
    plain = functools.partial(
        _with_entropy, content_start=content_start, floor=floor, chunk=chunk, dropout=dropout
    )
    operands = q, k, v, mask, content, dropout_key
    if dropout > 0.0 or not _alone() or kind in ("xla", "cudnn"):
        return plain(*operands)
    # Weights that a cache holds are no burden on any platform. Small models are then spared the
    # import and the tracing of programs for others.
    if kind == "auto" and 4 * q.shape[0] * q.shape[1] * q.shape[2] * keys <= _CACHED:
        return plain(*operands)
    from driftar_jax.layers import entropy_kernel  # of large models alone

    chosen = {}
    if kind == "auto":
        # A chunk is for what is too long to be held at once for even one image.
        fits = 4 * q.shape[1] * q.shape[2] * keys <= _AT_ONCE
        some = functools.partial(plain, chunk=q.shape[1]) if fits else plain
        chosen["cuda"] = functools.partial(_few_images, some)
    if entropy_kernel.block_rows(q, k):
        options = dict(content_start=content_start, floor=floor, chunk=chunk)
        chosen["tpu"] = functools.partial(_kernel, **options)
        if kind == "pallas":
            chosen["cpu"] = functools.partial(_kernel, **options, interpret=True)
    return jax.lax.platform_dependent(*operands, default=plain, **chosen)


def _alone() -> bool:
    """Whether one device computes all images: a loop over them would gather what several share."""
    return jax.device_count() == 1 and not nn.get_logical_axis_rules()


def _kernel(q, k, v, mask, content, _, *, content_start, floor, chunk, interpret=False):
    """One kernel forwards; backwards the weights are made again, in chunks."""
    from driftar_jax.layers import entropy_kernel

    content = jnp.ones((1, k.shape[1]), bool) if content is None else content
    content = content & (jnp.arange(k.shape[1]) >= content_start)[None]

    @jax.custom_vjp
    def call(q, k, v, mask, content):
        return entropy_kernel.attention_with_entropy(
            q, k, v, mask, content, content_start=content_start, floor=floor, interpret=interpret
        )

    def forward(*operands):
        return call(*operands), operands

    def backward(operands, cotangents):
        q, k, v, mask, content = operands
        _, pull = jax.vjp(
            lambda q, k, v: _with_entropy(
                q, k, v, mask, content, None, content_start=content_start, floor=floor, chunk=chunk
            ),
            q,
            k,
            v,
        )
        return *pull(cotangents), None, None

    call.defvjp(forward, backward)
    return call(q, k, v, mask, content)


def _few_images(plain, q, k, v, mask, content, _):
    """`plain`, so many images at a time that their weights are not held all at once."""
    batch = q.shape[0]
    most = max(1, _AT_ONCE // (4 * q.shape[1] * q.shape[2] * k.shape[1]))
    at_once = max(n for n in range(1, batch + 1) if batch % n == 0 and n <= most)
    if at_once == batch:
        return plain(q, k, v, mask, content, None)
    of_image = lambda a: a is not None and a.shape[0] == batch  # noqa: E731
    split = lambda a: a.reshape(-1, at_once, *a.shape[1:])  # noqa: E731
    shared = tuple(None if of_image(a) else a for a in (mask, content))
    own = tuple(split(a) if of_image(a) else None for a in (mask, content))

    @jax.checkpoint
    def some(arrays):
        q, k, v, *masks = arrays
        # Otherwise all keys and values are first laid out as the products of the loop want them.
        q, k, v = (with_layout_constraint(a, Layout((0, 1, 2, 3))) for a in (q, k, v))
        masks = [a if b is None else b for a, b in zip(shared, masks, strict=True)]
        return plain(q, k, v, *masks, None)

    outputs = jax.lax.map(some, (split(q), split(k), split(v), *own))
    return jax.tree.map(lambda a: a.reshape(batch, *a.shape[2:]), outputs)


def _with_entropy(q, k, v, mask, content, dropout_key, *, content_start, floor, chunk, dropout=0.0):
    """`attention_with_entropy` as XLA computes it, `chunk` rows at a time."""
    batch, rows, keys = q.shape[0], q.shape[1], k.shape[1]
    if k.shape[2] != q.shape[2]:
        k, v = (jnp.repeat(a, q.shape[2] // k.shape[2], axis=2) for a in (k, v))
    if mask is None:
        mask = jnp.ones((1, 1, keys), bool)
    mask = jnp.broadcast_to(mask, (batch, mask.shape[1], keys))

    def attend(q_rows, mask_rows, key):
        # Entropies stay float32 where the products of the rest are cut to fewer digits.
        exact = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
        logits = jnp.einsum(
            "bqhk,bnhk->bhqn", q_rows, k, precision=exact, preferred_element_type=jnp.float32
        )
        logits = logits * q.shape[-1] ** -0.5
        # A finite floor: -inf throughout a row that sees nothing would make it NaN.
        logits = jnp.where(mask_rows[:, None], logits, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(logits, axis=-1)
        counted = mask_rows if content is None else mask_rows & content[:, None]
        share = jnp.where(counted[:, None], weights, 0.0)[..., content_start:]
        share = share / jnp.maximum(
            jnp.sum(share, axis=-1, keepdims=True), max(floor, entropy.TINY)
        )
        visible = jnp.sum(counted[..., content_start:], axis=-1)
        visible = jnp.broadcast_to(visible, (batch, q_rows.shape[1]))
        row_entropy = entropy.row_entropy(jnp.mean(share, axis=1), visible, floor=floor)
        if dropout > 0.0:
            kept = jax.random.bernoulli(key, jnp.float32(1.0 - dropout), weights.shape)
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


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    *,
    kind: str = "auto",
    first_keys: bool = False,
) -> jax.Array:
    """Compute softmax attention without its entropy.

    Args:
      q: `[B, Q, H, K]` floating.
      k: `[B, N, h, K]`; h divides H.
      v: `[B, N, h, K]`.
      mask: bool, three axes broadcastable to `[B, Q, N]`, True where a row may look; None: all.
      kind: one of `KINDS`. `auto` takes cuDNN on GPUs where it can (two-byte numbers, heads of at
        most 128, all keys or the first ones), and goes image by image on one CPU; `cudnn` says that
        it must be able to; the others are XLA's program.
      first_keys: whether every row of `mask [B, 1, N]` is True for its first keys alone.

    Returns:
      `[B, Q, H, K]` in the type of `q`.

    Raises:
      ValueError: an unknown `kind`.
    """
    if kind not in KINDS:
        raise wrong("attention", kind, " | ".join(KINDS))
    batch, rows, heads, dim = q.shape
    chosen = {}
    # XLA's CPU program holds the weights of all images at once: 2.4 times as slow at MAR base.
    if _alone() and batch > 1 and 4 * batch * heads * rows * k.shape[1] > _CACHED:
        chosen["cpu"] = _image_by_image
    narrow = q.dtype in (jnp.bfloat16, jnp.float16) and dim % 8 == 0 and dim <= 128
    if kind in ("auto", "cudnn") and narrow and (mask is None or first_keys) and _has_cudnn():
        chosen["cuda"] = _cudnn
    if not chosen:
        return _at_once(q, k, v, mask)
    return jax.lax.platform_dependent(q, k, v, mask, default=_at_once, **chosen)


@functools.cache
def _has_cudnn() -> bool:
    """Whether jax's CUDA packages are installed: without them not even a lowering is possible."""
    return importlib.util.find_spec("jax_cuda13_plugin") is not None


def _at_once(q, k, v, mask):
    mask = None if mask is None else mask[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask)


def _image_by_image(q, k, v, mask):
    if mask is not None:
        mask = jnp.broadcast_to(mask[:, None], (len(q), 1, *mask.shape[1:]))
    return jax.lax.map(lambda a: jax.nn.dot_product_attention(*a[:3], mask=a[3]), (q, k, v, mask))


def _cudnn(q, k, v, mask):
    lengths = {}
    if mask is not None:
        lengths["key_value_seq_lengths"] = jnp.sum(mask[:, 0], axis=-1, dtype=jnp.int32)
        lengths["query_seq_lengths"] = jnp.full(len(q), q.shape[1], jnp.int32)
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn", **lengths)
