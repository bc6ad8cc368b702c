"""The one-step decoder: it starts as the identity, and reads what it says it reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn

from driftar_jax.drift.networks import SIGMA_MIN, TokenDecoder

B, N, G, C, D = 2, 5, 3, 4, 6


@pytest.fixture
def inputs():
    mu, std = tiny.normal(1, B, N, C), jnp.asarray(np.exp(tiny.normal(2, B, N)))
    x0 = mu[:, :, None] + std[..., None, None] * tiny.normal(3, B, N, G, C)
    return dict(x0=x0, mu=mu, std=std, z=tiny.normal(4, B, N, D), entropy=jnp.full((B, N), 0.3))


def _fresh(decoder, inputs):
    return nn.meta.unbox(jax.jit(decoder.init)(jax.random.key(0), **inputs)["params"])


def _trained(decoder, inputs):
    """Parameters moved away from their start, so that nothing is switched off by a zero."""
    return tiny.params(decoder.init, **inputs)["params"]


@pytest.mark.parametrize(("standardised", "dtype"), [(True, jnp.bfloat16), (False, jnp.float32)])
def test_a_fresh_decoder_returns_its_start(inputs, standardised, dtype):
    decoder = TokenDecoder(C, width=8, depth=1, standardised=standardised, dtype=dtype)
    found = jax.jit(decoder.apply)({"params": _fresh(decoder, inputs)}, **inputs)
    np.testing.assert_array_equal(found, inputs["x0"])
    assert found.dtype == jnp.float32


@pytest.mark.parametrize(("standardised", "adaln"), [(True, False), (False, True)])
def test_each_input_reaches_its_own_token_alone(inputs, standardised, adaln):
    sizes = dict(width=8, depth=2)
    decoder = TokenDecoder(C, **sizes, standardised=standardised, entropy_adaln=adaln)
    params = _trained(decoder, inputs)

    @jax.jit
    def residual(inputs):
        return decoder.apply({"params": params}, **inputs) - inputs["x0"]

    before = np.asarray(residual(inputs))
    for name in inputs:
        changed = {**inputs, name: tiny.changed(inputs[name], (1, 2), by=0.5)}
        moved = np.abs(np.asarray(residual(changed)) - before).max(axis=(-1, -2))
        read = {"mu": standardised, "std": standardised, "entropy": adaln}.get(name, True)
        assert (moved[1, 2] > 1e-3) == read, name
        moved[1, 2] = 0
        assert moved.max() < 1e-5, name


def test_draws_of_a_token_do_not_meet(inputs):
    decoder = TokenDecoder(C, width=8, depth=2)
    params = _trained(decoder, inputs)
    apply = jax.jit(decoder.apply)
    whole = apply({"params": params}, **inputs)
    one = apply({"params": params}, **{**inputs, "x0": inputs["x0"][:, :, 1:2]})
    np.testing.assert_allclose(whole[:, :, 1:2], one, atol=1e-5)


def test_the_standardised_start_is_the_noise_itself(inputs):
    """Where sigma is small the residual sees the noise at full size, and never divides by 0."""
    decoder = TokenDecoder(C, width=8, depth=1)
    params = _trained(decoder, inputs)
    # Only the standardised half of the input is read.
    kernel = params["input"]["kernel"]
    assert kernel.shape == (2 * C, 8)
    params["input"]["kernel"] = tiny.changed(kernel, np.s_[:C], to=0.0)
    eps = tiny.normal(6, B, N, G, C)

    @jax.jit
    def residual(std):
        std = jnp.full((B, N), std)
        x0 = inputs["mu"][:, :, None] + std[..., None, None] * eps
        return decoder.apply({"params": params}, **{**inputs, "x0": x0, "std": std}) - x0

    np.testing.assert_allclose(residual(SIGMA_MIN), residual(0.7), atol=5e-3)
    assert np.isfinite(residual(0.0)).all()
    assert np.abs(residual(0.7)[:, :, 0] - residual(0.7)[:, :, 1]).max() > 0.1
