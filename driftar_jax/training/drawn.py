"""Losses in two parts: what a step draws, for the whole batch, and the terms of some of its rows.

Splitting a batch into micro-batches then changes neither the random draws of an image (masks,
noise, times) nor the weighted means, which run over the whole batch.
"""

import abc
from typing import Any

import jax

from driftar_jax.layers.dense import of_batch

Rows = dict[str, Any]


class Drawn(abc.ABC):
    """A task that draws first. Its loss is `terms` of all rows of `draw`."""

    @abc.abstractmethod
    def draw(
        self, batch: dict, key: jax.Array, frozen: bool, *extra: Any
    ) -> tuple[Rows, dict[str, jax.Array]]:
        """Draw all that is random in a step, but dropout; it reads no parameters.

        Args:
          batch: as for `loss`.
          key: of the step.
          frozen: the second phase.
          *extra: the state of a task that owns one.

        Returns:
          Trees whose leaves have the batch as their first axis, and the denominators of weighted
          means: float32 scalars, sums over the whole batch.
        """

    @abc.abstractmethod
    def terms(
        self,
        params: dict[str, Any],
        rows: Rows,
        totals: dict[str, jax.Array],
        key: jax.Array,
        step: jax.Array,
        frozen: bool,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the loss and metrics of some rows; their mean over equal parts of a batch is the
        batch's.

        Args:
          params: all groups.
          rows: of `draw`, every A-th one.
          totals: of `draw`, divided by A.
          key: of the step; dropout alone is drawn from it here.
          step: int32 scalar.
          frozen: the second phase.
        """

    def loss(self, params, batch, key, step, frozen, *extra):
        """See `Task.loss`; `extra` is the state of a task that owns one."""
        rows, totals = self.draw(batch, key, frozen, *extra)
        return self.terms(params, spread(rows), totals, key, step, frozen)


def spread(rows: Rows) -> Rows:
    """Shard the rows of `draw` over devices like the batch.

    Without this constraint XLA may draw the numbers of all images on every device.
    """
    return jax.tree.map(of_batch, rows)
