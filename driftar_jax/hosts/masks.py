"""Mask laws of training: how many tokens of an image are unknown, and which.

Masks are prefixes of a generation order: the first `num_unknown` entries of `order` are unknown,
and generation reveals an order from its end (mar.md, sections 3 and 5).
"""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Masks:
    """Contexts of a batch.

    Attributes:
      order: `[B, N]` int32; a permutation of the positions per image.
      rank: `[B, N]` int32; where each position stands in its order.
      num_unknown: `[B]` int32 in 1..N.
    """

    order: jax.Array
    rank: jax.Array
    num_unknown: jax.Array

    @property
    def known(self) -> jax.Array:
        """Return `[B, N]` bool, True where the token is given."""
        return self.rank >= self.num_unknown[:, None]


def draw(key: jax.Array, batch: int, num_tokens: int, *, law: str, ratio_min: float) -> Masks:
    """Draw the contexts of one training batch.

    Args:
      key: typed key.
      batch: B.
      num_tokens: N.
      law: `mar`, one rate for the whole batch as the host was published; `generation`, half of the
        rows by that law with a rate each, half with the unknown share `cos(pi/2 u)`, u uniform,
        which is what sampling meets, down to one unknown token.
      ratio_min: smallest unknown share under MAR's law, in [0, 1).

    Returns:
      `Masks`.

    Source: mar.md section 3; DESIGN section 3.
    """
    # All keys are split whatever the law, so that both laws see the same orders from the same key.
    key_order, key_rate, key_share = jax.random.split(key, 3)
    order = jax.vmap(lambda k: jax.random.permutation(k, num_tokens))(
        jax.random.split(key_order, batch)
    )
    rates = 1 if law == "mar" else batch
    # Normal around 1 with deviation 0.25, cut to [ratio_min, 1].
    low = (ratio_min - 1.0) / 0.25
    ratio = 1.0 + 0.25 * jax.random.truncated_normal(
        key_rate, low, 0.0, (rates,), dtype=jnp.float32
    )
    num_unknown = jnp.broadcast_to(_count(ratio, num_tokens), (batch,))
    if law == "generation":
        # With u the progress of sampling, cos(pi/2 u) is the unknown share of the cosine schedule
        # at that point: each AR step is met equally often.
        share = jnp.cos(0.5 * jnp.pi * jax.random.uniform(key_share, (batch,), dtype=jnp.float32))
        first_half = jnp.arange(batch) < batch // 2
        num_unknown = jnp.where(first_half, num_unknown, _count(share, num_tokens))
    return Masks(order=order, rank=jnp.argsort(order, axis=-1), num_unknown=num_unknown)


def _count(share: jax.Array, num_tokens: int) -> jax.Array:
    # At least one unknown token, or an image would have nothing to learn from.
    return jnp.clip(jnp.ceil(share * num_tokens), 1, num_tokens).astype(jnp.int32)


def advance(masks: Masks, ar_steps: int) -> Masks:
    """Return the contexts one AR step of an `ar_steps`-step cosine schedule later.

    At least one token stays unknown, and at least one more is known than before, except where only
    one was unknown.
    """
    num_tokens = masks.order.shape[1]
    share = masks.num_unknown / num_tokens
    # Invert the cosine schedule to find where this context stands in it, go on by one step, and
    # read the schedule there.
    progress = jnp.arccos(jnp.clip(share, 0.0, 1.0)) / (0.5 * jnp.pi) + 1.0 / ar_steps
    later = jnp.floor(num_tokens * jnp.cos(0.5 * jnp.pi * jnp.minimum(progress, 1.0)))
    later = jnp.clip(later.astype(jnp.int32), 1, jnp.maximum(masks.num_unknown - 1, 1))
    return masks.replace(num_unknown=later)


def some_unknown(masks: Masks, count: int) -> tuple[jax.Array, jax.Array]:
    """Choose up to `count` random unknown positions per image, weighted to stand for all of them.

    Args:
      masks: contexts of B images over N tokens.
      count: M, static, 1..N; N takes every unknown position.

    Returns:
      positions `[B, M]` int32, and weights `[B, M]` float32: 0 where an image has fewer unknown
      tokens than M, else how many unknown tokens each chosen one stands for. Weighted sums over the
      chosen positions are unbiased for sums over all unknown ones.
    """
    chosen = jnp.minimum(masks.num_unknown, count)
    # The first entries of a random order are a random sample of the unknown ones.
    weight = masks.num_unknown / chosen
    real = jnp.arange(count)[None] < masks.num_unknown[:, None]
    return masks.order[:, :count], jnp.where(real, weight[:, None], 0.0)
