"""The f8 autoencoder against recorded arrays: every array of the case `nextstep_vae`."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import channels_first, channels_last, claims, load, uncovered

from driftar_jax.conversion import nextstep_vae as conversion
from driftar_jax.conversion import rules
from driftar_jax.vae import kl, stored
from driftar_jax.vae.f8 import F8VAE

CASE = load("nextstep_vae")
MADE_WITH = CASE.config["constructor"]["params"]
named = pytest.mark.parametrize("case", ["nextstep_vae"])


@functools.cache
def converted():
    """Module and parameters from the recorded weights; the sizes must be those of the config."""
    shapes = {name: array.shape for name, array in CASE.weights.items()}
    vae = conversion.module(shapes, MADE_WITH)
    assert vae == F8VAE(
        normalise=MADE_WITH["encoder_norm"],
        patch=MADE_WITH["psz"] or 1,
        scale=MADE_WITH["scaling_factor"],
        shift=MADE_WITH["shift_factor"],
        deterministic=MADE_WITH["deterministic"],
        channels=MADE_WITH["ch"],
        multipliers=tuple(MADE_WITH["ch_mult"]),
        num_res_blocks=MADE_WITH["num_res_blocks"],
        latent_channels=MADE_WITH["z_channels"],
        image_channels=MADE_WITH["out_ch"],
    )
    wanted = rules.shapes_of(stored.abstract(vae))
    report = rules.plan(shapes, conversion.RULES, wanted)
    report.check()
    return vae, rules.unflatten(rules.to_ours(CASE.weights, report, wanted))


@named
def test_every_array_is_covered(case):
    assert uncovered(load(case), sys.modules[__name__]) == []


@named
def test_weights_come_back_bit_by_bit(case):
    official, report = rules.to_official(rules.flatten(converted()[1]), conversion.RULES)
    assert not report.unused and official.keys() == load(case).weights.keys()
    for name, array in load(case).weights.items():
        np.testing.assert_array_equal(official[name], array, err_msg=name)


@named
@claims("nextstep_vae", "in.image", "out.encoder", "out.moments")
def test_encode(case):
    vae, params = converted()
    image = jnp.asarray(channels_last(CASE["in.image"]))
    encoder = jax.jit(functools.partial(vae.apply, method=lambda module, x: module.encoder(x)))
    before = encoder({"params": params}, image)
    CASE.close(channels_first(before), "out.encoder")
    CASE.close(channels_first(kl.encode(vae, params, image, tile=8)), "out.moments")


@named
@claims("nextstep_vae", "out.moments", "in.sample.noise", "out.sample", "out.scaled")
def test_latents(case):
    vae, _ = converted()
    moments = jnp.asarray(channels_last(CASE["out.moments"]))
    noise = jnp.asarray(channels_last(CASE["in.sample.noise"]))
    draw = kl.mode(moments) if vae.deterministic else kl.sample(moments, noise)
    CASE.close(channels_first(draw), "out.sample")
    scaled = vae.latents(moments, noise)
    CASE.close(channels_first(scaled), "out.scaled")
    np.testing.assert_allclose(vae.from_latents(scaled), draw, atol=1e-5)


@named
@claims("nextstep_vae", "in.latents", "out.decode")
def test_decode(case):
    vae, params = converted()
    latents = jnp.asarray(channels_last(CASE["in.latents"]))
    images = jax.jit(lambda p, x: kl.decode(vae, p, x, tile=1))(params, latents)
    CASE.close(channels_first(images), "out.decode")
