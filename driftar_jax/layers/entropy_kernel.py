"""The entropy layer as one TPU kernel: attention and Eq. 4, the weights in no memory of the device.

XLA's program holds `[B, H, Q, N]` several times over. Here a block of rows keeps the weights of a
head in the chip's own memory, adds up the renormalised content shares of all heads, and writes the
output and the entropy alone. Rows are read as `[B, N, H K]`, as the projection leaves them, and
heads are cut out inside: `[B, H, N, K]` would be padded to 128 lanes.
"""

import functools

import jax
import jax.numpy as jnp

from driftar_jax.entropy import TINY

# Most query rows of a block, and most bytes of its arrays: half of what XLA leaves to a kernel.
_ROWS = 256
_BYTES = 8 * 2**20


def block_rows(q: jax.Array, k: jax.Array) -> int:
    """Say how many query rows one block takes of `q [B, Q, H, K]` with keys `k [B, N, h, K]`; 0:
    none fit.

    A single query, as in decoding, is left to XLA: its weights are few.
    """
    rows, keys = q.shape[1], k.shape[1]
    if rows < 8:
        return 0
    queries = q.shape[2] * q.shape[3] * q.dtype.itemsize
    # Keys and values of an image stay in the chip while its blocks of rows pass.
    whole = 2 * keys * k.shape[2] * k.shape[3] * k.dtype.itemsize
    most = _ROWS
    while most >= 8:
        # Rows lie in tiles of eight. The blocks are equal, so that the last is not mostly padding.
        blocks = -(-rows // most)
        size = -(-rows // (8 * blocks)) * 8
        # Queries, output, mask, and what a head's softmax holds: about four arrays of weights.
        if whole + size * (2 * queries + 20 * keys) <= _BYTES:
            return min(size, rows)
        most //= 2
    return 0


def attention_with_entropy(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    content: jax.Array,
    *,
    content_start: int,
    floor: float,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Do as `layers.attention_with_entropy`, without dropout.

    Args:
      q: `[B, Q, H, K]` floating; `block_rows` must find a block.
      k: `[B, N, h, K]`; h divides H, and consecutive query heads share a key head.
      v: `[B, N, h, K]`.
      mask: bool, three axes broadcastable to `[B, Q, N]`, True where a row may look; None: all.
      content: bool, `[B or 1, N]`, keys that count in the entropy.
      content_start: first of them; `floor` is the least weight from there on.
      floor: as there.
      interpret: run the kernel's steps one by one on any backend; for tests.

    Returns:
      Output `[B, Q, H, K]` in the type of `q`, and entropy `[B, Q]` float32.
    """
    # Here and not above: the import takes a third of a second, and most programs need none of it.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    batch, rows, heads, dim = q.shape
    keys, shared = k.shape[1], heads // k.shape[2]
    mask = jnp.ones((1, 1, keys), bool) if mask is None else mask
    size = block_rows(q, k)
    flat = lambda a: a.reshape(*a.shape[:2], -1)  # noqa: E731
    q, k, v = flat(q), flat(k), flat(v)

    def whole(array):
        """All of an image's `array [B or 1, M, width]`."""
        return pl.BlockSpec(
            (1, *array.shape[1:]), lambda i, r: (i if array.shape[0] > 1 else 0, 0, 0)
        )

    def cut(array):
        """A block of the rows of `array [B or 1, Q or 1, width]`."""
        if array.shape[1] == 1:
            return whole(array)
        return pl.BlockSpec(
            (1, size, array.shape[2]), lambda i, r: (i if array.shape[0] > 1 else 0, r, 0)
        )

    allowed, counts = mask.astype(jnp.float32), content[:, None].astype(jnp.float32)
    entropy = jax.ShapeDtypeStruct((batch, rows, 1), jnp.float32)
    kernel = functools.partial(
        _kernel, heads=heads, shared=shared, dim=dim, content_start=content_start, floor=floor
    )
    out, entropy = pl.pallas_call(
        kernel,
        grid=(batch, -(-rows // size)),
        in_specs=[cut(q), whole(k), whole(v), cut(allowed), whole(counts)],
        out_specs=[cut(q), pl.BlockSpec((1, size, 1), lambda i, r: (i, r, 0))],
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), entropy],
        # No block reads what another wrote, so both axes may be shared out among cores.
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        interpret=interpret,
        name="attention_with_entropy",
    )(q, k, v, allowed, counts)
    return out.reshape(batch, rows, heads, dim), entropy[..., 0]


def _kernel(q, k, v, allowed, counts, out, entropy, *, heads, shared, dim, content_start, floor):
    """All heads of a block: q, out `[1, rows, H K]`; k, v `[1, N, h K]`; entropy `[1, rows, 1]`."""
    # Two-byte numbers are multiplied exactly as they are; float32 is not cut to them.
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    product = functools.partial(
        jax.lax.dot_general, precision=precision, preferred_element_type=jnp.float32
    )
    may_look = allowed[0] > 0
    content = allowed[0] * counts[0]
    total = None
    for h in range(heads):
        at, of = slice(h * dim, (h + 1) * dim), slice(h // shared * dim, (h // shared + 1) * dim)
        logits = product(q[0, :, at], k[0, :, of], (((1,), (1,)), ((), ()))) * dim**-0.5
        # The least number and not minus infinity: a row that may look nowhere would be NaN.
        logits = jnp.where(may_look, logits, jnp.finfo(jnp.float32).min)
        weights = jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True))
        weights = weights / jnp.sum(weights, axis=1, keepdims=True)
        values = product(weights.astype(v.dtype), v[0, :, of], (((1,), (0,)), ((), ())))
        out[0, :, at] = values.astype(out.dtype)
        share = weights * content
        least = max(floor, TINY)
        share = share / jnp.maximum(jnp.sum(share, axis=1, keepdims=True), least)
        total = share if total is None else total + share
    mean = total / heads
    if floor > 0.0:
        key = jax.lax.broadcasted_iota(jnp.int32, mean.shape, 1)
        mean = jnp.where(key >= content_start, jnp.maximum(mean, floor), 0.0)
    nats = -jnp.sum(mean * jnp.log(jnp.where(mean > 0, mean, 1.0)), axis=1, keepdims=True)
    # With one key in sight there is nothing to be uncertain about, and log 1 is no divisor.
    visible = jnp.sum(content, axis=1, keepdims=True)
    relative = nats / jnp.log(jnp.maximum(visible, 2.0))
    entropy[0] = jnp.broadcast_to(
        jnp.where(visible > 1, jnp.clip(relative, 0.0, 1.0), 0.0), entropy.shape[1:]
    )
