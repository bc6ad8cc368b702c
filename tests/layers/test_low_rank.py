"""Adapters: the product in the right place, and nothing at all before the first step."""

import importlib

import chex
import jax
import numpy as np
import pytest

from driftar_jax import model
from driftar_jax.layers import low_rank
from driftar_jax.training import specs

RANK = 3


def _host(name):
    """Random parameters of a host, in the shapes of its `:tiny` config."""
    config = importlib.import_module(f"configs.{name}").get_config("tiny")
    shapes = model.shapes(config, specs.image_spec(config))["host"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)


def _leaf(tree, names):
    for name in names.split("."):
        tree = tree[name]
    return tree


@pytest.mark.parametrize(
    ("name", "stacked"), [("mar_small", 0), ("transdiff_small", 0), ("nextstep_small", 1)]
)
def test_a_kernel_gets_its_product_and_the_rest_stays(name, stacked):
    host, rng = _host(name), np.random.default_rng(1)
    wanted = low_rank.shapes(host, RANK)
    adapters = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), wanted)
    groups = {"host": host, "head": {"kernel": np.ones((2, 3), np.float32)}, "adapter": adapters}
    found = low_rank.merged(groups)
    assert set(found) == {"host", "head"} and found["head"] is groups["head"]
    layers = set()
    for path, kernel in jax.tree_util.tree_flatten_with_path(host)[0]:
        *names, last = (part.key for part in path)
        layer, new = ".".join(names), _leaf(found["host"], ".".join([*names, last]))
        if last != "kernel":
            assert new is kernel
            continue
        layers.add(layer)
        a, b = (adapters[layer][k].astype(np.float64) for k in "ab")
        blocks = zip(a, b, strict=True) if "layers" in names else [(a, b)]
        want = np.stack([np.tensordot(x, y, 1) for x, y in blocks]).reshape(kernel.shape)
        np.testing.assert_allclose(new, kernel + want, rtol=1e-5, atol=1e-5)
    assert layers == set(wanted) and len(layers) > 5
    assert any("layers" in layer for layer in wanted) == bool(stacked)


def test_the_full_rank_is_that_of_the_widest_kernel():
    kernels = {"a": (3, 50), "b": (7, 2, 4), "c": (90, 5)}
    host = {name: {"kernel": np.zeros(shape)} for name, shape in kernels.items()}
    host |= {"norm": {"scale": np.zeros(99)}, "layers": {"d": {"kernel": np.zeros((60, 4, 6))}}}
    assert low_rank.full_rank(host) == 7


def test_fresh_adapters_change_no_bit_and_have_their_rank():
    host = _host("mar_small")
    adapters = low_rank.init(host, RANK, jax.random.key(0))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), adapters) == jax.tree.map(
        lambda s: (s.shape, s.dtype), low_rank.shapes(host, RANK)
    )
    found = low_rank.merged({"host": host, "adapter": adapters})["host"]
    chex.assert_trees_all_equal(found, host)
    qkv = adapters["encoder_blocks_0.qkv"]
    assert qkv["a"].shape == (16, RANK) and qkv["b"].shape == (RANK, 3, 2, 8)
    assert 0.5 < float(np.var(qkv["a"]) * 16) < 2
