"""The flow head's losses, grid and sampler against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from driftar_jax.heads import flow_token

N, C, D, W, S = 3, 2, 5, 6, 4
HEAD = flow_token.FlowTokenHead(C, W, 2)


@pytest.fixture(scope="module")
def params():
    made = tiny.params(HEAD.init, tiny.normal(0, N, C), tiny.normal(0, N), tiny.normal(1, N, D))
    return made["params"]


def test_a_fresh_head_predicts_zero():
    x, t, c = tiny.normal(0, N, C), tiny.normal(1, N), tiny.normal(2, N, D)
    out, _ = jax.jit(HEAD.init_with_output)(jax.random.key(0), x, t, c)
    np.testing.assert_array_equal(out, np.zeros((N, C)))


def test_loss_is_zero_for_the_true_velocity():
    target, noise, u = tiny.normal(0, N, C), tiny.normal(1, N, C), tiny.normal(2, N)
    seen = {}

    def velocity(x, t):
        seen.update(x=x, t=t)
        return target - noise

    assert (flow_token.flow_loss(velocity, target, noise, u) == 0).all()
    t = 1 / (1 + np.exp(-np.asarray(u, np.float64)))[:, None]
    np.testing.assert_allclose(seen["x"], t * target + (1 - t) * noise, atol=1e-6)
    rows = flow_token.flow_loss(lambda x, t: jnp.zeros_like(x), target, noise, u)
    np.testing.assert_allclose(rows, np.mean((target - noise) ** 2, axis=-1), rtol=1e-6)


def test_masked_mean():
    loss, mask = jnp.array([1.0, 5.0, 9.0]), jnp.array([1.0, 0.0, 1.0])
    assert flow_token.masked_mean(loss, mask) == 5.0
    assert flow_token.masked_mean(loss, mask, 2.0) == 2.5
    assert flow_token.masked_mean(loss, np.zeros(3)) == 0.0


def test_grid_shifts_the_times_but_not_the_last_step():
    t, last = flow_token.grid(S, 3.2)
    assert t[0] == 0 and last == flow_token.LAST_STEP
    np.testing.assert_allclose(t[-1], 0.96 / (3.2 - 2.2 * 0.96), rtol=1e-6)
    assert 0.92 < t[-1] + last < 0.93
    plain, _ = flow_token.grid(S)
    np.testing.assert_allclose(plain, np.linspace(0, 0.96, S), atol=1e-7)
    same, corrected = flow_token.grid(S, 3.2, corrected=True)
    np.testing.assert_array_equal(same, t)
    assert same[-1] + corrected == 1.0
    assert flow_token.grid(1)[0].tolist() == [0.0]


@pytest.mark.parametrize(
    ("field", "kwargs"),
    [("steps", {"steps": 0}), ("shift", {"shift": 0.0}), ("last", {"last": 1.0})],
)
def test_bad_grids_name_the_field(field, kwargs):
    with pytest.raises(ValueError, match=f"^{field}: got"):
        flow_token.grid(**{"steps": S, **kwargs})


def test_noise_is_shared_row_by_row():
    draws = tiny.normal(0, S, 2, C)
    rows = flow_token.shared_noise(draws, 6)
    for i in range(6):
        np.testing.assert_array_equal(rows[:, i], draws[:, i % 2])
    with pytest.raises(ValueError, match="^noise_repeat: got 2, allowed divisors of 3"):
        flow_token.shared_noise(draws, 3)


@pytest.mark.parametrize("branches", [1, 2, 3])
def test_sampler_is_the_plain_loop(params, branches):
    """The drift as published, with the score's division, in float64."""
    c, noises = tiny.normal(3, branches * N, D), tiny.normal(4, S, N, C)
    scales = (None, None), (2.5, None), (2.5, 1.7)
    guidance, guidance_image = scales[branches - 1]
    got = jax.jit(
        lambda p, c: flow_token.flow_sample(
            HEAD,
            p,
            c,
            lambda draw: jnp.asarray(noises)[draw],
            steps=S,
            shift=1.5,
            guidance=guidance,
            guidance_image=guidance_image,
        )
    )(params, c)
    t, last = flow_token.grid(S, 1.5)
    look = jax.jit(lambda x, t: HEAD.apply({"params": params}, x, t, c))

    def velocity(x, t):
        rows = jnp.tile(jnp.asarray(x, jnp.float32), (branches, 1))
        v = np.asarray(look(rows, jnp.full(branches * N, t, jnp.float32)), np.float64)
        v = v.reshape(branches, N, C)
        if branches == 1:
            return v[0]
        if branches == 2:
            return v[1] + guidance * (v[0] - v[1])
        return v[2] + guidance_image * (v[1] - v[2]) + guidance * (v[0] - v[1])

    x = np.asarray(noises[0], np.float64)
    for j in range(S - 1):
        dt, v = float(t[j + 1] - t[j]), velocity(x, t[j])
        score = (t[j] * v - x) / (1 - t[j])
        x = x + (v + (1 - t[j]) * score) * dt + np.sqrt(2 * (1 - t[j]) * dt) * noises[j + 1]
    np.testing.assert_allclose(got, x + last * velocity(x, t[-1]), atol=2e-5)


def test_impossible_branches_name_the_field(params):
    def sample(rows, **kwargs):
        flow_token.flow_sample(
            HEAD, params, tiny.normal(0, rows, D), lambda d: d, steps=2, **kwargs
        )

    with pytest.raises(ValueError, match="^guidance: got None"):
        sample(N, guidance_image=2.0)
    with pytest.raises(ValueError, match="^c: got 3 rows, allowed a multiple of 2"):
        sample(3, guidance=2.0)
