"""The block of whole-grid decoders, and the features of a number that modulates it."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from driftar_jax.layers.dense import sinusoid_features
from driftar_jax.layers.modulated import CHUNKS, ModulatedBlock

B, G, N, M, D = 2, 3, 5, 4, 6


def test_sinusoids_match_a_float64_formula():
    t = np.asarray([[0.0, 0.5, 999.0]], np.float32)
    rates = np.exp(-np.log(10000.0) * np.arange(4) / 4)
    angles = t.astype(np.float64)[..., None] * rates
    want = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    found = sinusoid_features(jnp.asarray(t), 4)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, want, atol=3e-4)  # 999 in float32 is good to 6e-5


def _inputs():
    x, c = tiny.normal(1, B * G, N, D), tiny.normal(2, B, M, D)
    return x, c, tiny.normal(3, B, CHUNKS, D)


def _run(block, x, c, modulation):
    return block(x, block.read(c), modulation)


def test_grids_of_a_condition_are_those_that_stand_together():
    """`[B * G]` rows are B conditions of G grids each, and no grid sees another."""
    x, c, modulation = _inputs()
    block = ModulatedBlock(D, num_heads=2, mlp_ratio=2.0)
    params = tiny.params(lambda key, *a: block.init(key, *a, method=_run), x, c, modulation)
    run = jax.jit(lambda *a: block.apply(params, *a, method=_run))
    whole = run(x, c, modulation)
    for context in range(B):
        for grid in range(G):
            row = context * G + grid
            alone = run(x[row][None], c[context][None], modulation[context][None])
            np.testing.assert_allclose(whole[row], alone[0], atol=1e-5)


def test_a_zero_start_only_cross_attends():
    x, c, _ = _inputs()
    none = jnp.zeros((B, CHUNKS, D))
    block = ModulatedBlock(D, num_heads=2, zero_start=True)
    init = jax.jit(lambda key: block.init(key, x, c, none, method=_run))
    params = init(jax.random.key(0))

    def cross(block, x, c):
        k, v = block.read(c)
        q = block._split(block.cross_q(block.norm2(x)))
        k, v = (jnp.repeat(a, G, axis=0) for a in (k, v))
        return x + block.cross_proj(block._attend(q, k, v, True))

    found = jax.jit(lambda p: block.apply(p, x, c, none, method=_run))(params)
    want = jax.jit(lambda p: block.apply(p, x, c, method=cross))(params)
    np.testing.assert_allclose(found, want, atol=1e-5)
    assert np.abs(found - x).max() > 0.01
