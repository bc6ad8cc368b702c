"""The KL-16 autoencoder against recorded arrays: every array of the case `vae`."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import channels_first, channels_last, claims, load, uncovered

from driftar_jax.conversion import rules
from driftar_jax.conversion import vae as conversion
from driftar_jax.vae import kl, stored

CASE = load("vae")
MADE_WITH = CASE.config["constructor"]
named = pytest.mark.parametrize("case", ["vae"])


@functools.cache
def converted():
    """Module and parameters from the recorded weights; the sizes must be those of the config."""
    assert MADE_WITH["encoder_kwargs"] == MADE_WITH["decoder_kwargs"]
    nominal = [MADE_WITH["resolution"] // 2**level for level in range(len(MADE_WITH["ch_mult"]))]
    shapes = {name: array.shape for name, array in CASE.weights.items()}
    fields = conversion.sizes(shapes)
    assert fields == dict(
        channels=MADE_WITH["encoder_kwargs"]["ch"],
        multipliers=tuple(MADE_WITH["ch_mult"]),
        num_res_blocks=MADE_WITH["encoder_kwargs"]["num_res_blocks"],
        latent_channels=MADE_WITH["embed_dim"],
        image_channels=CASE["in.image"].shape[1],
        attention_levels=tuple(
            level
            for level, size in enumerate(nominal)
            if size in MADE_WITH["attn_resolutions_encoder"]
        ),
    )
    vae = kl.KLVAE(**fields)
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
@claims("vae", "in.image", "out.encoder", "out.moments")
def test_encode(case):
    vae, params = converted()
    image = jnp.asarray(channels_last(CASE["in.image"]))
    encoder = jax.jit(functools.partial(vae.apply, method=lambda module, x: module.encoder(x)))
    before = encoder({"params": params}, image)
    CASE.close(channels_first(before), "out.encoder")
    CASE.close(channels_first(kl.encode(vae, params, image, tile=8)), "out.moments")


@named
@claims("vae", "out.moments", "out.mode", "out.std", "out.kl", "in.sample.noise", "out.sample")
def test_posterior(case):
    moments = jnp.asarray(channels_last(CASE["out.moments"]))
    noise = jnp.asarray(channels_last(CASE["in.sample.noise"]))
    CASE.close(channels_first(kl.mode(moments)), "out.mode")
    CASE.close(channels_first(kl.std(moments)), "out.std")
    CASE.close(channels_first(kl.sample(moments, noise)), "out.sample")
    CASE.close(kl.kl(moments), "out.kl")


@named
@claims("vae", "in.latents", "out.decode")
def test_decode(case):
    vae, params = converted()
    latents = jnp.asarray(channels_last(CASE["in.latents"]))
    images = jax.jit(lambda p, x: kl.decode(vae, p, x, tile=1))(params, latents)
    CASE.close(channels_first(images), "out.decode")
