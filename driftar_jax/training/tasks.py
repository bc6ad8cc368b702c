"""What is trained: a host with its own head, Drift-AR on a host, or a network to look through.

A task is a frozen object with `init`, `loss` and `trainable`; the loop knows nothing else of it.
"""

from typing import Any, Protocol

import jax

from driftar_jax import model
from driftar_jax.features import maps
from driftar_jax.training import (
    autoencoder,
    classifier,
    drafts,
    drift_grid,
    grid_tasks,
    host_task,
    masked,
    token_drift,
)

Params = dict[str, Any]


class Task(Protocol):
    """What the loop asks of a task.

    Attributes:
      freeze_step: first step of Phase II, or None where there is one phase.
      tracked: names of metrics whose running means are part of the checkpoint.

    A task may have `stays`, groups that never learn: they have no gradient, moment or average;
    `aside`, groups that training alone needs, each with the group that it begins as: they have no
    average, and no export holds them; and `rates`, how many times the run's learning rate is a
    group's own.
    """

    freeze_step: int | None
    tracked: tuple[str, ...]

    def init(self, key: jax.Array) -> Params:
        """Make fresh parameters by group, boxed with their logical axes."""

    def loss(
        self, params: Params, batch: dict, key: jax.Array, step: jax.Array, frozen: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the loss (float32 scalar) and metrics of `label [B]` and what `tokenise` reads."""

    def trainable(self, frozen: bool) -> tuple[str, ...]:
        """Return names of the parameter groups that learn in this phase."""


OF_NETWORKS = {"classifier": classifier.build, "mae": masked.build}
# Of hosts that make single tokens, and of those that make whole grids.
OF_TOKENS = {"host": host_task.build, "drift": token_drift.build, "draft": drafts.build}
OF_GRIDS = {"host": grid_tasks.build, "drift": drift_grid.build}


def build(
    config: Any,
    images: model.ImageSpec,
    space: tuple[maps.Features, Any] | None = None,
) -> Task:
    """Return the task of a checked config.

    Args:
      config: checked.
      images: what the data decides.
      space: phi and its parameters, for whole grids that are to drift, or what compares an
        autoencoder's pictures; None where nothing trains, or nothing compares.
    """
    if config.task == "autoencoder":
        return autoencoder.build(config, images, space)
    if config.task in OF_NETWORKS:
        return OF_NETWORKS[config.task](config, images)
    parts = model.build(config, images)
    if parts.family.order == "grid":
        return OF_GRIDS[config.task](config, parts, space)
    return OF_TOKENS[config.task](config, parts.family.contexts(config, parts))
