"""A task of a few numbers, so that tests of the step and the loop compile in no time."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

GROUPS = ("host", "prior", "decoder", "draft")


@dataclasses.dataclass(frozen=True)
class ToyTask:
    """Drift-AR's groups and phases on a linear model of the pixels; random like the real one.

    `bad_step` is the step whose loss is not a number.
    """

    freeze_step: int | None = None
    bad_step: int = -1
    tracked: tuple[str, ...] = ("size",)

    def init(self, key):
        init = nn.with_logical_partitioning(nn.initializers.normal(0.3), ("embed", "mlp"))
        return {
            name: {
                "kernel": init(jax.random.fold_in(key, i), (4, 2)),
                "bias": jnp.full(2, 0.1 * i, jnp.float32),
            }
            for i, name in enumerate(GROUPS)
        }

    def trainable(self, frozen):
        return ("decoder",) if frozen else GROUPS

    def loss(self, params, batch, key, step, frozen):
        pixels = batch["image"].reshape(batch["label"].shape[0], -1)[:, :4] / 255.0
        noisy = pixels + 0.1 * jax.random.normal(key, pixels.shape)
        made = [noisy @ p["kernel"] + p["bias"][None] for p in params.values()]
        error = sum(made) - batch["label"][:, None]
        loss = jnp.mean(jnp.square(error))
        loss = jnp.where(step == self.bad_step, jnp.nan, loss)
        metrics = {"size": jnp.mean(jnp.abs(made[0]))}
        return loss, metrics if frozen else metrics | {"first_phase": jnp.mean(error)}


@dataclasses.dataclass(frozen=True)
class AsideTask(ToyTask):
    """A toy one of whose groups training alone needs."""

    @property
    def aside(self):
        return {"draft": "host"}

    @property
    def rates(self):
        return {"draft": 3.0}
