"""The whole-grid decoder: it starts as the identity, and reads what it says it reads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn

from driftar_jax.drift.grid import GridDecoder
from driftar_jax.drift.networks import SIGMA_MIN

B, N, M, G, C, D = 2, 5, 7, 3, 4, 6
PUBLISHED = dict(standardised=False, residual=False, zero_start=False)


@pytest.fixture(scope="module")
def inputs():
    mu, std = tiny.normal(1, B, N, C), np.exp(tiny.normal(2, B, N))
    x0 = mu[:, :, None] + std[..., None, None] * tiny.normal(3, B, N, G, C)
    entropy = np.random.default_rng(5).uniform(size=(B, N)).astype(np.float32)
    return dict(x0=x0, mu=mu, std=std, z=tiny.normal(4, B, M, D), entropy=entropy)


def _decoder(**options):
    return GridDecoder(C, **{**dict(width=8, depth=2, num_heads=2), **options})


def _trained(decoder, inputs):
    """Parameters moved away from their start, so that nothing is switched off by a zero."""
    return tiny.params(decoder.init, **inputs)["params"]


def _moved(decoder, inputs, name, at, amount=0.5):
    """How far each context, token and draw of the residual moves with one number of an input."""
    params = _trained(decoder, inputs)

    @jax.jit
    def residual(inputs):
        out = decoder.apply({"params": params}, **inputs)
        return out - inputs["x0"] if decoder.residual else out

    changed = {**inputs, name: tiny.changed(inputs[name], at, by=amount)}
    return np.abs(np.asarray(residual(changed)) - residual(inputs)).max(axis=-1)


@pytest.mark.parametrize(
    ("options", "fresh"),
    [
        (dict(dtype=jnp.bfloat16), "start"),
        (dict(standardised=False, zero_start=False), "start"),
        (PUBLISHED, "zero"),
    ],
)
def test_a_fresh_decoder_returns_its_start_or_zero(inputs, options, fresh):
    decoder = _decoder(**options)
    params = nn.meta.unbox(jax.jit(decoder.init)(jax.random.key(0), **inputs)["params"])
    found = jax.jit(decoder.apply)({"params": params}, **inputs)
    np.testing.assert_array_equal(found, inputs["x0"] if fresh == "start" else 0 * inputs["x0"])
    assert found.dtype == jnp.float32


def test_entropy_adaln_and_guidance_start_at_zero(inputs):
    """Fresh last layers: neither the entropy nor the scale changes what the decoder would say."""
    decoder, alpha = _decoder(guidance=True), jnp.asarray([1.0, 2.5])
    params = nn.meta.unbox(
        jax.jit(decoder.init)(jax.random.key(0), **inputs, alpha=alpha)["params"]
    )
    params["output"]["kernel"] = tiny.normal(6, *params["output"]["kernel"].shape)
    apply = jax.jit(decoder.apply)
    before = apply({"params": params}, **inputs, alpha=alpha)
    after = apply(
        {"params": params}, **{**inputs, "entropy": 1 - inputs["entropy"]}, alpha=2 * alpha
    )
    np.testing.assert_array_equal(before, after)
    without = apply({"params": params}, **{**inputs, "entropy": None}, alpha=alpha)
    np.testing.assert_allclose(before, without, atol=1e-5)


@pytest.mark.parametrize("options", [{}, PUBLISHED], ids=["ours", "published"])
def test_inputs_reach_every_token_of_their_own_image(inputs, options):
    decoder = _decoder(**options)
    for name in inputs:
        moved = _moved(decoder, inputs, name, (1, 2))
        assert moved[0].max() < 1e-5, name
        read = decoder.standardised or name not in ("mu", "std")
        assert (moved[1].min() > 1e-4) == read, name


def test_draws_of_a_context_do_not_meet(inputs):
    decoder = _decoder()
    moved = _moved(decoder, inputs, "x0", (1, 2, 1))
    assert moved[1, :, 1].min() > 1e-4
    moved[1, :, 1] = 0
    assert moved.max() < 1e-5

    params = _trained(decoder, inputs)
    apply = jax.jit(decoder.apply)
    whole = apply({"params": params}, **inputs)
    one = apply({"params": params}, **{**inputs, "x0": inputs["x0"][:, :, 1:2]})
    np.testing.assert_allclose(whole[:, :, 1:2], one, atol=1e-5)


def test_the_standardised_start_is_the_noise_itself(inputs):
    """Where sigma is small the residual sees the noise at full size, and never divides by 0."""
    decoder = _decoder(depth=1)
    params = _trained(decoder, inputs)
    # Only the standardised half of the input is read.
    kernel = params["input"]["kernel"]
    assert kernel.shape == (2 * C, 8)
    params["input"]["kernel"] = tiny.changed(kernel, np.s_[:C], to=0.0)
    eps = tiny.normal(7, B, N, G, C)

    @jax.jit
    def residual(std):
        std = jnp.full((B, N), std)
        x0 = inputs["mu"][:, :, None] + std[..., None, None] * eps
        return decoder.apply({"params": params}, **{**inputs, "x0": x0, "std": std}) - x0

    np.testing.assert_allclose(residual(SIGMA_MIN), residual(0.7), atol=5e-3)
    assert np.isfinite(residual(0.0)).all()
    assert np.abs(residual(0.7)[:, :, 0] - residual(0.7)[:, :, 1]).max() > 0.1


def test_the_guidance_scale_is_read_per_image(inputs):
    decoder = _decoder(guidance=True)
    moved = _moved(decoder, {**inputs, "alpha": jnp.asarray([1.0, 2.5])}, "alpha", (1,))
    assert moved[0].max() < 1e-5 and moved[1].min() > 1e-4


@pytest.mark.parametrize(
    ("options", "alpha", "complaint"),
    [
        (dict(guidance=True), None, "alpha: got none"),
        ({}, jnp.ones(B), "alpha: got a scale"),
        (dict(num_heads=3), None, "num_heads: got 3"),
    ],
)
def test_bad_input_is_named(inputs, options, alpha, complaint):
    with pytest.raises(ValueError, match=complaint):
        jax.eval_shape(_decoder(**options).init, jax.random.key(0), **inputs, alpha=alpha)


def test_dropout_is_drawn_in_training_alone(inputs):
    decoder = _decoder(attention_dropout=0.3, projection_dropout=0.3)
    variables = {"params": _trained(decoder, inputs)}
    still = np.asarray(jax.jit(decoder.apply)(variables, **inputs))
    np.testing.assert_array_equal(still, jax.jit(_decoder().apply)(variables, **inputs))
    rngs = {"dropout": jax.random.key(1)}
    apply = jax.jit(functools.partial(decoder.apply, deterministic=False))
    assert np.abs(apply(variables, **inputs, rngs=rngs) - still).max() > 0.01
