"""TransDiff's velocity network, its loss and its sampler, on problems with known answers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn
from tiny import normal

from driftar_jax.heads import flow

NET = flow.VelocityNet(token_dim=3, num_tokens=5, width=8, depth=2, num_heads=2)


X, T, C = normal(0, 2, 5, 3), jnp.array([0, 700]), normal(1, 2, 4, 6)


@functools.cache
def call(net=NET, method=None):
    """`net.apply(params, ...)`, compiled once for each method."""
    return jax.jit(lambda params, *args: net.apply({"params": params}, *args, method=method))


@pytest.fixture(scope="module")
def params():
    """Drawn, not fresh: a fresh output layer is zero."""
    return tiny.params(NET.init, X, T, C, scale=0.4)["params"]


def test_a_fresh_network_predicts_zero():
    fresh = nn.unbox(jax.jit(NET.init)(jax.random.key(0), X, T, C)["params"])
    np.testing.assert_array_equal(call()(fresh, X, T, C), np.zeros_like(X))


def test_the_hoisted_parts_give_the_whole(params):
    whole = call()(params, X, T, C)
    condition = call(method="condition")(params, C)
    time = call(method="embed_time")(params, jnp.array([0, 350, 700]))
    chosen = jax.tree.map(lambda rows: rows[jnp.array([0, 2])], time)
    velocity = call(method="velocity")
    np.testing.assert_allclose(velocity(params, X, chosen, condition), whole, atol=1e-4)
    one = jax.tree.map(lambda rows: rows[2:], time)  # one time for all grids
    np.testing.assert_allclose(velocity(params, X, one, condition)[1], whole[1], atol=1e-4)


def test_grids_do_not_meet_but_their_tokens_do(params):
    run = functools.partial(call(), params)
    difference = np.abs(run(tiny.changed(X, (1, 4), by=1.0), T, C) - run(X, T, C))
    assert difference[0].max() == 0 and difference[1].min(axis=-1).max() > 0
    assert difference[1, 0].max() > 1e-3


def test_rounding_the_time_changes_little(params):
    exact, near = (call(net)(params, X, T, C) for net in (NET, NET.clone(rounded_time=True)))
    assert 0 < np.abs(exact - near).max() < 0.05


def test_wrong_grids_are_named(params):
    with pytest.raises(ValueError, match="x: got shape"):
        call()(params, X[:, :4], T, C)
    with pytest.raises(ValueError, match="num_heads: got 3"):
        jax.eval_shape(NET.clone(num_heads=3).init, jax.random.key(0), X, T, C)


# --- loss --------------------------------------------------------------------------------------


def test_loss_by_hand():
    """Against a loop in float64, with a network that is a formula."""
    x, noise, u = normal(2, 4, 5, 3), normal(3, 4, 5, 3), jnp.array([0.0, 0.25061, 0.5, 0.99999])
    loss = flow.flow_loss(lambda x_t, t: x_t * t[:, None, None], x, u, noise)
    for i, k in enumerate((0, 250, 500, 999)):
        clean, eps = np.float64(x[i]), np.float64(noise[i])
        x_t = (1 - k / 1000) * clean + k / 1000 * eps
        want = np.mean((x_t * k - (eps - clean)) ** 2)
        np.testing.assert_allclose(loss[i], want, rtol=1e-5)


def test_a_perfect_network_has_no_loss():
    x, noise = normal(2, 4, 5, 3), normal(3, 4, 5, 3)
    loss = flow.flow_loss(lambda x_t, t: noise - x, x, jnp.array([0.1, 0.4, 0.6, 1.0]), noise)
    np.testing.assert_array_equal(loss, 0)


def test_times_are_logit_normal():
    u = np.asarray(flow.times(normal(4, 4000)))
    assert ((u > 0) & (u < 1)).all()
    np.testing.assert_allclose(np.log(u / (1 - u)).std(), 1.0, atol=0.05)


# --- sampler -----------------------------------------------------------------------------------


def test_time_grid():
    grid = flow.time_grid(25)
    assert grid.dtype == np.float32 and len(grid) == 25 and grid[0] == 1.0
    np.testing.assert_allclose(grid[-1], 0.04)
    np.testing.assert_allclose(np.diff(grid), -0.96 / 24, atol=1e-6)
    with pytest.raises(ValueError, match="steps: got 1, allowed at least 2"):
        flow.time_grid(1)


def test_drift_is_the_published_one():
    """With the score in it, as the program has it: d = v - t s."""
    x, v, t = normal(5, 2, 5, 3), normal(6, 2, 5, 3), 0.3
    score = (-(1 - t) * v - x) / t
    step = flow.reverse_step(x, v, t, -0.1, normal(7, 2, 5, 3), 0.9, 0.8)
    want = x - 0.1 * 0.9 * (v - t * score) + 0.8 * np.sqrt(2 * t * 0.1) * normal(7, 2, 5, 3)
    np.testing.assert_allclose(step, want, atol=1e-6)


def loop(params, c, start, noises, guidance=1.0, c_uncond=None, drift=1.0, spread=1.0):
    """The sampler as section 6 of the program's description words it, step by step."""
    run = functools.partial(call(), params)
    steps = len(noises) + 1
    grid = np.linspace(1.0, 0.04, steps)
    x = start
    for i, t in enumerate(grid):
        tau = jnp.full(len(x), 1000 * t)
        v = run(x, tau, c)
        if guidance != 1.0:
            free = run(x, tau, c_uncond)
            v = free + guidance * (v - free)
        d = (2 - t) * v + x
        if i < steps - 1:
            dt = 0.96 / (steps - 1)
            x = x - drift * dt * d + spread * np.sqrt(2 * t * dt) * noises[i]
        else:
            x = x - 0.04 * d
    return x


@pytest.mark.parametrize(
    "asked",
    [
        dict(),
        dict(guidance=1.7),
        dict(drift=0.9, spread=0.8),
    ],
    ids=["plain", "guided", "scaled"],
)
def test_sampler_against_a_loop(params, asked):
    noises, c_uncond = normal(8, 3, 2, 5, 3), normal(9, 2, 4, 6)
    guidance = asked.get("guidance")
    sample = functools.partial(
        flow.flow_sample,
        NET,
        steps=4,
        guidance=guidance,
        c_uncond=None if guidance is None else c_uncond,
        scale_drift=asked.get("drift", 1.0),
        scale_noise=asked.get("spread", 1.0),
    )
    got = jax.jit(lambda params: sample(params, C, X, lambda step: jnp.asarray(noises)[step]))(
        params
    )
    np.testing.assert_allclose(
        got, loop(params, C, X, noises, c_uncond=c_uncond, **asked), atol=1e-4
    )


def test_guidance_needs_its_other_branch(params):
    with pytest.raises(ValueError, match="c_uncond: got None"):
        flow.flow_sample(NET, params, C, X, lambda step: X, steps=2, guidance=2.0)


def test_samples_follow_a_known_distribution():
    """The exact velocity of normal data: the sampler must land on its mean and spread."""

    class Exact:
        """v = E[noise - x0 | x_t] for x0 ~ N(0.7, 0.5^2), one number at a time."""

        def apply(self, variables, *args, method):
            if method == "condition":
                return ()
            if method == "embed_time":
                (t,) = args
                return t[:, None] / 1000
            x, t, _ = args
            t = t[:, :, None]
            variance = (1 - t) ** 2 * 0.25 + t**2
            error = x - (1 - t) * 0.7
            return (t - (1 - t) * 0.25) / variance * error - 0.7

    start = normal(10, 4000, 1, 1)
    made = flow.flow_sample(
        Exact(),
        {},
        jnp.zeros((4000, 1, 1)),
        start,
        lambda step: jax.random.normal(jax.random.fold_in(jax.random.key(11), step), start.shape),
        steps=100,
    )
    # 0.04 of the noise is taken off beyond the clean value, which costs a little of the spread.
    np.testing.assert_allclose(made.mean(), 0.7, atol=0.03)
    np.testing.assert_allclose(made.std(), 0.5, atol=0.03)
