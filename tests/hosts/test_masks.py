"""Mask laws: how many tokens are unknown, which, and what one AR step later is known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from driftar_jax.hosts import mar, masks
from driftar_jax.hosts.schedules import cosine_counts

B, N, KEYS = 6, 20, 600


@pytest.fixture(scope="module")
def drawn():
    """Masks of KEYS batches by law, `[KEYS, B, ...]`."""
    keys = jax.random.split(jax.random.key(0), KEYS)

    def many(law):
        draw = jax.vmap(lambda k: masks.draw(k, B, N, law=law, ratio_min=0.7))
        return jax.tree.map(np.asarray, jax.jit(draw)(keys))

    return {law: many(law) for law in mar.LAWS}


def _mar_share():
    """P(num_unknown = k) for k in 0..N under MAR's law."""
    law = stats.truncnorm((0.7 - 1) / 0.25, 0.0, loc=1.0, scale=0.25)
    return np.diff(law.cdf(np.arange(-1, N + 1) / N))


def _generation_share():
    """P(num_unknown = k) where the unknown share is cos(pi/2 u), u uniform."""
    below = 1 - np.arccos(np.arange(N + 1) / N) / (np.pi / 2)
    return np.diff(below, prepend=0.0)


@pytest.mark.parametrize("law", mar.LAWS)
def test_orders_are_permutations_and_known_is_their_end(drawn, law):
    m = drawn[law]
    assert (np.sort(m.order, axis=-1) == np.arange(N)).all()
    first, size = m.order[0, 1], m.num_unknown[0, 1]
    unknown = np.zeros(N, bool)
    unknown[first[:size]] = True
    np.testing.assert_array_equal(~jax.tree.map(lambda a: a[0], m).known[1], unknown)
    counted = (~(m.rank >= m.num_unknown[..., None])).sum(-1)
    np.testing.assert_array_equal(counted, m.num_unknown)
    # Every position comes first equally often: 5 standard deviations of a count.
    often = np.bincount(m.order[..., 0].ravel(), minlength=N)
    expected = KEYS * B / N
    assert np.abs(often - expected).max() < 5 * np.sqrt(expected)


def test_mar_draws_one_rate_per_batch_above_the_floor(drawn):
    counts = drawn["mar"].num_unknown
    assert (counts == counts[:, :1]).all()
    assert counts.min() >= 14 and counts.max() == N
    found = np.bincount(counts[:, 0], minlength=N + 1) / KEYS
    np.testing.assert_allclose(found, _mar_share(), atol=5 * 0.5 / np.sqrt(KEYS))
    want = (_mar_share() * np.arange(N + 1)).sum()
    np.testing.assert_allclose(counts[:, 0].mean(), want, atol=5 * 2 / np.sqrt(KEYS))


def test_generation_draws_half_by_mar_and_half_as_sampling_meets(drawn):
    counts = drawn["generation"].num_unknown
    own, met = counts[:, : B // 2], counts[:, B // 2 :]
    assert (own != own[:, :1]).any() and (met != met[:, :1]).any()
    assert own.min() >= 14 and own.max() == N
    assert met.min() == 1 and met.max() == N
    size = own.size
    for part, share in ((own, _mar_share()), (met, _generation_share())):
        found = np.bincount(part.ravel(), minlength=N + 1) / size
        np.testing.assert_allclose(found, share, atol=5 * 0.35 / np.sqrt(size))
        want = (share * np.arange(N + 1)).sum()
        np.testing.assert_allclose(part.mean(), want, atol=5 * 6 / np.sqrt(size))


def test_different_keys_and_images_get_different_orders(drawn):
    order = drawn["mar"].order
    assert (order[0, 0] != order[0, 1]).any() and (order[0, 0] != order[1, 0]).any()


def test_advance_reveals_at_least_one_token_and_keeps_one():
    counts = jnp.arange(1, N + 1)
    order = jnp.broadcast_to(jnp.arange(N)[::-1], (N, N))
    now = masks.Masks(order=order, rank=jnp.argsort(order, axis=-1), num_unknown=counts)
    for ar_steps in (1, 2, 7, N - 1, N, 10**8):
        later = masks.advance(now, ar_steps)
        assert later.num_unknown.min() >= 1
        assert (later.num_unknown[1:] < counts[1:]).all() and later.num_unknown[0] == 1
        assert (later.known | ~now.known).all()  # what was known stays known
        first = N - cosine_counts(N, min(ar_steps, N))[0]
        assert later.num_unknown[-1] == max(first, 1)


@pytest.mark.parametrize("num_unknown", [1, 2, 4, 5])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_chosen_tokens_stand_for_all_unknown_ones(num_unknown, count):
    """Over all orders of a fixed unknown set, the mean of the weighted sums is its sum."""
    value = np.array([2.0, -1.0, 7.0, 3.5, 0.25])
    orders = [
        (*first, *range(num_unknown, 5)) for first in itertools.permutations(range(num_unknown))
    ]
    order = jnp.asarray(orders, jnp.int32)
    drawn = masks.Masks(
        order=order,
        rank=jnp.argsort(order, axis=-1),
        num_unknown=jnp.full(len(orders), num_unknown, jnp.int32),
    )
    positions, weight = (np.asarray(a) for a in masks.some_unknown(drawn, count))
    assert positions.shape == weight.shape == (len(orders), count)
    sums = (value[positions] * weight).sum(axis=1)
    np.testing.assert_allclose(sums.mean(), value[:num_unknown].sum(), rtol=1e-6)
    assert (positions[weight > 0] < num_unknown).all()
    assert ((weight > 0).sum(axis=1) == min(count, num_unknown)).all()
