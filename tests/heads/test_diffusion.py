"""The diffusion head: network, process, loss and sampler against slower roads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from driftar_jax.heads import diffusion

C, D, W, ROWS = 3, 5, 16, 6


def _head(seed=0, **kwargs):
    """A head whose zero-initialised layers are random, so that every part matters."""
    head = diffusion.DiffusionHead(C, W, 2, **kwargs)
    x, t, z = jnp.ones((ROWS, C)), jnp.arange(ROWS), jnp.ones((ROWS, D))
    return head, tiny.params(head.init, x, t, z, seed=seed)["params"]


def _inputs(seed=3):
    x, z, noise = (tiny.normal(seed + i, ROWS, n) for i, n in enumerate((C, D, C)))
    return x, np.array([0, 3, 999, 500, 0, 71], np.int32), z, noise


@functools.cache
def _compiled(head):
    return jax.jit(head.apply)


def _sample(head, params, z, noise, **options):
    """`head_sample` compiled."""
    return jax.jit(lambda p, z: diffusion.head_sample(head, p, z, noise, **options))(params, z)


def test_fresh_head_predicts_nothing():
    head = diffusion.DiffusionHead(C, W, 2)
    x, t, z, _ = _inputs()
    params = jax.jit(head.init)(jax.random.key(0), x, t, z)
    eps, v = _compiled(head)(params, x, t, z)
    assert (eps == 0).all() and (v == 0).all()


def test_leading_axes_broadcast():
    head, params = _head()
    x, t, z, _ = _inputs()
    variables = {"params": params}
    apply = _compiled(head)
    whole, _ = apply(variables, x, np.full(ROWS, 71), z)
    scalar, _ = apply(variables, x, jnp.int32(71), z)
    np.testing.assert_allclose(scalar, whole, atol=1e-6)
    copies, _ = apply(variables, np.stack([x, 2 * x]), t, z)
    assert copies.shape == (2, ROWS, C)
    want, _ = apply(variables, 2 * x, t, z)
    np.testing.assert_allclose(np.asarray(copies)[1], want, atol=1e-6)


def test_bfloat16_outputs_float32():
    head, params = _head(dtype=jnp.bfloat16)
    x, t, z, _ = _inputs()
    assert all(a.dtype == jnp.float32 for a in _compiled(head)({"params": params}, x, t, z))


def test_training_schedule_clips_only_the_last_beta():
    s = diffusion.training_schedule()
    assert s.num_steps == 1000 and s.betas.dtype == np.float64
    assert (s.betas[:-1] < 0.999).all() and s.betas[-1] == 0.999
    np.testing.assert_allclose(s.alphas_cumprod[0], 0.9999587, atol=1e-7)
    np.testing.assert_allclose(np.sqrt(s.alphas_cumprod[-1]), 4.93e-5, rtol=1e-3)


def test_respacing_keeps_both_ends():
    hundred = diffusion.respaced_schedule(100).timestep_map
    np.testing.assert_array_equal(hundred[:8], [0, 10, 20, 30, 40, 50, 61, 71])
    assert hundred[-1] == 999 and len(hundred) == 100
    np.testing.assert_array_equal(diffusion.respaced_schedule("1,2").timestep_map, [0, 500, 999])
    np.testing.assert_array_equal(diffusion.respaced_schedule("0,1").timestep_map, [500])
    all_steps = diffusion.respaced_schedule(1000)
    np.testing.assert_allclose(all_steps.betas, diffusion.training_schedule().betas, rtol=1e-9)


@pytest.mark.parametrize("steps", [0, -1, 1001, "0,0", "501,1", "a", "1,,1"])
def test_impossible_respacings_are_refused(steps):
    with pytest.raises(ValueError, match="^steps: got"):
        diffusion.respaced_schedule(steps)


@pytest.mark.parametrize("steps", [1, 2, "0,0,0,0,0,0,0,0,0,1"])
def test_few_steps_stay_finite(steps):
    head, params = _head()
    schedule = diffusion.respaced_schedule(steps)
    for table in vars(schedule).values():
        assert np.isfinite(table).all()
    _, _, z, noise = _inputs()
    out = _sample(head, params, z, lambda s: noise, schedule=schedule)
    assert np.isfinite(out).all()
    if steps == 1:  # timestep 0: next to nothing is removed
        np.testing.assert_allclose(out, noise, atol=0.1)


def test_loss_matches_a_float64_loop():
    schedule = diffusion.training_schedule()
    x0, t, _, noise = _inputs()
    # Both tails of the discretised likelihood.
    x0 = tiny.changed(x0, 0, to=np.array([1.5, -1.5, 0.2]))
    eps, v = 0.9 * noise + 0.1, 0.3 * x0
    terms = jax.jit(
        lambda: diffusion.head_loss_terms(lambda x, s: (eps, v), schedule, x0, t, noise)
    )()
    cdf = lambda u: 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))  # noqa: E731
    for r in range(ROWS):
        k, total = int(t[r]), 0.0
        beta, bar = schedule.betas[k], schedule.alphas_cumprod[k]
        before = schedule.alphas_cumprod[k - 1] if k else 1.0
        c1 = beta * np.sqrt(before) / (1 - bar)
        c2 = (1 - before) * np.sqrt(1 - beta) / (1 - bar)
        floor = np.log(schedule.posterior_variance[max(k, 1)])
        for c in range(C):
            x, n, e, w = (float(a[r, c]) for a in (x0, noise, eps, v))
            noisy = np.sqrt(bar) * x + np.sqrt(1 - bar) * n
            clean = (noisy - np.sqrt(1 - bar) * e) / np.sqrt(bar)
            mean, log_var = c1 * clean + c2 * noisy, (w + 1) / 2 * np.log(beta)
            log_var += (1 - (w + 1) / 2) * floor
            if k == 0:
                std = np.exp(0.5 * log_var)
                hi, lo = cdf((x - mean + 1 / 255) / std), cdf((x - mean - 1 / 255) / std)
                p = hi if x < -0.999 else 1 - lo if x > 0.999 else hi - lo
                total -= np.log(max(p, 1e-12))
            else:
                apart = (c1 * x + c2 * noisy - mean) ** 2 * np.exp(-log_var)
                total += 0.5 * (-1 + log_var - floor + np.exp(floor - log_var) + apart)
        np.testing.assert_allclose(terms.vb[r], total / C / np.log(2), rtol=2e-3, atol=1e-5)
        np.testing.assert_allclose(terms.mse[r], np.mean((noise[r] - eps[r]) ** 2), rtol=1e-5)


def test_bound_trains_only_the_variance():
    schedule = diffusion.training_schedule()
    x0, t, _, noise = _inputs()

    def bound(eps, v):
        return diffusion.head_loss_terms(lambda x, s: (eps, v), schedule, x0, t, noise).vb.sum()

    d_eps, d_v = jax.jit(jax.grad(bound, (0, 1)))(0.5 * noise, 0.1 * x0)
    assert (d_eps == 0).all() and (np.abs(d_v) > 0).all()


def test_gradient_is_finite_where_the_prediction_is_far_off():
    schedule = diffusion.training_schedule()
    x0, t, _, noise = _inputs()

    def loss(v):
        look = lambda x, s: (1e4 * noise, v)  # noqa: E731
        return diffusion.head_loss(look, schedule, x0, t, noise).sum()

    assert np.isfinite(jax.jit(jax.grad(loss))(np.full_like(noise, -1.0))).all()


def _noise(key):
    return jax.jit(lambda step: jax.random.normal(jax.random.fold_in(key, step), (ROWS, C)))


@pytest.mark.parametrize("guided", [False, True])
def test_scan_equals_a_python_loop(guided):
    head, params = _head()
    _, _, z, _ = _inputs()
    schedule, noise = diffusion.respaced_schedule("2,1,1"), _noise(jax.random.key(9))
    scale = np.linspace(1.0, 3.0, ROWS, dtype=np.float32)[:, None]
    extra = dict(guidance=scale, z_uncond=-z) if guided else {}
    got = _sample(head, params, z, noise, schedule=schedule, temperature=0.7, **extra)
    reverse = jax.jit(functools.partial(diffusion.reverse_step, schedule))
    x = noise(schedule.num_steps)
    for i in reversed(range(schedule.num_steps)):
        t = np.full(ROWS, schedule.timestep_map[i])
        eps, v = _compiled(head)({"params": params}, x, t, z)
        if guided:
            uncond, _ = _compiled(head)({"params": params}, x, t, -z)
            eps = uncond + scale * (np.asarray(eps) - uncond)
        x = reverse(jnp.int32(i), x, eps, v, noise(i), 0.7)
    np.testing.assert_allclose(got, x, rtol=1e-4, atol=1e-4)


def test_last_step_ignores_its_noise():
    head, params = _head()
    _, _, z, _ = _inputs()
    schedule, noise = diffusion.respaced_schedule("1,1,1"), _noise(jax.random.key(4))
    loud = lambda step: noise(step) + jnp.where(step == 0, 1e3, 0.0)  # noqa: E731
    a, b = (_sample(head, params, z, n, schedule=schedule) for n in (noise, loud))
    np.testing.assert_array_equal(a, b)


def test_unconditional_rows_do_not_run_without_guidance():
    head, params = _head()
    _, _, z, _ = _inputs()
    schedule, noise = diffusion.respaced_schedule("1,1"), _noise(jax.random.key(4))
    plain = _sample(head, params, z, noise, schedule=schedule)
    same = _sample(head, params, z, noise, schedule=schedule, z_uncond=-z)
    np.testing.assert_array_equal(plain, same)
    with pytest.raises(ValueError, match="^z_uncond: got None"):
        _sample(head, params, z, noise, schedule=schedule, guidance=2.0)


def test_time_is_embedded_once_per_step():
    """The time MLP's first product has one row, whatever the number of tokens."""
    head, params = _head()
    _, _, z, _ = _inputs()
    schedule, noise = diffusion.respaced_schedule("1,1"), _noise(jax.random.key(4))
    jaxpr = str(
        jax.make_jaxpr(lambda z: diffusion.head_sample(head, params, z, noise, schedule=schedule))(
            z
        )
    )
    assert "f32[256]" in jaxpr and f"f32[{ROWS},256]" not in jaxpr
