"""What hosts share that make one token after another over a cache: their loop and their walk.

The prefix (a prompt, a class) is read in one call, and every token but the last costs one cached
call; the branches of guidance are rows of the same call. What is decoded is also what is fed back.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from driftar_jax.layers.causal import Cache
from driftar_jax.types import Encoding, Trace


def in_turn(
    begin: Callable[[], tuple[Encoding, Any]],
    advance: Callable[[jax.Array, Any], tuple[Encoding, Any]],
    make: Callable[[Encoding, jax.Array], jax.Array],
    *,
    num_tokens: int,
    branches: int,
) -> tuple[jax.Array, jax.Array]:
    """Generate tokens one by one, all images in step.

    Args:
      begin: read the prefix; returns the encoding `[branches * B, 1, ...]` of token 0, and a cache.
      advance: `(tokens [branches * B, 1, C], cache)` -> encoding of the next token, and the cache.
      make: `(encoding, token number) -> [B, C]`, the head's part.
      num_tokens: N.
      branches: rows per image.

    Returns:
      tokens `[B, N, C]`, and `E [B, N]` of the conditional rows.
    """

    def following(carry, k):
        cache, x = carry
        # All branches read the token that guidance made of them; only their prefixes differ.
        encoding, cache = advance(jnp.tile(x, (branches, 1))[:, None], cache)
        x = make(encoding, k)
        # Conditional rows come first, and theirs is the entropy that is reported.
        return (cache, x), (x, encoding.entropy[: len(x), -1])

    # Token 0 is made outside the scan: its encoding comes from the prefix, and a scan that began
    # with it would need a call of another shape.
    encoding, cache = begin()
    x = make(encoding, jnp.int32(0))
    first = x, encoding.entropy[: len(x), -1]
    _, others = jax.lax.scan(following, (cache, x), jnp.arange(1, num_tokens))
    return jax.tree.map(
        lambda a, b: jnp.moveaxis(jnp.concatenate([a[None], b]), 0, 1), first, others
    )


def traced(tokens: jax.Array, entropy: jax.Array) -> Trace:
    """Return the `Trace` of tokens `[B, N, C]` that were made one after another, of `E [B, N]`."""
    turn = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), entropy.shape)
    return Trace(tokens, turn, entropy[:, None])


@dataclasses.dataclass(frozen=True)
class CausalWalk:
    """Hold the parts of a `Walk` (`base.py`) that all causal hosts share: a group is one token.

    The pending token, whose value is known and whose keys are not, goes in with the drafts; before
    the first token the end of the prefix plays that part, so shapes never change. To go back is to
    set the cache's length: everything behind it is written again by the next call.

    Attributes:
      num_tokens: N of an image.
      contexts: most contexts of one call, for the room that a call may overshoot.
      prefix: positions before the first token.
      token_dim: C.
      branches: rows per image.
    """

    num_tokens: int
    contexts: int
    prefix: int
    token_dim: int
    branches: int

    @property
    def num_steps(self) -> int:
        """Return T: one token a step."""
        return self.num_tokens

    @property
    def group_size(self) -> int:
        """Return K: 1."""
        return 1

    def group(self, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See `Walk.group`."""
        positions = self._last(step)[:, None]
        return positions, jnp.ones_like(positions, bool)

    def known(self, step: jax.Array) -> jax.Array:
        """See `Walk.known`."""
        return jnp.arange(self.num_tokens)[None] < self._last(step)[:, None]

    def encode(
        self, memory: Cache, tokens: jax.Array, step: jax.Array, contexts: int
    ) -> tuple[Encoding, Cache]:
        """Call the backbone once, on the pending token and drafts; see `Walk.encode`."""
        # The encoding of token k is that of the slot before it, so context s reads token `step + s
        # - 1`; -1 stands for the end of the prefix.
        before = self._last(step)[:, None] - 1 + jnp.arange(contexts)[None]
        at = jnp.clip(before, 0, self.num_tokens - 1)[..., None]
        pending = jnp.take_along_axis(tokens, at, axis=1)
        pending, before = (jnp.concatenate([a] * self.branches) for a in (pending, before))
        encoding, cache = self.advance(pending, before < 0, memory)
        # `[R, S, ...]` of one causal call becomes S encodings of one place each, `[S, R, 1, ...]`.
        return jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0)[:, :, None], encoding), cache

    def advance(
        self, pending: jax.Array, before_first: jax.Array, memory: Cache
    ) -> tuple[Encoding, Cache]:
        """Call the backbone on `pending [R, S, C]` behind the cache.

        Where `before_first [R, S]`, the input is the last one of the prefix.
        """
        raise TypeError(f"{type(self).__name__} does not say how its backbone is called")

    def roll_back(self, memory: Cache, step: jax.Array) -> Cache:
        """See `Walk.roll_back`."""
        # The last slot of the prefix and the tokens before the pending one stand; the pending token
        # goes in again with the next call.
        return memory.rolled_back(self.prefix - 1 + self._last(step))

    def take(self, tree: Any, step: jax.Array) -> Any:
        """Return the tree: an encoding holds one group."""
        return tree

    def read(self, encoding: Encoding) -> Encoding:
        """Return the encoding as it is."""
        return encoding

    def _last(self, step: jax.Array) -> jax.Array:
        return jnp.clip(step, 0, self.num_tokens - 1)
