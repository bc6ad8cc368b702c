"""The losses of the tasks: what reaches which parameter, and what the loss is made of."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from driftar_jax.training import optim, step, tasks


def _task(name, **changes):
    return tasks.build(tiny.config(name, **changes), tiny.IMAGES)


@functools.cache
def _gradients(name, **changes):
    """Loss, metrics and gradients at random parameters, half-way through phase I."""
    task = _task(name, **changes)
    loss = functools.partial(task.loss, step=jnp.int32(2), frozen=False)
    batch = tiny.batch(4) | {"label": np.array([0, 1, 2, 1], np.int32)}
    gradient = jax.jit(
        lambda p: jax.value_and_grad(loss, has_aux=True)(p, batch=batch, key=jax.random.key(0))
    )
    params = tiny.params(task.init)
    (value, metrics), grads = gradient(params)
    return float(value), jax.tree.map(float, metrics), grads


@pytest.mark.parametrize(
    ("name", "quiet"),
    [
        ("drift", {"host.fake_latent"}),
        pytest.param("host", {"host.fake_latent"}, marks=pytest.mark.slow),
    ],
)
def test_the_loss_reaches_every_parameter(name, quiet):
    """All but the unconditional embedding, where the key drops no label."""
    _, _, grads = _gradients(name)
    without = {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
        if not np.abs(leaf).max() > 0
    }
    assert without == quiet
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_the_drift_loss_is_equation_9():
    value, m, _ = _gradients("drift")
    np.testing.assert_allclose(m["alpha"], 0.95 * (1 - 2 / 5), rtol=1e-6)
    draft = m["draft_reg"] + m["draft_entropy"]
    want = m["alpha"] * draft + (1 - m["alpha"]) * (m["drift"] + m["mu"])
    np.testing.assert_allclose(value, want, rtol=1e-5)
    assert min(m["draft_reg"], m["draft_entropy"], m["drift"], m["mu"]) > 0
    assert 0 < m["entropy_mean"] ** 2 <= m["entropy_square"] <= 1 and 0 < m["sigma_mean"] <= 0.5


def test_the_drift_may_read_the_entropy_without_shaping_it():
    value, _, grads = _gradients("drift")
    same, _, without = _gradients("drift", drift__entropy_gradient=False)
    np.testing.assert_allclose(same, value, rtol=1e-6)
    for name in ("decoder", "prior", "draft"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            without[name],
            grads[name],
        )
    far = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), without["host"], grads["host"])
    assert max(jax.tree.leaves(far)) > 1e-3


ACCUMULATED = {"optim__accumulate": 2}
FEW_SHORT = {
    "mask__law": "mar",
    "mask__tokens_per_image": 2,
    "host__dtype": "bfloat16",
    "host__attention_dropout": 0.1,
}


@pytest.mark.parametrize(
    ("name", "phases", "changes"),
    [
        pytest.param("host", 1, ACCUMULATED, id="host-accumulated"),
        pytest.param("drift", 2, FEW_SHORT, id="drift-few bfloat16 tokens"),
        pytest.param("drift", 2, ACCUMULATED, id="drift-accumulated", marks=pytest.mark.slow),
        pytest.param("host", 1, FEW_SHORT, id="host-few bfloat16 tokens", marks=pytest.mark.slow),
    ],
)
def test_settings_keep_the_types_of_the_state(name, phases, changes):
    """Traced, not run: a step that changed a type would compile again at every call."""
    config = tiny.config(name, **changes)
    task = tasks.build(config, tiny.IMAGES)
    optimizer = optim.make_optimizer(config.optim, config.train.steps)
    state = jax.eval_shape(
        lambda: optim.init_state(tiny.params(task.init), optimizer, task.tracked)
    )
    for frozen in (False, True)[:phases]:
        made = step.make_step(
            task,
            optimizer,
            seed=0,
            frozen=frozen,
            accumulate=config.optim.accumulate,
            ema=0.9,
        )
        after, metrics = jax.eval_shape(made, state, tiny.batch(4))
        same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, after)
        assert all(jax.tree.leaves(same))
        assert all(m.shape == () and m.dtype == jnp.float32 for m in metrics.values())


def test_the_classifier_is_scored_by_cross_entropy():
    task = _task("classifier")
    params, batch = tiny.params(task.init), tiny.batch(5)
    loss = jax.jit(functools.partial(task.loss, frozen=False))
    value, metrics = loss(params, batch, jax.random.key(1), jnp.int32(0))
    pixels = batch["image"] / 127.5 - 1.0
    pixels = pixels + 0.1 * np.asarray(jax.random.normal(jax.random.key(1), pixels.shape))
    variables = {"params": params["classifier"]}
    logits = np.asarray(task.module.apply(variables, jnp.asarray(pixels, jnp.float32))[1])
    log = np.asarray(logits, np.float64)
    log = log - np.log(np.exp(log).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(value, -log[np.arange(5), batch["label"]].mean(), rtol=1e-4)
    assert metrics["accuracy"] == np.mean(logits.argmax(axis=1) == batch["label"])
