"""The lock-step sampler lowered for three platforms: for chips its blocks are loops."""

import functools

import jax
import jax.numpy as jnp
import pytest
import tiny
from jax import export

from driftar_jax import model as models
from driftar_jax.sampling import plain
from driftar_jax.sampling.settings import Settings

# 16 x 16 tokens: from 128 on the steps have sizes of their own.
IMAGES = models.ImageSpec((16, 16, 4), tuple("ab"), patch_size=1)


@pytest.mark.slow
def test_chips_get_less_than_two_fifths_of_a_cpus_products():
    config = tiny.config("drift", host__encoder_depth=4, host__decoder_depth=4)
    model = models.build(config, IMAGES)
    settings = Settings(method="drift", ar_steps=8, guidance=2.0)
    rows, scalar = jax.ShapeDtypeStruct((2,), jnp.int32), jax.ShapeDtypeStruct((), jnp.uint32)

    def sampler(params, label, index, seed):
        return plain.generate(model, settings, params, label, index, seed)

    def products(platform):
        params = models.shapes(config, IMAGES)
        if platform != "cpu":
            params = jax.eval_shape(functools.partial(models.looped, model), params)
        # Where arrays lie in a GPU's loop is no part of what jax promises to read later.
        checks = [export.DisabledSafetyCheck.custom_call("LayoutConstraint")]
        made = export.export(jax.jit(sampler), platforms=[platform], disabled_checks=checks)
        return made(params, rows, rows, scalar).mlir_module().count("stablehlo.dot_general")

    found = {platform: products(platform) for platform in ("cpu", "cuda", "tpu")}
    assert max(found["cuda"], found["tpu"]) < 0.4 * found["cpu"], found
