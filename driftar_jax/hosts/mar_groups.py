"""MAR as speculative decoding sees it: a group is what one masked step reveals.

Attention is bidirectional, so there is no cache: several contexts are stacked on the batch axis.
They differ in their known counts, so the encoder masks unknown keys instead of dropping them.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from driftar_jax.hosts.mar import MAR
from driftar_jax.types import Encoding


@dataclasses.dataclass(frozen=True)
class MARGroups:
    """A `Host` (`base.py`) over MAR.

    Attributes:
      module: the backbone.
      params: its parameters.
      label: `[B]` int32, -1 for none.
      order: `[B, N]` int32; groups are revealed from its end.
      rank: `[B, N]` int32; where each position stands in its order.
      counts: T sizes of groups.
      branches: 2 adds the unconditional rows.
    """

    module: MAR
    params: Any
    label: jax.Array
    order: jax.Array
    rank: jax.Array
    counts: tuple[int, ...]
    branches: int = 1

    @classmethod
    def of(cls, *, order: jax.Array, **fields) -> "MARGroups":
        """With the rank of that order; it is computed here, once, and not in every round."""
        return cls(order=order, rank=jnp.argsort(order, axis=-1), **fields)

    @property
    def num_steps(self) -> int:
        return len(self.counts)

    @property
    def group_size(self) -> int:
        return max(self.counts)

    @property
    def num_tokens(self) -> int:
        return self.module.num_tokens

    @property
    def token_dim(self) -> int:
        return self.module.token_dim

    def _unknown(self, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Unknown tokens before and after the groups of `step`."""
        before = self.num_tokens - np.cumsum((0, *self.counts))
        step = jnp.clip(step, 0, self.num_steps - 1)
        before = jnp.asarray(before, jnp.int32)
        return before[step], before[step + 1]

    def group(self, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        before, after = self._unknown(step)
        slots = after[:, None] + jnp.arange(self.group_size)[None]
        positions = jnp.take_along_axis(self.order, jnp.minimum(slots, self.num_tokens - 1), axis=1)
        return positions, slots < before[:, None]

    def known(self, step: jax.Array) -> jax.Array:
        return self.rank >= self._unknown(step)[0][:, None]

    def memory(self) -> tuple[()]:
        return ()

    def encode(self, memory, tokens, step, contexts: int):
        """One call on `contexts * branches * B` rows."""
        known = jnp.concatenate([self.known(step + s) for s in range(contexts)])
        tokens = jnp.concatenate([tokens] * contexts)
        label = jnp.concatenate([self.label] * contexts)
        if self.branches == 2:
            known, tokens = jnp.concatenate([known] * 2), jnp.concatenate([tokens] * 2)
            label = jnp.concatenate([label, jnp.full_like(label, -1)])
        made = self.module.apply({"params": self.params}, tokens, known, label)
        return jax.tree.map(lambda a: self._by_context(a, contexts), made), memory

    def _by_context(self, rows: jax.Array, contexts: int) -> jax.Array:
        """`[branches * S * B, ...]` -> `[S, branches * B, ...]`."""
        a = rows.reshape(self.branches, contexts, -1, *rows.shape[1:])
        return jnp.swapaxes(a, 0, 1).reshape(contexts, -1, *rows.shape[1:])

    def keep(self, memory, step):
        return memory

    def take(self, tree: Any, step: jax.Array) -> Any:
        positions = jnp.concatenate([self.group(step)[0]] * self.branches)
        return jax.tree.map(lambda a: jax.vmap(lambda v, p: v[p])(a, positions), tree)


def draft_rows(groups: MARGroups, head: Any, params: Any):
    """A draft head on MAR's rows: `(last encoding, tokens, step) -> encoding` of that context.

    Args:
      groups: of the batch.
      head: `DraftHead`; it predicts the encoding of all N positions.
      params: its parameters.
    """

    def draft(last: Encoding, tokens: jax.Array, step: jax.Array) -> Encoding:
        known = jnp.concatenate([groups.known(step)] * groups.branches)
        tokens = jnp.concatenate([tokens] * groups.branches)
        return head.apply({"params": params}, last, tokens, known)

    return draft
