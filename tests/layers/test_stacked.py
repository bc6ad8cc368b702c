"""Blocks as one loop: the same numbers, fewer programs."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from driftar_jax.hosts.mar import MAR
from driftar_jax.hosts.transdiff import TransDiff
from driftar_jax.layers import stacked

SIZES = dict(num_classes=3, width=16, num_heads=2, buffer_size=2)
RATES = dict(attention_dropout=0.0, projection_dropout=0.0)
LABEL = jnp.asarray([0, 2])


def _mar(**fields):
    return MAR(num_tokens=6, token_dim=2, encoder_depth=2, decoder_depth=4, **SIZES, **fields)


def _transdiff(**fields):
    return TransDiff(num_rows=4, groups=1, reference_dim=2, depth=4, **SIZES, **fields)


GIVEN = {
    "mar": (_mar, (tiny.normal(0, 2, 6, 2), jnp.arange(6)[None] < jnp.asarray([[2], [4]]), LABEL)),
    "transdiff": (_transdiff, (LABEL,)),
}


@functools.cache
def _params(name):
    build, given = GIVEN[name]
    return tiny.params(build().init, *given, scale=0.3)["params"]


EACH = pytest.mark.parametrize("name", ["mar", pytest.param("transdiff", marks=pytest.mark.slow)])


@EACH
def test_a_loop_over_stacked_parameters_is_the_same(name):
    """In every bit as users compile; tests compile with other fusions."""
    build, given = GIVEN[name]
    host, params = build(), _params(name)
    loop = stacked.stack(params, host.loops)
    apply = jax.jit(lambda params: host.apply({"params": params}, *given))
    dots = [apply.lower(p).as_text().count("stablehlo.dot_general") for p in (params, loop)]
    assert dots[1] < dots[0]
    for a, b in zip(*(jax.tree.leaves(apply(p)) for p in (params, loop)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_names_stay_and_numbers_are_only_moved():
    params = _params("mar")
    loop = stacked.stack(params, _mar().loops)
    assert {"encoder_blocks", "decoder_blocks", "decoder_blocks_2", "decoder_blocks_3"} < set(loop)
    assert "encoder_blocks_0" in params and "encoder_blocks_0" not in loop
    got = jax.tree.map(lambda a: a[1], loop["encoder_blocks"])
    chex.assert_trees_all_equal(got, params["encoder_blocks_1"])
    assert stacked.stack(params, {"encoder_blocks": 1}) == params


def test_a_host_with_a_cache_has_no_loop():
    assert TransDiff(num_rows=8, groups=2, reference_dim=2, depth=5, **SIZES).loops == {}


@EACH
def test_training_as_a_loop_has_the_same_gradient(name):
    build, given = GIVEN[name]

    def gradient(**fields):
        host = build(remat="full", **RATES, **fields)

        def loss(params):
            rngs = {"dropout": jax.random.key(1)}
            out = host.apply({"params": params}, *given, deterministic=False, rngs=rngs)
            return jnp.sum(out.z**2) + jnp.sum(out.entropy)

        step = jax.jit(jax.grad(loss))
        return step(_params(name)), step.lower(_params(name)).as_text().count("dot_general")

    (want, many), (got, few) = gradient(), gradient(scan=True)
    assert few < many
    assert jax.tree.structure(want) == jax.tree.structure(got)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_every_block_of_a_training_loop_drops_something_else():
    host = _mar(remat="full", scan=True, attention_dropout=0.5, projection_dropout=0.5)
    # Made before the trace: the cache would keep a tracer for the next test.
    given, params = GIVEN["mar"][1], _params("mar")

    def run(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return host.apply({"params": params}, *given, deterministic=False, rngs=rngs).z

    run = jax.jit(run)
    assert np.abs(run(0) - run(1)).max() > 1e-3
    np.testing.assert_array_equal(run(0), run(0))


def test_a_fresh_host_is_the_same_with_and_without():
    trees = [
        jax.eval_shape(_mar(**fields).init, jax.random.key(0), *GIVEN["mar"][1])
        for fields in ({}, {"scan": True, "remat": "full"})
    ]
    assert nn.meta.unbox(trees[0]) == nn.meta.unbox(trees[1])
