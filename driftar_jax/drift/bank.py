"""Real samples of every class in a ring buffer on the device, part of the training state.

It holds tokens, not features: features of old parameters would be another space. What is missing is
masked; nothing is invented and nothing is drawn twice.
"""

import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


@flax.struct.dataclass
class Bank:
    """Keep the last `size` samples of every class.

    Attributes:
      data: `[K, size, N, C]` bfloat16 or float32.
      pointer: `[K]` int32, the slot that the next sample of a class takes.
      count: `[K]` int32 in 0..size, slots that hold a sample.
      seen: `[K]` int32, samples ever pushed; how frequent each class is in the data.
    """

    data: jax.Array
    pointer: jax.Array
    count: jax.Array
    seen: jax.Array

    @property
    def classes(self) -> int:
        """Return the number of classes."""
        return self.data.shape[0]

    @property
    def size(self) -> int:
        """Return how many samples of a class there is room for."""
        return self.data.shape[1]


def num_bytes(classes: int, size: int, sample: tuple[int, ...], dtype: str) -> int:
    """Count the bytes of a bank; nothing is allocated."""
    return classes * size * math.prod(sample) * jnp.dtype(dtype).itemsize + 12 * classes


def check_size(
    classes: int, size: int, sample: tuple[int, ...], dtype: str, *, limit_gib: float
) -> None:
    """Refuse a bank that is larger than `limit_gib`, before it is allocated.

    Raises:
      ValueError: one line with the largest size that fits.
    """
    needed = num_bytes(classes, size, sample, dtype)
    if needed <= limit_gib * 2**30:
        return
    one = num_bytes(classes, 1, sample, dtype)
    most = int(limit_gib * 2**30 // one)
    raise ValueError(
        f"bank.size: got {size} ({needed / 2**30:.2f} GiB for {classes} classes in {dtype}), "
        f"allowed at most {most} for bank.limit_gib {limit_gib:g}"
    )


def empty(classes: int, size: int, sample: tuple[int, ...], dtype: str) -> Bank:
    """Make a bank without samples; `sample` is `(N, C)`. Its class axis is boxed for sharding."""

    def zeros(shape, dtype):
        axes = ("bank",) + (None,) * (len(shape) - 1)
        return nn.LogicallyPartitioned(jnp.zeros(shape, dtype), axes)

    # One array each: a donated buffer cannot be given away twice.
    return Bank(
        data=zeros((classes, size, *sample), jnp.dtype(dtype)),
        pointer=zeros((classes,), jnp.int32),
        count=zeros((classes,), jnp.int32),
        seen=zeros((classes,), jnp.int32),
    )


def push(bank: Bank, label: jax.Array, samples: jax.Array) -> Bank:
    """Put samples into their classes, in the order of the batch.

    Args:
      bank: donate it where the call is jitted, so that it is written in place.
      label: `[B]` integer; a label outside 0..K-1 is skipped.
      samples: `[B, N, C]` floating.

    Returns:
      The bank afterwards. Of more than `size` samples of one class the last `size` stay.

    Raises:
      ValueError: shapes do not fit.
    """
    if samples.shape != (*label.shape, *bank.data.shape[2:]) or label.ndim != 1:
        allowed = f"[B] and [B, {', '.join(map(str, bank.data.shape[2:]))}]"
        raise ValueError(f"samples: got {label.shape} and {samples.shape}, allowed {allowed}")
    known = (label >= 0) & (label < bank.classes)
    label = jnp.where(known, label, bank.classes)
    same = (label[:, None] == label[None, :]) & known[None, :]
    # Samples of one class in one batch take slots one after another: how many of the class came
    # before in the batch is the offset from the pointer.
    earlier = jnp.sum(jnp.tril(same, -1), axis=1, dtype=jnp.int32)
    later = jnp.sum(jnp.triu(same, 1), axis=1, dtype=jnp.int32)
    slot = (bank.pointer[jnp.minimum(label, bank.classes - 1)] + earlier) % bank.size
    # Each slot is written once, so that the order of the writes cannot matter.
    row = jnp.where(later < bank.size, label, bank.classes)
    data = bank.data.at[row, slot].set(samples.astype(bank.data.dtype), mode="drop")
    new = jnp.zeros_like(bank.count).at[label].add(1, mode="drop")
    return Bank(
        data=data,
        pointer=(bank.pointer + new) % bank.size,
        count=jnp.minimum(bank.count + new, bank.size),
        seen=bank.seen + new,
    )


def ready(bank: Bank, num: int) -> jax.Array:
    """Return `[K]` bool: the class holds at least `num` samples."""
    return bank.count >= num


def draw(bank: Bank, key: jax.Array, label: jax.Array, num: int) -> tuple[jax.Array, jax.Array]:
    """Draw samples of the given classes, none twice.

    Args:
      bank: any.
      key: typed key.
      label: `[L]` integer in 0..K-1.
      num: samples of each, 1..size.

    Returns:
      `[L, num, N, C]` float32 and `[L, num]` bool, False where the class holds no further sample;
      what stands there is finite and means nothing.

    Raises:
      ValueError: `num` is out of range.
    """
    if not 1 <= num <= bank.size:
        raise ValueError(f"num: got {num}, allowed 1 to bank.size {bank.size}")
    count = bank.count[label]
    score = jax.random.uniform(key, (*label.shape, bank.size), dtype=jnp.float32)
    held = jnp.arange(bank.size)[None] < count[:, None]
    # The places of the largest of independent random scores are a draw without replacement; empty
    # slots score below all others and are taken last.
    _, slot = jax.lax.top_k(jnp.where(held, score, -1.0), num)
    samples = bank.data[label[:, None], slot].astype(jnp.float32)
    # `top_k` sorts, so that samples that are there come first and the count alone says which.
    return samples, jnp.arange(num)[None] < count[:, None]


def draw_any(bank: Bank, key: jax.Array, rows: int, num: int) -> tuple[jax.Array, jax.Array]:
    """Draw samples of any class for each of `rows`, as frequent as the classes are in what was
    pushed.

    Args:
      bank: any.
      key: typed key.
      rows: independent draws R.
      num: samples of each, 1..K * size; none twice in a row.

    Returns:
      `[R, num, N, C]` float32 and `[R, num]` bool as in `draw`.

    Raises:
      ValueError: `num` is out of range.
    """
    most = bank.classes * bank.size
    if not 1 <= num <= most:
        raise ValueError(f"num: got {num}, allowed 1 to {most} (classes * bank.size)")
    held = jnp.arange(bank.size)[None] < bank.count[:, None]
    # A full ring of a rare class must not be drawn as often as that of a frequent one.
    each = bank.seen / jnp.maximum(bank.count, 1)
    weight = jnp.where(held, jnp.log(jnp.maximum(each, 1.0))[:, None], -jnp.inf).reshape(-1)
    # The largest of weight plus Gumbel noise are a weighted draw without replacement.
    score = weight[None] + jax.random.gumbel(key, (rows, most), dtype=jnp.float32)
    best, place = jax.lax.top_k(score, num)
    samples = bank.data[place // bank.size, place % bank.size].astype(jnp.float32)
    return samples, best > -np.inf
