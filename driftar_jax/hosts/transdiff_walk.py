"""TransDiff's images in a row as speculative decoding sees them: a group is one whole image.

Group g is encoded from the image before it; several groups are one call over a cache whose
attention is causal from image to image. The buffer is encoded before the first group, so that all
calls have the same shapes; to go back is to set the cache's length.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from driftar_jax.hosts.transdiff import Cache, TransDiff
from driftar_jax.hosts.transdiff_flow import reference_rows
from driftar_jax.types import Encoding


@dataclasses.dataclass(frozen=True)
class TransDiffWalk:
    """A `Walk` (`base.py`) over TransDiff; the tokens of an image in a row follow one another.

    Attributes:
      module: the backbone, of several groups and with a content row for every token: a prior
        needs a mean for each.
      params: its parameters.
      label: `[B]` int32, -1 for none.
      grid: rows and columns of one image's tokens.
      branches: 2 adds the unconditional rows, which keep the images in a row.
    """

    module: TransDiff
    params: Any
    label: jax.Array
    grid: tuple[int, int]
    branches: int = 1

    def __post_init__(self):
        if self.module.groups < 2:
            raise ValueError(
                "groups: got 1, allowed at least 2 (one AR step leaves nothing to draft)"
            )
        if self.module.group_rows != self.group_size:
            raise ValueError(
                f"num_rows: got {self.module.group_rows} for an image, allowed {self.group_size} "
                "(one for each token)"
            )

    @property
    def num_steps(self) -> int:
        """Return T, the images in a row."""
        return self.module.groups

    @property
    def group_size(self) -> int:
        """Return K, the tokens of a grid."""
        return self.grid[0] * self.grid[1]

    @property
    def num_tokens(self) -> int:
        """Return the tokens of all images in a row."""
        return self.num_steps * self.group_size

    @property
    def token_dim(self) -> int:
        """Return C."""
        return self.module.reference_dim

    def group(self, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See `Walk.group`; all slots are real."""
        first = self.group_size * jnp.clip(step, 0, self.num_steps - 1)
        positions = first[:, None] + jnp.arange(self.group_size)[None]
        return positions, jnp.ones_like(positions, bool)

    def known(self, step: jax.Array) -> jax.Array:
        """See `Walk.known`."""
        step = jnp.clip(step, 0, self.num_steps - 1)
        return jnp.arange(self.num_tokens)[None] < self.group_size * step[:, None]

    def memory(self) -> Cache:
        """Return the cache behind the buffer: one call on its rows alone."""
        label = self.label
        if self.branches == 2:
            label = jnp.concatenate([label, jnp.full_like(label, -1)])
        return self._apply(label, method="begin_before")

    def encode(
        self, memory: Cache, tokens: jax.Array, step: jax.Array, contexts: int
    ) -> tuple[Encoding, Cache]:
        """Call the backbone once, on `contexts` groups per row; see `Walk.encode`."""
        images = tokens.reshape(tokens.shape[0], self.num_steps, self.group_size, -1)
        # Context s of a row is the group `step + s`, whose input is the image before it. For step 0
        # there is none; place 0 is read instead, and `extend` puts mask tokens there.
        before = step[:, None] - 1 + jnp.arange(contexts)[None]
        at = jnp.clip(before, 0, self.num_steps - 1)[..., None, None]
        images = jnp.take_along_axis(images, at, axis=1)
        rows = reference_rows(images, self.grid, self.group_size)
        encoding, cache = self._apply(
            jnp.concatenate([rows] * self.branches), memory, method="extend"
        )
        return jax.tree.map(lambda a: self._by_context(a, contexts), encoding), cache

    def _by_context(self, rows: jax.Array, contexts: int) -> jax.Array:
        """`[R, S * N, ...]` -> `[S, R, N, ...]`."""
        a = rows.reshape(rows.shape[0], contexts, self.group_size, *rows.shape[2:])
        return jnp.moveaxis(a, 1, 0)

    def roll_back(self, memory: Cache, step: jax.Array) -> Cache:
        """See `Walk.roll_back`."""
        # Unlike a causal host's, this cache holds group g only once g was encoded from image g - 1:
        # for the context of `step` exactly `step` groups stand.
        length = jnp.clip(step, 0, self.num_steps).astype(jnp.int32)
        return memory.replace(length=jnp.concatenate([length] * self.branches))

    def take(self, tree: Any, step: jax.Array) -> Any:
        """Return the tree: an encoding holds one group."""
        return tree

    def read(self, encoding: Encoding) -> Encoding:
        """Return the encoding as it is."""
        return encoding

    @property
    def _apply(self):
        return functools.partial(self.module.apply, {"params": self.params})
