"""The energy field of Eq. 8: exact signs, its fixed point, one positive, its loss and score."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from driftar_jax.drift import fields


def _unit(v):
    length = np.linalg.norm(v)
    return v / length if length else v


def _loop(x, positives, negatives=None, repulsion=1.0):
    """The field of one context in float64, sample by sample."""
    x, positives = np.asarray(x, np.float64), np.asarray(positives, np.float64)
    rows = []
    for g, here in enumerate(x):
        others = np.delete(x, g, axis=0) if negatives is None else np.asarray(negatives)
        pull = np.mean([_unit(y - here) for y in positives], axis=0)
        push = np.mean([_unit(y - here) for y in others], axis=0)
        rows.append(pull - repulsion * push)
    return np.stack(rows)


def test_the_field_matches_a_float64_loop():
    x, positives, negatives = (
        tiny.normal(0, 2, 4, 3),
        tiny.normal(1, 2, 5, 3),
        tiny.normal(2, 2, 6, 3),
    )
    energy = jax.jit(fields.energy)
    found, own = energy(x, positives, negatives), energy(x, positives)
    for b in range(2):
        np.testing.assert_allclose(found[b], _loop(x[b], positives[b], negatives[b]), atol=1e-6)
        np.testing.assert_allclose(own[b], _loop(x[b], positives[b]), atol=1e-6)
    wide = jax.jit(fields.energy)(x, positives, repulsion=1.3)
    np.testing.assert_allclose(wide[1], _loop(x[1], positives[1], repulsion=1.3), atol=1e-6)


def test_swapping_data_and_samples_flips_every_bit_of_the_sign():
    x, p, q = tiny.normal(3, 2, 4, 3), tiny.normal(4, 2, 5, 3), tiny.normal(5, 2, 7, 3)
    forth, back = (np.asarray(fields.energy(x, *both)) for both in ((p, q), (q, p)))
    np.testing.assert_array_equal(forth, -back)
    assert np.abs(forth).min() > 0
    # A compiler may round once where two operations round twice.
    np.testing.assert_allclose(jax.jit(fields.energy)(x, q, p), -forth, atol=2e-7)


@pytest.mark.parametrize(
    ("change", "vanishes"),
    [
        (lambda v: v, True),
        (lambda v: v + np.float32([[0.5, 0.0, 0.0]]), False),
        (lambda v: 2.0 * v, False),
    ],
    ids=["same", "moved", "wider"],
)
def test_the_field_vanishes_only_where_the_distributions_agree(change, vanishes):
    count = 20_000
    p, q = tiny.normal(6, count, 3), change(tiny.normal(7, count, 3))
    field = jax.jit(fields.energy)(tiny.normal(8, 9, 3), p, q)
    # Each component is a difference of two means of values in [-1, 1].
    error = 4 * np.sqrt(2 / count / 3)
    assert (np.abs(field).max() < error) == vanishes
    if not vanishes:
        assert np.abs(field).max() > 5 * error


def test_one_positive_is_unbiased():
    x, positives, negatives = tiny.normal(9, 4, 3), tiny.normal(10, 50, 3), tiny.normal(11, 6, 3)
    one_each = jax.jit(jax.vmap(lambda y: fields.energy(x, y[None], negatives)))(positives)
    many = jax.jit(fields.energy)(x, positives, negatives)
    one_each, many = np.asarray(one_each), np.asarray(many)
    np.testing.assert_allclose(one_each.mean(axis=0), many, atol=1e-6)
    assert np.abs(one_each[0] - many).max() > 0.1


def test_a_draw_does_not_repel_itself():
    """The mean over the other draws is unbiased for the field of their distribution."""
    draws = tiny.normal(12, 5000, 4, 2)
    positives = np.zeros((5000, 1, 2))
    energy = jax.jit(fields.energy)
    own = np.asarray(energy(draws, positives))[:, 0]
    outside = np.asarray(energy(draws[:, :1], positives, tiny.normal(13, 5000, 3, 2)))[:, 0]
    np.testing.assert_allclose((own - outside).mean(axis=0), 0.0, atol=0.05)
    towards = -draws[:, 0] / np.linalg.norm(draws[:, 0], axis=-1, keepdims=True)
    push = ((towards - own) * towards).sum(axis=-1).mean()
    want = ((towards - outside) * towards).sum(axis=-1).mean()
    np.testing.assert_allclose(push, want, atol=0.03)
    assert want > 0.3  # with the divisor G the push would be a quarter smaller


def _score(x, y):
    """Energy score of one context in float64."""
    draws = len(x)
    between = sum(np.linalg.norm(a - b) for a in x for b in x)
    return np.mean([np.linalg.norm(a - y) for a in x]) - 0.5 * between / (draws * (draws - 1))


def test_the_energy_score_matches_a_float64_loop():
    x, y = tiny.normal(14, 2, 4, 3), tiny.normal(15, 2, 3)
    want = [_score(np.asarray(x[b], np.float64), np.asarray(y[b], np.float64)) for b in range(2)]
    np.testing.assert_allclose(jax.jit(fields.energy_score)(x, y), want, rtol=1e-5)


def test_the_drift_loss_descends_the_energy_score():
    """The gradient of the mean drift loss is twice that of the score, by finite differences."""
    x, y = tiny.normal(16, 4, 3), tiny.normal(17, 3)

    def loss(x):
        return fields.drift_loss(x, fields.energy(x, y[None])).mean()

    found = np.asarray(jax.jit(jax.grad(loss))(x))
    base, target = np.asarray(x, np.float64), np.asarray(y, np.float64)
    want = np.zeros_like(base)
    for place in np.ndindex(*base.shape):
        step = np.zeros_like(base)
        step[place] = 1e-5
        want[place] = (_score(base + step, target) - _score(base - step, target)) / 2e-5
    np.testing.assert_allclose(found, 2 * want, atol=1e-5)
    field = np.asarray(jax.jit(fields.energy)(x, y[None]))
    np.testing.assert_allclose(found, -2 * field / 4, atol=1e-6)
    np.testing.assert_allclose(
        fields.drift_loss(x, field), (np.asarray(field) ** 2).sum(-1), rtol=1e-4
    )


def test_coincident_points_have_finite_gradients():
    x = jnp.ones((3, 2))

    def both(x):
        field = fields.energy(x, x[:1], x)
        return fields.energy_score(x, x[0]) + field.sum() + fields.drift_loss(x, field).sum()

    value, grad = jax.jit(jax.value_and_grad(both))(x)
    assert value == 0.0 and np.isfinite(grad).all()


def test_one_draw_is_refused():
    with pytest.raises(ValueError, match="drift.draws: got 1, allowed 2 or more"):
        fields.energy(jnp.ones((1, 3)), jnp.zeros((1, 3)))
    one = fields.energy(jnp.ones((1, 3)), jnp.zeros((1, 3)), jnp.zeros((2, 3)))
    np.testing.assert_array_equal(one, np.zeros((1, 3)))


@pytest.mark.parametrize("other", [(1, 1, 3), (2, 1, 1), (1, 3)], ids=["context", "width", "rank"])
def test_samples_that_would_broadcast_are_refused(other):
    """One real token for all contexts, or one number for all of a token's, is a caller's slip."""
    x = np.ones((2, 4, 3), np.float32)
    with pytest.raises(AssertionError, match="shape"):
        fields.energy(x, np.ones(other, np.float32))
    with pytest.raises(AssertionError, match="shape"):
        fields.energy(x, x[:, :1], np.ones(other, np.float32))
    with pytest.raises(AssertionError, match="shape"):
        fields.guided_energy(x, x[:, :1], x, np.ones(1, np.float32))
