"""The f8 autoencoder: its normalisation, its scales, its sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from driftar_jax.vae import f8, kl, stored

FIELDS = dict(normalise=True, patch=2, scale=0.5, shift=0.25, deterministic=False)
SMALL = dict(channels=32, multipliers=(1, 1), num_res_blocks=1, latent_channels=3)


def _vae(**changes):
    return f8.F8VAE(**{**FIELDS, **SMALL, **changes})


def test_every_patch_is_normalised():
    x = 3.0 + 2.0 * tiny.normal(0, 2, 4, 6, 3)
    y = np.asarray(f8.normalise_patches(x, 2))
    for row in (0, 2):
        for column in (0, 2, 4):
            patch = y[:, row : row + 2, column : column + 2].reshape(2, -1)
            np.testing.assert_allclose(patch.mean(1), 0, atol=1e-6)
            np.testing.assert_allclose(patch.std(1), 1, atol=1e-5)


def test_only_the_means_are_normalised():
    vae, images = _vae(), tiny.normal(1, 2, 8, 12, 3)
    params = tiny.params(vae.init, images)["params"]
    run = lambda vae: vae.apply({"params": params}, images, method="encode")  # noqa: E731
    plain, normalised = run(_vae(normalise=False)), run(vae)
    assert normalised.shape == (2, 4, 6, 6)
    mean, log_variance = jnp.split(plain, 2, axis=-1)
    np.testing.assert_array_equal(normalised[..., 3:], log_variance)
    want = f8.normalise_patches(mean, 2)
    np.testing.assert_allclose(normalised[..., :3], want, atol=1e-6)
    with pytest.raises(ValueError, match="^images: got shape .* allowed sides that 4 divides"):
        vae.apply({"params": params}, images[:, :6], method="encode")


def test_latents_and_back():
    moments, noise = tiny.normal(2, 2, 4, 4, 6), tiny.normal(3, 2, 4, 4, 3)
    drawn = _vae().latents(moments, noise)
    np.testing.assert_allclose(drawn, (kl.sample(moments, noise) - 0.25) * 0.5, rtol=1e-6)
    exact = _vae(deterministic=True).latents(moments, noise)
    np.testing.assert_allclose(exact, (kl.mode(moments) - 0.25) * 0.5, rtol=1e-6)
    np.testing.assert_allclose(_vae().from_latents(exact), kl.mode(moments), atol=1e-6)


def test_config_there_and_back():
    vae = _vae()
    config = stored.config_of(vae)
    assert stored.module(config, kind="vae-f8") == vae
    with pytest.raises(ValueError, match="^kind: got 'vae-f8', allowed 'vae-kl16'"):
        stored.module(config)
    older = stored.config_of(kl.KLVAE())
    older.pop("kind")
    assert stored.module(older) == kl.KLVAE()
    with pytest.raises(ValueError, match="^patch: got 0"):
        jax.eval_shape(_vae(patch=0).init, jax.random.key(0), tiny.normal(0, 1, 4, 4, 3))
