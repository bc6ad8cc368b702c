"""Micro-batches are rows of one batch: the same loss, gradient and metrics however many."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import toy
from flax import linen as nn
from test_grid_tasks import task_of

from driftar_jax.training import optim, step, tasks
from driftar_jax.training.drawn import Drawn

# Rows of unequal numbers of unknown tokens, and classes of which some fill no row of images.
BATCH = tiny.batch(8) | {"label": np.array([0, 1, 1, 1, 1, 2, 2, 2], np.int32)}
KEY = jax.random.key(3)
SETTINGS = {
    "host": {"mask__law": "generation", "mask__tokens_per_image": 4, "head__copies": 2},
    "drift": {"mask__law": "generation", "drift__guidance_max": 3.0, "host__label_drop": 0.3},
    "draft": {"sample__ar_steps": 3, "teacher__unroll": 2},
}


def _task(name):
    if name in SETTINGS:
        return tasks.build(tiny.config(name, **SETTINGS[name]), tiny.IMAGES)
    return task_of("tiny" if name == "grids" else "tiny_mrar")


def _extra(task):
    if not isinstance(task, step.OwnsExtra):
        return ()
    made = jax.jit(lambda: task.update_extra(nn.unbox(task.init_extra(KEY)), BATCH, KEY))
    return (made(),)


@pytest.mark.parametrize(
    "name",
    [
        "draft",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("host", "drift", "rows of grids")),
    ],
)
def test_parts_of_a_batch_have_its_loss_together(name):
    task, parts = _task(name), 4
    draw = jax.jit(task.draw, static_argnums=2)
    rows, totals = draw(BATCH, KEY, False, *_extra(task))
    params = tiny.params(task.init)

    @jax.jit
    def terms(rows, totals):
        return task.terms(params, rows, totals, KEY, jnp.int32(2), False)

    value, metrics = terms(rows, totals)
    share = jax.tree.map(lambda a: a / parts, totals)
    made = [terms(jax.tree.map(lambda a, i=i: a[i::parts], rows), share) for i in range(parts)]
    values, several = zip(*made, strict=True)
    # Batches of their own would not: their means weigh differently.
    assert np.std(values) > 1e-3 * value
    np.testing.assert_allclose(np.mean(values), value, rtol=1e-5)
    for field, whole in metrics.items():
        mean = np.mean([m[field] for m in several])
        np.testing.assert_allclose(mean, whole, rtol=1e-5, atol=1e-6, err_msg=field)


@dataclasses.dataclass(frozen=True)
class Weighted(Drawn, toy.ToyTask):
    """The toy with drawn weights: a weighted mean of rows."""

    def draw(self, batch, key, frozen):
        pixels = batch["image"].reshape(batch["label"].shape[0], -1)[:, :4] / 255.0
        keys = jax.random.split(key)
        noisy = pixels + 0.1 * jax.random.normal(keys[0], pixels.shape)
        weight = jax.random.uniform(keys[1], batch["label"].shape) ** 4
        rows = {"x": noisy, "y": batch["label"], "weight": weight}
        return rows, {"weight": jnp.sum(weight)}

    def terms(self, params, rows, totals, key, step, frozen):
        made = sum(jnp.tanh(rows["x"] @ p["kernel"] + p["bias"][None]) for p in params.values())
        error = jnp.square(made - rows["y"][:, None]).mean(axis=1)
        loss = jnp.sum(error * rows["weight"]) / totals["weight"]
        return loss, {"size": jnp.mean(made)}


def _state_after(task, settings, parts, params):
    optimizer = optim.make_optimizer(settings.optim, 10)
    extra = None if not isinstance(task, step.OwnsExtra) else nn.unbox(task.init_extra(KEY))
    state = optim.init_state(params, optimizer, task.tracked, extra)
    made = step.make_step(task, optimizer, seed=5, frozen=False, accumulate=parts, ema=0.9)
    return jax.jit(made)(state, BATCH)


def _agree(found, want):
    """Gradients too: Adam's moments are theirs."""
    chex.assert_trees_all_close(found, want, rtol=2e-5, atol=1e-6)


def test_a_step_in_parts_is_the_step_of_the_whole():
    task, settings = Weighted(), tiny.config("drift")
    params = tiny.params(task.init)
    want = _state_after(task, settings, 1, params)
    for parts in (2, 8):
        _agree(_state_after(task, settings, parts, params), want)


class Dropping(Weighted):
    """Counts parts whose dropout would repeat numbers of the draw; keys as tasks split them."""

    def draw(self, batch, key, frozen):
        rows, totals = super().draw(batch, key, frozen)
        kept = jax.random.split(key, 8)
        kept = jnp.concatenate([jax.vmap(jax.random.key_data)(kept), *map(_children, kept)])
        return rows | {"keys": jnp.tile(kept[None], (len(rows["y"]), 1, 1))}, totals

    def terms(self, params, rows, totals, key, step, frozen):
        loss, metrics = super().terms(params, rows, totals, key, step, frozen)
        own = jnp.concatenate([jax.random.key_data(key)[None], _children(key)])
        again = (own[:, None] == rows["keys"][0][None]).all(axis=-1)
        return loss, metrics | {"again": again.sum().astype(jnp.float32)}


def _children(key):
    return jax.vmap(jax.random.key_data)(jax.random.split(key, 8))


def test_parts_draw_no_numbers_of_the_step_again():
    task, settings = Dropping(), tiny.config("drift")
    _, metrics = _state_after(task, settings, 4, tiny.params(task.init))
    assert metrics["again"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SETTINGS, "grids", "rows of grids"])
def test_every_task_makes_the_same_step_in_parts(name):
    task, settings = _task(name), tiny.config("drift", optim__lr=1e-3)
    params = tiny.params(task.init)
    (one, said), (four, again) = (_state_after(task, settings, n, params) for n in (1, 4))
    _agree(again, said)
    _agree(four.opt_state, one.opt_state)
