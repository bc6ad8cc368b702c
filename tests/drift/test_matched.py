"""Distribution matching: the field goes from the draws' distribution to the one that is wanted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from driftar_jax.drift import fields
from driftar_jax.heads import diffusion

SCHEDULE = diffusion.training_schedule()
WANTED = np.array([0.6, -0.3]), np.array([0.2, 0.5])


def _clean(x_t, signal, noise, mean, std):
    """Mean of the clean token under `x_t` of `N(mean, std^2)`, in numpy or JAX."""
    gain = signal * std**2 / (signal**2 * std**2 + noise**2)
    return mean + gain * (x_t - signal * mean)


def _divergence(mean, std, signal, noise):
    """KL of the noised draws to the noised `N(0.5, 0.4^2)`, by a sum over a fine grid."""
    x = np.linspace(-12.0, 12.0, 200_001)

    def log_density(m, s):
        variance = signal**2 * s**2 + noise**2
        return -((x - signal * m) ** 2) / (2 * variance) - 0.5 * np.log(2 * np.pi * variance)

    q, p = log_density(mean, std), log_density(0.5, 0.4)
    return float(np.sum(np.exp(q) * (q - p)) * (x[1] - x[0]))


def test_its_sum_over_draws_is_minus_the_gradient_of_a_divergence():
    mean, std, small = -0.7, 0.9, 1e-4
    for t in (100, 500, 900):
        signal = np.sqrt(SCHEDULE.alphas_cumprod[t])
        noise = np.sqrt(1.0 - SCHEDULE.alphas_cumprod[t])
        nodes, weights = np.polynomial.hermite_e.hermegauss(20)
        u, n = (a.ravel() for a in np.meshgrid(nodes, nodes))
        weight = np.outer(weights, weights).ravel() / (2 * np.pi)
        x = mean + std * u
        x_t = signal * x + noise * n
        real = _clean(x_t, signal, noise, 0.5, 0.4)
        fake = _clean(x_t, signal, noise, mean, std)
        field = np.asarray(fields.matched(*(a[:, None] for a in (x, real, fake))), np.float64)
        assert field.shape == (400, 1)
        pull = field[:, 0] * np.abs(x - real).mean()
        factor = noise**2 / signal**2
        for slope, (dm, ds) in ((np.ones_like(u), (small, 0)), (u, (0, small))):
            ends = [_divergence(mean + k * dm, std + k * ds, signal, noise) for k in (1, -1)]
            want = -factor * (ends[0] - ends[1]) / (2 * small)
            np.testing.assert_allclose(np.sum(weight * slope * pull), want, rtol=2e-3)
        # The draws lie below: they are drawn up, by its mean and in nearly every place.
        assert np.sum(weight * field[:, 0]) > 0


def test_draws_of_a_context_share_a_divisor_and_equal_denoisers_leave_them():
    x, real, fake = np.random.default_rng(0).normal(size=(3, 2, 5, 3)).astype(np.float32)
    field = fields.matched(x, real, fake)
    for row in range(2):
        far = np.abs(x[row] - real[row]).mean()
        np.testing.assert_allclose(field[row], (real[row] - fake[row]) / far, rtol=1e-5)
    assert not np.asarray(fields.matched(x, real, real)).any()
    still = fields.matched(x, x, x + 1e-9)
    assert np.isfinite(still).all() and np.abs(still).max() < 1e-2


def test_draws_taught_by_it_take_the_mean_and_the_spread_of_the_teacher():
    """With a head that learns what they are, from scratch; the teacher is a Gaussian's own."""
    draws, head = 128, diffusion.DiffusionHead(token_dim=2, width=32, depth=1)
    z = jnp.ones((1, 1, 4))
    mean, std = (jnp.asarray(a, jnp.float32)[None, None] for a in WANTED)
    bar = jnp.asarray(SCHEDULE.alphas_cumprod, jnp.float32)
    start = {"shift": jnp.zeros((1, 1, 2)), "scale": jnp.full((1, 1, 2), 0.05)}
    fake = head.init(jax.random.key(0), jnp.zeros((1, 1, 2)), jnp.zeros((1, 1), int), z)
    optimizer = optax.adam(5e-3)

    def losses(params, key):
        keys = jax.random.split(key, 5)
        u = jax.random.normal(keys[0], (1, draws, 2))
        x = params["made"]["shift"] + params["made"]["scale"] * u
        t = jax.random.randint(keys[1], (1, 1), 20, 981)
        x_t = diffusion.add_noise(SCHEDULE, x, t, jax.random.normal(keys[2], x.shape))

        def denoise(x_t, t):
            return head.apply(params["fake"], x_t, t, z)

        guess = diffusion.predict(SCHEDULE, t, x_t, *denoise(x_t, t)).clean
        signal, noise = jnp.sqrt(bar[t])[..., None], jnp.sqrt(1 - bar[t])[..., None]
        field = fields.matched(x, _clean(x_t, signal, noise, mean, std), guess)
        times = jax.random.randint(keys[3], (1, draws), 0, 1000)
        more = jax.random.normal(keys[4], x.shape)
        follow = diffusion.head_loss(denoise, SCHEDULE, jax.lax.stop_gradient(x), times, more)
        return fields.drift_loss(x, field).mean() + follow.mean()

    @jax.jit
    def trained(params, key):
        def step(carry, key):
            params, state = carry
            updates, state = optimizer.update(jax.grad(losses)(params, key), state)
            return (optax.apply_updates(params, updates), state), params["made"]

        first = params, optimizer.init(params)
        return jax.lax.scan(step, first, jax.random.split(key, 900))[1]

    made = trained({"made": start, "fake": fake}, jax.random.key(1))
    shift, scale = (np.asarray(made[n][-200:, 0, 0]).mean(0) for n in ("shift", "scale"))
    np.testing.assert_allclose(shift, WANTED[0], atol=0.08)
    np.testing.assert_allclose(np.abs(scale), WANTED[1], rtol=0.2)
