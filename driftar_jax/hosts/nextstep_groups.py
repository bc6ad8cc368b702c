"""NextStep-1 as speculative decoding sees it: a group is one token, several are one causal call.

The pending token, whose value is known and whose keys are not, goes in with the drafts; before the
first token the begin-of-image mark plays that part, so shapes never change. To go back is to set
the cache's length: everything behind it is written again by the next call.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from driftar_jax.hosts.nextstep import NextStep
from driftar_jax.layers.causal import Cache
from driftar_jax.types import Encoding


@dataclasses.dataclass(frozen=True)
class NextStepGroups:
    """A `Host` (`base.py`) over NextStep-1; tokens come in raster order, one per step.

    Attributes:
      module: the backbone.
      params: its parameters.
      ids: `[branches * B, P]` int32 prompts that end with the begin-of-image mark.
      padding: `[branches * B]` int32.
      num_tokens: N of an image.
      contexts: most contexts of one call, for the room that a call may overshoot.
      sources: `[branches * B, M, C]` tokens of source images; None: none.
      branches: rows per image.
    """

    module: NextStep
    params: Any
    ids: jax.Array
    padding: jax.Array
    num_tokens: int
    contexts: int
    sources: jax.Array | None = None
    branches: int = 1

    @property
    def num_steps(self) -> int:
        return self.num_tokens

    @property
    def group_size(self) -> int:
        return 1

    @property
    def token_dim(self) -> int:
        return self.module.token_dim

    def group(self, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        positions = self._last(step)[:, None]
        return positions, jnp.ones_like(positions, bool)

    def known(self, step: jax.Array) -> jax.Array:
        return jnp.arange(self.num_tokens)[None] < self._last(step)[:, None]

    def memory(self) -> Cache:
        """The cache behind the prompt without its last mark: one call, of the prompt's length."""
        prompt = self.ids.shape[1]
        slots = prompt + self.num_tokens + self.contexts
        cache = self.module.empty_cache(slots, self.padding, prompt)
        _, cache = self._apply(self.ids[:, :-1], cache, self.sources, method="prefill")
        return cache

    def encode(
        self, memory: Cache, tokens: jax.Array, step: jax.Array, contexts: int
    ) -> tuple[Encoding, Cache]:
        """One call on `contexts` inputs per row: the pending token, then drafts."""
        before = self._last(step)[:, None] - 1 + jnp.arange(contexts)[None]
        at = jnp.clip(before, 0, self.num_tokens - 1)[..., None]
        pending = jnp.take_along_axis(tokens, at, axis=1)
        pending, before = (jnp.concatenate([a] * self.branches) for a in (pending, before))
        image = self._apply(pending, method="embed_image")
        mark = self._apply(self.ids[:, -1:], method="embed")
        x = jnp.where((before < 0)[..., None], mark, image)
        encoding, cache = self._apply(x, memory, method="advance_inputs")
        return jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0)[:, :, None], encoding), cache

    def keep(self, memory: Cache, step: jax.Array) -> Cache:
        return memory.rolled_back(self.ids.shape[1] - 1 + self._last(step))

    def take(self, tree: Any, step: jax.Array) -> Any:
        return tree

    def _last(self, step: jax.Array) -> jax.Array:
        return jnp.clip(step, 0, self.num_tokens - 1)

    @property
    def _apply(self):
        return functools.partial(self.module.apply, {"params": self.params})
