"""The bank of real samples against a plain Python ring buffer, and what it draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from driftar_jax.drift import bank as bank_lib

K, SIZE, N, C = 3, 4, 2, 5
push = jax.jit(bank_lib.push, donate_argnums=0)
draw = jax.jit(bank_lib.draw, static_argnums=3)
draw_any = jax.jit(bank_lib.draw_any, static_argnums=(2, 3))


def _empty(dtype="float32"):
    return nn.meta.unbox(bank_lib.empty(K, SIZE, (N, C), dtype))


def _samples(first, count):
    """Samples whose every number names them."""
    return jnp.broadcast_to(
        jnp.arange(first, first + count, dtype=jnp.float32)[:, None, None], (count, N, C)
    )


def _filled(labels):
    bank = push(_empty(), jnp.asarray(labels, jnp.int32), _samples(1, len(labels)))
    return bank


class Ring:
    """The bank in plain Python: one list of slots per class."""

    def __init__(self):
        self.slots = [[None] * SIZE for _ in range(K)]
        self.pointer, self.count, self.seen = [0] * K, [0] * K, [0] * K

    def push(self, label, value):
        if not 0 <= label < K:
            return
        self.slots[label][self.pointer[label]] = value
        self.pointer[label] = (self.pointer[label] + 1) % SIZE
        self.count[label] = min(self.count[label] + 1, SIZE)
        self.seen[label] += 1


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(-1, K), min_size=7, max_size=7), min_size=1, max_size=4))
def test_pushes_are_those_of_a_ring_buffer(pushes):
    ring, bank, number = Ring(), _empty(), 1
    for labels in pushes:
        bank = push(bank, jnp.asarray(labels, jnp.int32), _samples(number, 7))
        for i, label in enumerate(labels):
            ring.push(label, number + i)
        number += 7
    assert bank.pointer.tolist() == ring.pointer
    assert bank.count.tolist() == ring.count and bank.seen.tolist() == ring.seen
    for k in range(K):
        for i in range(SIZE):
            want = ring.slots[k][i] or 0
            np.testing.assert_array_equal(bank.data[k, i], np.full((N, C), want))


def test_a_push_writes_in_place_and_keeps_its_type():
    bank = _empty("bfloat16")
    compiled = push.lower(bank, jnp.zeros(3, jnp.int32), tiny.normal(0, 3, N, C)).compile()
    aliased = compiled.memory_analysis().alias_size_in_bytes
    assert aliased == bank_lib.num_bytes(K, SIZE, (N, C), "bfloat16")
    after = push(bank, jnp.int32([2, 2, 0]), tiny.normal(0, 3, N, C))
    assert after.data.dtype == jnp.bfloat16 and bank.data.is_deleted()
    drawn, mask = draw(after, jax.random.key(0), jnp.int32([0]), 2)
    assert drawn.dtype == jnp.float32 and mask.tolist() == [[True, False]]
    np.testing.assert_allclose(drawn[0, 0], tiny.normal(0, 3, N, C)[2], rtol=1e-2)


def test_draws_are_without_replacement_and_masked_where_short():
    bank = _filled([0, 0, 1, 0, 0, 0])  # class 0 holds samples 2 4 5 6, class 1 the third
    assert bank_lib.ready(bank, 2).tolist() == [True, False, False]
    met = set()
    for seed in range(30):
        samples, mask = draw(bank, jax.random.key(seed), jnp.int32([0, 1, 2, 0]), 3)
        values = np.asarray(samples[..., 0, 0])
        assert mask.tolist() == [[True] * 3, [True, False, False], [False] * 3, [True] * 3]
        for row in (0, 3):
            assert len(set(values[row])) == 3 and set(values[row]) <= {2.0, 4.0, 5.0, 6.0}
        assert values[1, 0] == 3 and np.isfinite(values).all()
        met.add(tuple(values[0]))
    assert len(met) > 10
    whole, mask = draw(bank, jax.random.key(0), jnp.int32([0]), SIZE)
    assert mask.all() and sorted(whole[0, :, 0, 0].tolist()) == [2, 4, 5, 6]


def test_every_sample_of_a_class_is_as_likely():
    bank = _filled([1, 1, 1])
    keys = jax.random.split(jax.random.key(1), 3000)
    one = jax.jit(jax.vmap(lambda k: bank_lib.draw(bank, k, jnp.int32([1]), 1)[0][0, 0, 0, 0]))(
        keys
    )
    share = [float((one == v).mean()) for v in (1, 2, 3)]
    np.testing.assert_allclose(share, 1 / 3, atol=4 * np.sqrt(2 / 9 / 3000))


def test_any_class_is_drawn_as_often_as_it_was_pushed():
    labels = [0] * 9 + [1] * 3  # class 0 has lost samples 1..5
    bank = _filled(labels)
    samples, mask = draw_any(bank, jax.random.key(2), 4000, 1)
    assert mask.all()
    first = np.asarray(samples[:, 0, 0, 0])
    assert set(first) == {6, 7, 8, 9, 10, 11, 12}
    share = (first >= 10).mean()
    np.testing.assert_allclose(share, 3 / 12, atol=4 * np.sqrt(3 / 16 / 4000))
    many, mask = draw_any(bank, jax.random.key(3), 2, 9)
    assert mask.sum(axis=1).tolist() == [7, 7]
    for row in range(2):
        held = np.asarray(many[row, mask[row], 0, 0])
        assert sorted(held) == [6, 7, 8, 9, 10, 11, 12]
    _, none = draw_any(_empty(), jax.random.key(4), 2, 3)
    assert not none.any()


def test_sizes_and_shapes_that_do_not_fit_are_refused():
    check = functools.partial(bank_lib.check_size, 1000, 128, (256, 16))
    check("bfloat16", limit_gib=1.0)
    with pytest.raises(ValueError, match=r"bank.size: got 128 \(1.95 GiB .*\), allowed at most 65"):
        check("float32", limit_gib=1.0)
    with pytest.raises(ValueError, match="num: got 5, allowed 1 to bank.size 4"):
        bank_lib.draw(_empty(), jax.random.key(0), jnp.int32([0]), 5)
    with pytest.raises(ValueError, match="num: got 13, allowed 1 to 12"):
        bank_lib.draw_any(_empty(), jax.random.key(0), 1, 13)
    with pytest.raises(ValueError, match=r"samples: got \(2,\) and \(2, 5, 2\)"):
        bank_lib.push(_empty(), jnp.int32([0, 1]), jnp.zeros((2, C, N)))
