"""The entropy layer's kernel, step by step on the CPU, against XLA's program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from driftar_jax.layers import entropy_kernel
from driftar_jax.layers.attention import attention_with_entropy

B, Q, N, H, K = 2, 21, 24, 4, 8


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Three blocks of rows, the last one ragged."""
    monkeypatch.setattr(entropy_kernel, "_ROWS", 8)


def _arrays(seed, key_heads=H, dtype=jnp.float32):
    q = 2 * tiny.normal(seed, B, Q, H, K)
    k, v = tiny.normal(seed + 1, 2, B, N, key_heads, K)
    return tuple(jnp.asarray(a, dtype) for a in (q, k, v))


def _masks(seed):
    rng = np.random.default_rng(seed)
    rows = rng.random((B, Q, N)) < 0.4
    rows[0, 3] = False  # a row that sees nothing
    return {
        "all": None,
        "keys": jnp.asarray(rng.random((B, 1, N)) < 0.5),
        "rows": jnp.asarray(rows),
        "causal": jnp.asarray(np.tril(np.ones((1, Q, N), bool))),
    }


CASES = [
    ("all", H, None, 0, 0.0),
    ("keys", H, None, 5, 0.0),
    ("rows", 2, "some", 3, 0.0),
    ("causal", 1, "some", 0, 1e-3),
    ("rows", H, None, 4, 1e-8),
]


@functools.cache
def _compiled(kind, start, floor):
    return jax.jit(
        functools.partial(attention_with_entropy, content_start=start, floor=floor, kind=kind)
    )


@pytest.mark.parametrize(("mask", "key_heads", "content", "start", "floor"), CASES)
def test_the_kernel_is_the_reference(mask, key_heads, content, start, floor):
    q, k, v = _arrays(1, key_heads)
    mask = _masks(2)[mask]
    content = content and jnp.asarray(np.random.default_rng(3).random((B, N)) < 0.6)
    assert entropy_kernel.block_rows(q, k) == 8
    out, entropy = _compiled("pallas", start, floor)(q, k, v, mask, content=content)
    want, want_entropy = _compiled("xla", start, floor)(q, k, v, mask, content=content)
    assert out.dtype == want.dtype and entropy.dtype == jnp.float32
    np.testing.assert_allclose(out, want, atol=3e-6)
    np.testing.assert_allclose(entropy, want_entropy, atol=1e-6)


def test_two_byte_numbers_keep_a_float32_entropy():
    q, k, v = _arrays(4, dtype=jnp.bfloat16)
    out, entropy = _compiled("pallas", 2, 0.0)(q, k, v)
    want, want_entropy = _compiled("xla", 2, 0.0)(q, k, v)
    assert out.dtype == jnp.bfloat16 and entropy.dtype == jnp.float32
    np.testing.assert_allclose(entropy, want_entropy, atol=1e-6)
    np.testing.assert_allclose(*(np.asarray(a, np.float32) for a in (out, want)), atol=2e-2)


def test_its_gradient_is_that_of_the_reference():
    arrays, mask = _arrays(5, 2), _masks(6)["rows"]

    def total(kind):
        def loss(q, k, v):
            out, entropy = attention_with_entropy(q, k, v, mask, content_start=3, kind=kind)
            return jnp.sum(out**2) + jnp.sum(jnp.sin(3 * entropy))

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arrays)

    for got, want in zip(total("pallas"), total("xla"), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)


def test_what_fits_no_block_is_left_to_xla():
    def shape(rows, keys, width):
        return jax.ShapeDtypeStruct((1, rows, 1, width), jnp.float32)

    q, k = (jax.ShapeDtypeStruct((1, n, 16, 64), jnp.float32) for n in (320, 320))
    assert entropy_kernel.block_rows(q, k) in range(8, 321, 8)
    assert entropy_kernel.block_rows(q.update(shape=(1, 1, 16, 64)), k) == 0  # decoding
    assert entropy_kernel.block_rows(q, k.update(shape=(1, 20_000, 16, 64))) == 0


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="^attention: got 'flash', allowed auto | xla"):
        attention_with_entropy(*_arrays(0), kind="flash")
