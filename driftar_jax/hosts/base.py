"""What speculative decoding asks of a host: groups, contexts, and one call for several contexts.

An object that satisfies `Host` is bound to a batch: it holds parameters, labels and generation
orders. Rows R of what it returns are the images, or for guided sampling all conditional rows and
then all unconditional ones; what it is asked with (`step`, `tokens`) is per image.
"""

from typing import Any, Protocol

import jax

from driftar_jax.types import Encoding


class Host(Protocol):
    """A host and a batch of B images whose tokens come in T groups of at most K.

    Step k generates group k; its context is all groups before it. `step [B]` int32 differs from
    image to image; beyond T - 1 it stands for the last step, and nobody reads the result.

    An encoding has a place for every token that the host encodes together with a context: all N for
    a host that sees the whole grid, one group for a host that reads the next one. Only `take` knows
    which.

    Attributes:
      num_steps: T.
      group_size: K, the largest group.
      num_tokens: N.
      token_dim: C.
      branches: rows per image, 2 when guided, else 1.
    """

    num_steps: int
    group_size: int
    num_tokens: int
    token_dim: int
    branches: int

    def group(self, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Positions `[B, K]` int32 of each image's group, and which of them are real, `[B, K]`."""

    def known(self, step: jax.Array) -> jax.Array:
        """`[B, N]` bool, the tokens of the context of `step`."""

    def memory(self) -> Any:
        """What calls hand on (keys and values of a cache), as it is before the first one."""

    def encode(
        self, memory: Any, tokens: jax.Array, step: jax.Array, contexts: int
    ) -> tuple[Encoding, Any]:
        """ONE backbone call on the contexts of `step, step + 1, ..., step + contexts - 1`.

        Args:
          memory: of the last call, rolled back; or `memory()`.
          tokens: `[B, N, C]` float32, drafted ones included; what a context does not know is not
            read for it.
          step: `[B]`.
          contexts: S, static.

        Returns:
          `Encoding` with leading axes `[S, R, ...]`, and the memory.
        """

    def keep(self, memory: Any, step: jax.Array) -> Any:
        """`memory` rolled back to what the context of `step [B]` may know; shapes stay."""

    def take(self, tree: Any, step: jax.Array) -> Any:
        """The places of each image's group, `[R, K, ...]`, in arrays `[R, ...]` of an encoding."""
