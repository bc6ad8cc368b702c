"""One training step: what learns in which phase, accumulation, averages, weight decay."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
import toy
from flax import linen as nn

from driftar_jax.training import freezing, optim, step

SEED, EMA, TASK = 5, 0.75, toy.ToyTask()
SECTION = tiny.config("drift", optim__warmup_steps=0, optim__weight_decay=0.3).optim
OPTIMIZER = optim.make_optimizer(SECTION, steps=10)


@functools.cache
def _step(frozen=False, accumulate=1):
    made = step.make_step(TASK, OPTIMIZER, seed=SEED, frozen=frozen, accumulate=accumulate, ema=EMA)
    return jax.jit(made)


@pytest.fixture
def state():
    return _fresh()


@jax.jit
def _fresh():
    params = nn.meta.unbox(TASK.init(jax.random.key(0)))
    return optim.init_state(params, OPTIMIZER, TASK.tracked)


_updates = jax.jit(OPTIMIZER.update)


def _moved(before, after):
    """Largest change of each parameter group."""
    gaps = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max()), before, after)
    return {name: max(jax.tree.leaves(group)) for name, group in gaps.items()}


def test_phase_two_moves_the_decoder_and_not_one_bit_of_the_rest(state):
    for seed in range(2):
        before = state
        state, metrics = _step()(state, tiny.batch(6, seed))
        assert min(_moved(before.params, state.params).values()) > 1e-5
    assert "first_phase" in metrics
    fixed = state.params
    for seed in range(2):
        state, metrics = _step(frozen=True)(state, tiny.batch(6, seed))
    moved = _moved(fixed, state.params)
    assert moved.pop("decoder") > 1e-4
    assert moved == {"host": 0.0, "prior": 0.0, "draft": 0.0}
    assert "first_phase" not in metrics and int(state.step) == 4
    # Without the freeze these would have moved: momentum and weight decay are there.
    zero = jax.tree.map(np.zeros_like, state.params)
    updates, _ = _updates(zero, state.opt_state, state.params)
    assert min(_moved(zero, updates).values()) > 1e-5


def test_accumulation_averages_the_gradients_of_its_parts(state):
    batch = tiny.batch(6)
    found, metrics = _step(accumulate=3)(state, batch)
    of_step = jax.random.fold_in(jax.random.key(SEED), 0)
    keys = jax.random.split(jax.random.fold_in(of_step, step.PARTS), 3)
    gradient = jax.jit(jax.value_and_grad(TASK.loss, has_aux=True), static_argnums=4)
    parts = [jax.tree.map(lambda a, i=i: a[i::3], batch) for i in range(3)]
    made = [
        gradient(state.params, part, key, state.step, False)
        for part, key in zip(parts, keys, strict=True)
    ]
    grads = jax.tree.map(lambda *g: np.mean(g, axis=0), *(g for _, g in made))
    np.testing.assert_allclose(metrics["loss"], np.mean([v[0] for v, _ in made]), rtol=1e-5)
    np.testing.assert_allclose(metrics["size"], np.mean([v[1]["size"] for v, _ in made]), rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], optax.global_norm(grads), rtol=1e-5)
    updates, _ = _updates(grads, state.opt_state, state.params)
    want = jax.tree.map(np.add, state.params, updates)
    chex.assert_trees_all_close(found.params, want, atol=1e-6)
    whole = _step()(state, batch)[1]
    np.testing.assert_allclose(metrics["loss"], whole["loss"], rtol=0.2)


class Quiet(toy.ToyTask):
    """The toy without noise: a mean of rows that draw nothing."""

    def loss(self, params, batch, key, step, frozen):
        pixels = batch["image"].reshape(batch["label"].shape[0], -1)[:, :4] / 255.0
        made = sum(jnp.tanh(pixels @ p["kernel"] + p["bias"][None]) for p in params.values())
        loss = jnp.mean(jnp.square(made - batch["label"][:, None]))
        return loss, {"size": jnp.mean(made)}


def test_accumulation_is_the_large_batch_where_rows_draw_nothing(state):
    batch, found = tiny.batch(12), {}
    for parts in (1, 2, 6):
        made = step.make_step(
            Quiet(), OPTIMIZER, seed=SEED, frozen=False, accumulate=parts, ema=EMA
        )
        found[parts] = jax.jit(made)(state, batch)
    for parts in (2, 6):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            found[parts],
            found[1],
        )


def test_each_step_draws_its_own_randomness(state):
    batch = tiny.batch(6)
    one = _step()(state, batch)[1]["loss"]
    assert one != _step()(state.replace(step=jnp.int32(1)), batch)[1]["loss"]
    assert one == _step()(state, batch)[1]["loss"]


def test_the_average_and_the_running_means_follow(state):
    sizes = []
    for seed in range(3):
        before = state
        state, metrics = _step()(state, tiny.batch(6, seed))
        want = jax.tree.map(
            lambda e, p: EMA * np.asarray(e) + (1 - EMA) * np.asarray(p), before.ema, state.params
        )
        chex.assert_trees_all_close(state.ema, want, atol=1e-7)
        assert max(_moved(before.ema, state.ema).values()) > 1e-5
        sizes.append(float(metrics["size"]))
    np.testing.assert_allclose(state.tracked["size"], np.mean(sizes), rtol=1e-5)
    late = state.replace(step=jnp.int32(10_000))
    after, metrics = _step()(late, tiny.batch(6))
    want = step.TRACK_DECAY * late.tracked["size"] + (1 - step.TRACK_DECAY) * metrics["size"]
    np.testing.assert_allclose(after.tracked["size"], want, rtol=1e-5)


def test_gradients_are_clipped_to_the_norm_of_the_config(state):
    batch = tiny.batch(6)
    batch["label"] = batch["label"] + 1000
    after, metrics = _step()(state, batch)
    assert metrics["grad_norm"] > 100 * SECTION.clip
    norm = optax.global_norm(after.opt_state[1][0].mu)
    np.testing.assert_allclose(norm, (1 - optim.B1) * SECTION.clip, rtol=1e-4)


def test_weight_decay_spares_vectors_and_the_head():
    params = {
        "host": {
            "kernel": np.ones((2, 3)),
            "bias": np.ones(3),
            "scale": np.ones(3),
            "class_emb": np.ones((3, 2)),
            "qkv": {"bias": np.ones((3, 2, 2))},
        },
        "head": {"kernel": np.ones((2, 3)), "bias": np.ones(3)},
    }
    assert optim.decay_mask(params) == {
        "host": {
            "kernel": True,
            "bias": False,
            "scale": False,
            "class_emb": True,
            "qkv": {"bias": False},
        },
        "head": {"kernel": False, "bias": False},
    }
    params = jax.tree.map(np.float32, params)
    zero = jax.tree.map(np.zeros_like, params)
    updates, _ = _updates(zero, jax.jit(OPTIMIZER.init)(params), params)
    shrunk = jax.tree.map(lambda u: float(np.abs(u).max()), updates)
    np.testing.assert_allclose(shrunk["host"]["kernel"], SECTION.lr * 0.3, rtol=1e-5)
    assert shrunk["host"]["bias"] == 0 and max(shrunk["head"].values()) == 0


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("warmup", [0, 4])
def test_learning_rate_rises_then_holds_or_falls_to_zero(schedule, warmup):
    rate = optim.learning_rate(0.1, schedule=schedule, warmup_steps=warmup, steps=20)
    found = np.asarray(jax.jit(jax.vmap(rate))(np.arange(21)))
    np.testing.assert_allclose(found[:warmup], 0.1 * np.arange(warmup) / 4, atol=1e-7)
    if schedule == "constant":
        np.testing.assert_allclose(found[warmup:], 0.1, rtol=1e-6)
    else:
        share = np.arange(21 - warmup) / (20 - warmup)
        np.testing.assert_allclose(found[warmup:], 0.05 * (1 + np.cos(np.pi * share)), atol=1e-7)


FREEZE = ("host.*", "*.bias")


def test_what_is_frozen_stays_bit_for_bit_and_has_no_moments():
    section = tiny.config("drift", optim__warmup_steps=0, optim__freeze=",".join(FREEZE)).optim
    optimizer = optim.make_optimizer(section, steps=10)
    params = nn.meta.unbox(TASK.init(jax.random.key(0)))
    params["host"]["kernel"] = params["host"]["kernel"].at[0].set(-0.0)  # plus 0 is another bit
    before = state = optim.init_state(params, optimizer, TASK.tracked)
    for accumulate in (1, 3):
        made = step.make_step(
            TASK, optimizer, seed=SEED, frozen=False, accumulate=accumulate, ema=EMA, freeze=FREEZE
        )
        state, metrics = jax.jit(made)(state, tiny.batch(6))
    assert float(metrics["grad_norm"]) > 0
    for group, tree in state.params.items():
        for name, leaf in tree.items():
            stays = group == "host" or name == "bias"
            for old, new in ((before.params, leaf), (before.ema, state.ema[group][name])):
                same = np.asarray(old[group][name]).tobytes() == np.asarray(new).tobytes()
                assert same == stays, (group, name)
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert shapes == [(4, 2)] * 6  # two moments of three kernels


def test_the_others_learn_as_if_the_frozen_were_numbers():
    """The gradient, its norm and the update are those of a loss of the other parameters alone."""
    section = tiny.config("drift", optim__warmup_steps=0, optim__freeze="host.*").optim
    optimizer = optim.make_optimizer(section, steps=10)
    params = nn.meta.unbox(TASK.init(jax.random.key(0)))
    state, batch = optim.init_state(params, optimizer, TASK.tracked), tiny.batch(6)
    made = step.make_step(
        TASK, optimizer, seed=SEED, frozen=False, accumulate=1, ema=EMA, freeze=("host.*",)
    )
    found, metrics = jax.jit(made)(state, batch)
    rest = {name: tree for name, tree in params.items() if name != "host"}
    key = jax.random.fold_in(jax.random.key(SEED), 0)

    def loss(rest):
        return TASK.loss({"host": params["host"], **rest}, batch, key, 0, False)[0]

    grads = jax.grad(loss)(rest)
    np.testing.assert_allclose(metrics["grad_norm"], optax.global_norm(grads), rtol=1e-5)
    plain = optim.make_optimizer(tiny.config("drift", optim__warmup_steps=0).optim, steps=10)
    updates, _ = plain.update(grads, plain.init(rest), rest)
    want = optax.apply_updates(rest, updates)
    moved = {name: found.params[name] for name in rest}
    chex.assert_trees_all_close(moved, want, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hots.*", "optim.freeze: got 'hots.*', allowed globs that name parameters, of 8 such as"),
        ("host.kernels", "(did you mean 'host.kernel'?)"),
        ("*", "optim.freeze: got '*', allowed globs that leave something of host, prior"),
        ("decoder.*", "allowed globs that leave something of decoder to learn"),
    ],
)
def test_a_glob_that_freezes_nothing_or_all_is_refused(text, said):
    params = jax.eval_shape(TASK.init, jax.random.key(0))
    with pytest.raises(ValueError) as refused:
        freezing.check(freezing.globs(text), params, (TASK.trainable(False), TASK.trainable(True)))
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_group_beside_has_its_own_rate_and_no_average():
    task, batch = toy.AsideTask(), tiny.batch(6)
    params = nn.meta.unbox(TASK.init(jax.random.key(0)))
    fixed = dict(seed=SEED, frozen=False, accumulate=1, ema=EMA)
    moved = {}
    for one in (TASK, task):
        aside = getattr(one, "aside", ())
        state = optim.init_state(params, OPTIMIZER, one.tracked, aside=aside)
        after, _ = jax.jit(step.make_step(one, OPTIMIZER, **fixed))(state, batch)
        assert set(after.ema) == set(state.ema) == set(params) - set(aside)
        moved[one] = jax.tree.map(lambda a, b: np.subtract(a, b), after.params, params)
    for name, tree in moved[task].items():
        times = 3.0 if name == "draft" else 1.0
        want = jax.tree.map(lambda a, times=times: times * a, moved[TASK][name])
        chex.assert_trees_all_close(tree, want, rtol=1e-3)
