"""The losses of the tasks: what reaches which parameter, and what the loss is made of."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from driftar_jax import config
from driftar_jax.heads import diffusion
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
    made = tiny.config(name, **changes)
    task = tasks.build(made, tiny.IMAGES)
    optimizer = optim.make_optimizer(made.optim, made.train.steps)
    state = jax.eval_shape(
        lambda: optim.init_state(tiny.params(task.init), optimizer, task.tracked)
    )
    for frozen in (False, True)[:phases]:
        after_step = step.make_step(
            task,
            optimizer,
            seed=0,
            frozen=frozen,
            accumulate=made.optim.accumulate,
            ema=0.9,
        )
        after, metrics = jax.eval_shape(after_step, state, tiny.batch(4))
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


def _beside(backbone, **drift):
    """The tiny Drift-AR config of a run that starts from a host, and could keep its own head."""
    made = tiny.config("drift", optim__warmup_steps=0)
    made.init_from, made.head = "somewhere", tiny.config("host").head
    made.drift.update(backbone=backbone, own_weight=0.5, own_steps=3, **drift)
    config.check(made)
    return made


def _of(made, *, frozen=False):
    """Task, loss, metrics and gradients of all groups, half-way through phase I."""
    task = tasks.build(made, tiny.IMAGES)
    loss = functools.partial(task.loss, step=jnp.int32(2), frozen=frozen)
    batch = tiny.batch(4) | {"label": np.array([0, 1, 2, 1], np.int32)}
    gradient = jax.jit(
        lambda p: jax.value_and_grad(loss, has_aux=True)(p, batch=batch, key=jax.random.key(0))
    )
    (value, metrics), grads = gradient(tiny.params(task.init))
    return task, float(value), jax.tree.map(float, metrics), grads


def test_a_frozen_backbone_stays_bit_for_bit_and_costs_no_backward_pass():
    """Neither gradient nor moments: the loop freezes what the task says stays."""
    flops, numbers = {}, {}
    for backbone in ("joint", "frozen"):
        made = _beside(backbone)
        task = tasks.build(made, tiny.IMAGES)
        globs = tuple(f"{group}.*" for group in task.stays)
        optimizer = optim.make_optimizer(made.optim, made.train.steps, globs)
        state = optim.init_state(tiny.params(task.init), optimizer, task.tracked)
        fixed = dict(seed=0, frozen=False, accumulate=1, ema=0.9, freeze=globs)
        lowered = jax.jit(step.make_step(task, optimizer, **fixed)).lower(state, tiny.batch(4))
        flops[backbone] = lowered.cost_analysis()["flops"]
        numbers[backbone] = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
    after, metrics = lowered.compile()(state, tiny.batch(4))
    assert task.trainable(False) == ("prior", "decoder", "draft") and task.stays == ("host",)
    for tree in ("params", "ema"):
        before, now = (getattr(s, tree)["host"] for s in (state, after))
        chex.assert_trees_all_equal(now, before)
    for name in task.trainable(False):
        pair = after.params[name], state.params[name]
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), *pair)
        assert max(jax.tree.leaves(moved)) > 0
    assert np.isfinite(metrics["loss"]) and flops["frozen"] < 0.8 * flops["joint"]
    host = sum(leaf.size for leaf in jax.tree.leaves(state.params["host"]))
    assert numbers["joint"] - numbers["frozen"] == 2 * host


@pytest.mark.slow  # test_own_beside trains it
def test_the_own_head_learns_beside_the_drift():
    """The loss is Eq. 9 and the own head's, in the same contexts and from one backbone call."""
    task, value, m, grads = _of(_beside("own_loss"))
    assert task.trainable(False) == ("host", "head", "prior", "decoder", "draft")
    draft = m["draft_reg"] + m["draft_entropy"]
    want = m["alpha"] * draft + (1 - m["alpha"]) * (m["drift"] + m["mu"]) + 0.5 * m["own"]
    np.testing.assert_allclose(value, want, rtol=1e-5)
    assert max(float(np.abs(g).max()) for g in jax.tree.leaves(grads["head"])) > 0
    # By the host's own task, in the contexts that this one drew.
    batch = tiny.batch(4) | {"label": np.array([0, 1, 2, 1], np.int32)}
    rows, totals = task.draw(batch, jax.random.key(0), False)
    terms = jax.jit(lambda p: task.contexts.own_terms(p, rows, totals["own"], jax.random.key(0)))
    np.testing.assert_allclose(m["own"], terms(tiny.params(task.init))[0], rtol=1e-5)
    # In the second phase the decoder alone learns, and nothing is drawn for the own head.
    assert "own" not in task.draw(batch, jax.random.key(0), True)[1]


def test_own_positives_mix_with_the_real_token():
    """The field is linear in the data: a share of it comes from the own head's draws."""
    fields = {}
    for share in (None, 1.0, 0.25):
        drawn = {} if share is None else dict(own_positives=2, own_share=share)
        task = tasks.build(_beside("frozen", **drawn), tiny.IMAGES)
        params, key = tiny.params(task.init), jax.random.key(0)
        rows, _ = task.draw(tiny.batch(4), key, True)
        x = tiny.normal(1, *rows["eps"].shape)
        y = np.take_along_axis(np.asarray(rows["tokens"]), rows["positions"][..., None], axis=1)

        @jax.jit
        def field(params, rows=rows, task=task, x=x, y=y):
            encoding = task.contexts.encode(params, rows, None)
            return task._field(params, rows, encoding, x, y, None, jnp.int32(0))

        fields[share] = field(params)
    want = 0.25 * fields[1.0] + 0.75 * fields[None]
    np.testing.assert_allclose(fields[0.25], want, atol=1e-5)
    assert np.abs(fields[1.0] - fields[None]).max() > 0.1


@pytest.mark.slow  # of one setting
def test_own_positives_take_the_guidance():
    """At scale 1 a guided draw is a plain one; above it is another."""
    task = tasks.build(_beside("frozen", own_positives=3, guidance_max=2.0), tiny.IMAGES)
    params, key = tiny.params(task.init), jax.random.key(3)
    rows, _ = task.draw(tiny.batch(4), key, True)
    encoding = task.contexts.encode(params, rows, None)
    shape = rows["positions"].shape

    @jax.jit
    def drawn(scale):
        return task._own_draws(params, rows, encoding, scale)

    plain, one, two = (drawn(s) for s in (None, jnp.ones(shape), jnp.full(shape, 2.0)))
    assert plain.shape == (*shape, 3, tiny.IMAGES.token_dim)
    np.testing.assert_allclose(one, plain, atol=1e-4)
    assert np.abs(two - plain).max() > 0.01
    assert np.abs(plain[:, :, 0] - plain[:, :, 1]).min() > 0


def test_a_matched_decoder_learns_from_two_heads_and_one_of_them_from_it():
    """The field is that of the own head and its copy, which take the draws for data."""
    task = tasks.build(_beside("frozen", field="dmd"), tiny.IMAGES)
    assert task.trainable(False) == ("prior", "decoder", "draft", "fake")
    assert task.trainable(True) == ("decoder", "fake") and task.stays == ("host", "head")
    batch = tiny.batch(4) | {"label": np.array([0, 1, 2, 1], np.int32)}
    key = jax.random.key(0)

    def by_hand(params, rows, totals):
        encoding = task.contexts.encode(params, rows, None)
        mu, std = task._prior(params, encoding, rows["prior_keys"])
        x = task._draws(params, encoding, mu, std, rows["positions"], rows["eps"], None)
        z = jnp.take_along_axis(encoding.z, rows["positions"][..., None], axis=1)[:, :, None]
        z = jnp.broadcast_to(z, (*x.shape[:3], z.shape[-1]))
        bar = jnp.asarray(diffusion.training_schedule().alphas_cumprod, jnp.float32)

        def guessed(group, t, noise):
            a = bar[t][..., None]
            x_t = jnp.sqrt(a) * x + jnp.sqrt(1 - a) * noise
            eps = task.parts.head.apply({"params": params[group]}, x_t, t, z)[0]
            return eps, (x_t - jnp.sqrt(1 - a) * eps) / jnp.sqrt(a)

        t = jnp.broadcast_to(rows["matched_t"][..., None], x.shape[:3])
        real, fake = (guessed(g, t, rows["matched_noise"])[1] for g in ("head", "fake"))
        field = (real - fake) / jnp.abs(x - real).mean(axis=(2, 3), keepdims=True)
        size = jnp.sum(jnp.square(field), axis=-1).mean(axis=-1)
        eps = guessed("fake", rows["fake_t"], rows["fake_noise"])[0]
        error = jnp.square(eps - rows["fake_noise"]).mean(axis=(-1, -2))
        weight = rows["weight"] / totals["chosen"]
        return jnp.sum(weight * size), jnp.sum(weight * error)

    @jax.jit
    def measured(params):
        rows, totals = task.draw(batch, key, False)

        def terms(params):
            loss, m = task.terms(params, rows, totals, key, jnp.int32(2), False)
            return (m["drift"], m["fake"]), (loss, m)

        _, pulled_back, found = jax.vjp(terms, params, has_aux=True)
        both = [pulled_back(side)[0] for side in ((1.0, 0.0), (0.0, 1.0))]
        return found, both, by_hand(params, rows, totals)

    (value, m), (of_drift, of_fake), (size, error) = measured(tiny.params(task.init))
    draft = m["draft_reg"] + m["draft_entropy"]
    want = m["alpha"] * draft + (1 - m["alpha"]) * (m["drift"] + m["mu"]) + m["fake"]
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(m["drift"], size, rtol=1e-3)
    assert m["fake"] > error  # the bound, which trains the variance, comes on top
    largest = {
        name: [max(float(np.abs(g).max()) for g in jax.tree.leaves(t[name])) for t in (a, b)]
        for a, b in ((of_drift, of_fake),)
        for name in ("fake", "decoder")
    }
    assert largest["fake"][0] == largest["decoder"][1] == 0
    assert min(largest["fake"][1], largest["decoder"][0]) > 1e-4


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"drift.backbone": "own"}, "drift.backbone: got 'own', allowed joint | frozen | own_loss"),
        ({"init_from": ""}, "init_from: got '', allowed the workdir of a trained host"),
        ({"drift.own_positives": 2, "drift.backbone": "joint"}, "drift.own_positives: got 2"),
        (
            {"drift.field": "dmd", "drift.backbone": "joint"},
            "drift.backbone: got 'joint', allowed frozen with drift.field dmd",
        ),
        ({"drift.field": "dmd", "init_from": ""}, "init_from: got '', allowed the workdir of"),
        (
            {"drift.field": "dmd", "drift.guidance_max": 2.0},
            "drift.guidance_max: got 2.0, allowed 1.0 with drift.field dmd",
        ),
        ({"drift.field": "dmd", "drift.fake_rate": 0.0}, "drift.fake_rate: got 0.0, allowed a"),
        ({"drift.repulsion": 1.5}, "drift.repulsion: got 1.5, allowed a number from 0 to 1.4"),
        ({"drift.field": "dmd", "head": {}}, "head.depth: got None, allowed a whole number"),
        (
            {"head": {}, "drift.backbone": "own_loss"},
            "head.depth: got None, allowed a whole number",
        ),
    ],
)
def test_a_backbone_that_cannot_be_is_named(changes, complaint):
    made = _beside("frozen")
    for name, value in changes.items():
        section, _, field = name.rpartition(".")
        (made[section] if section else made)[field] = value
    with pytest.raises(ValueError, match=re.escape(complaint)):
        config.check(made)
