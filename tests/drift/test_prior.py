"""The prior over the decoder's start, and the controls of its scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from driftar_jax.drift.networks import Prior

B, N, D, C = 2, 7, 5, 3


@pytest.fixture
def encoding():
    draw = np.random.default_rng(0)
    z, entropy = draw.normal(size=(B, N, D)), draw.uniform(size=(B, N))
    return jnp.asarray(z, jnp.float32), jnp.asarray(entropy, jnp.float32)


def _apply(prior, z, entropy, key=None):
    keys = jax.random.split(jax.random.key(3), B)
    params = nn.meta.unbox(jax.jit(prior.init)(jax.random.key(2), z, entropy, keys)["params"])
    return jax.jit(prior.apply)({"params": params}, z, entropy, key), params


def test_the_mean_is_linear_in_z_and_sigma_is_equation_6(encoding):
    z, entropy = encoding
    (mu, std), params = _apply(Prior(C, sigma_max=0.8, tau=1.5), z, entropy)
    weights = {k: np.asarray(v, np.float64) for k, v in params["mean"].items()}
    want = np.asarray(z, np.float64) @ weights["kernel"] + weights["bias"]
    np.testing.assert_allclose(mu, want, atol=1e-5)
    e = np.asarray(entropy, np.float64)
    want = 0.8 * (np.exp(e / 1.5) - 1) / (np.exp(1 / 1.5) - 1)
    np.testing.assert_allclose(std, want, rtol=1e-5)
    assert mu.dtype == std.dtype == jnp.float32 and std.shape == (B, N)


def test_constant_ignores_the_entropy(encoding):
    z, entropy = encoding
    prior = Prior(C, sigma_max=0.8, tau=1.5, scale="constant", constant=0.3)
    (_, std), _ = _apply(prior, z, entropy)
    np.testing.assert_array_equal(std, np.full((B, N), 0.3, np.float32))


def test_shuffled_keeps_the_values_of_each_image_in_another_order(encoding):
    z, entropy = encoding
    (_, plain), _ = _apply(Prior(C, sigma_max=0.8, tau=1.5), z, entropy)
    prior = Prior(C, sigma_max=0.8, tau=1.5, scale="shuffled")
    keys = jax.random.split(jax.random.key(4), B)
    (_, std), _ = _apply(prior, z, entropy, keys)
    np.testing.assert_array_equal(np.sort(std, axis=1), np.sort(plain, axis=1))
    assert (np.asarray(std) != np.asarray(plain)).any(axis=1).all()
    order = [np.argsort(np.argsort(row)) for row in np.asarray(std)]
    same = [np.argsort(np.argsort(row)) for row in np.asarray(plain)]
    assert (order[0][np.argsort(same[0])] != order[1][np.argsort(same[1])]).any()
    with pytest.raises(ValueError, match="key: got None"):
        _apply(prior, z, entropy, None)


def test_learned_reads_z_alone_and_learns(encoding):
    z, entropy = encoding
    prior = Prior(C, sigma_max=0.8, tau=1.5, scale="learned")
    (_, std), params = _apply(prior, z, entropy)
    np.testing.assert_allclose(std, 0.4)  # a fresh head sits in the middle

    def mean_std(params, entropy):
        return prior.apply({"params": params}, z, entropy)[1].mean()

    grads = jax.jit(jax.grad(mean_std, argnums=(0, 1)))(params, entropy)
    assert np.abs(grads[0]["scale"]["kernel"]).max() > 0
    assert np.abs(grads[1]).max() == 0
    params["scale"]["kernel"] = jnp.ones((D, 1)) * 50
    wide = prior.apply({"params": params}, z, entropy)[1]
    assert wide.min() >= 0 and wide.max() <= 0.8 and wide.std() > 0.1


def test_an_unknown_scale_is_refused(encoding):
    with pytest.raises(ValueError, match="prior.scale: got 'other'"):
        _apply(Prior(C, sigma_max=0.8, tau=1.5, scale="other"), *encoding)
