"""The autoencoder at a small size: shapes, tiles, odd sizes, posterior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from driftar_jax.vae import kl


@pytest.fixture(scope="module")
def made():
    vae = kl.KLVAE(32, (1, 2), 1, latent_channels=3, attention_levels=(1,))
    images = np.tanh(tiny.normal(0, 3, 4, 6, 3))
    return vae, tiny.params(vae.init, images)["params"], images


def _compiled(call, vae, tile):
    return jax.jit(lambda params, x: call(vae, params, x, tile=tile))


def test_shapes(made):
    vae, params, images = made
    moments = jax.eval_shape(_compiled(kl.encode, vae, 4), params, images)
    assert vae.factor == 2 and moments.shape == (3, 2, 3, 6)
    z = jax.eval_shape(kl.mode, moments)
    assert jax.eval_shape(_compiled(kl.decode, vae, 4), params, z).shape == images.shape
    assert "down_1_attn_0" in params["encoder"] and "down_0_attn_0" not in params["encoder"]


def test_tiles_equal_the_whole_batch(made):
    vae, params, images = made
    encoded = [_compiled(kl.encode, vae, tile)(params, images) for tile in (3, 2)]
    np.testing.assert_allclose(encoded[1], encoded[0], atol=1e-5)
    z = kl.mode(np.asarray(encoded[0]))
    decoded = [_compiled(kl.decode, vae, tile)(params, z) for tile in (9, 2)]
    np.testing.assert_allclose(decoded[1], decoded[0], atol=1e-5)


def test_memory_does_not_grow_with_the_batch(made):
    vae, params, _ = made

    def peak(batch):
        z = jax.ShapeDtypeStruct((batch, 8, 8, 3), jnp.float32)
        run = jax.jit(lambda p, z: kl.decode(vae, p, z, tile=2))
        return run.lower(params, z).compile().memory_analysis().temp_size_in_bytes

    images = 12 * 16 * 16 * 3 * 4
    assert peak(16) - peak(4) < 2 * images


def test_bfloat16_moments_are_float32(made):
    vae, params, images = made
    half = vae.copy(dtype=jnp.bfloat16)
    moments, whole = (_compiled(kl.encode, made, 3)(params, images) for made in (half, vae))
    assert moments.dtype == jnp.float32
    np.testing.assert_allclose(moments, whole, atol=0.1)


def test_posterior_clamps_and_measures():
    moments = jnp.stack([jnp.full((2, 1, 1), 0.5), jnp.full((2, 1, 1), -99.0)], axis=-1)
    np.testing.assert_allclose(kl.std(moments)[..., 0], np.exp(-15.0), rtol=1e-5)
    np.testing.assert_allclose(kl.kl(moments), 0.5 * (0.25 - 1 + 30), rtol=1e-6)
    standard = jnp.zeros((2, 3, 1, 4))
    np.testing.assert_array_equal(kl.kl(standard), np.zeros(2))
    noise = jnp.ones((2, 3, 1, 2))
    np.testing.assert_array_equal(kl.sample(standard, noise), noise)


@pytest.mark.parametrize(
    ("field", "shape", "tile"), [("images", (1, 5, 6, 3), 1), ("tile", (1, 4, 6, 3), 0)]
)
def test_misfits_name_the_field(made, field, shape, tile):
    vae, params, _ = made
    with pytest.raises(ValueError, match=f"^{field}: got"):
        kl.encode(vae, params, jnp.zeros(shape), tile=tile)
