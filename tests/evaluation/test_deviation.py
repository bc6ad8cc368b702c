"""Draws held against draws: known distances, and contexts that are what they say."""

import numpy as np
import pytest

from driftar_jax.evaluation import deviation
from driftar_jax.sampling import contexts


def test_equal_draws_have_no_distance_and_others_their_shift_and_spread():
    rng = np.random.default_rng(0)
    own = rng.normal(size=(2, 3, 400, 4))
    same = deviation.compare(own, rng.normal(size=(2, 3, 400, 4)), own[:, :, 0])
    assert abs(same.energy.mean()) < 0.01 and same.shift.max() < 0.15
    np.testing.assert_allclose(same.spread, 1, atol=0.1)
    moved = deviation.compare(own, 2 * rng.normal(size=(2, 3, 300, 4)) + 3, own[:, :, 0])
    # A shift of 3 in each of 4 channels, over a spread of sqrt(4).
    np.testing.assert_allclose(moved.shift, 3, rtol=0.1)
    np.testing.assert_allclose(moved.spread, 2, rtol=0.1)
    assert moved.energy.min() > 1


def test_the_distance_is_that_of_the_formula():
    own, other = np.array([[0.0], [2.0]]), np.array([[1.0], [5.0], [6.0]])
    found = deviation.compare(own[None, None], other[None, None], np.array([[[4.0]]]))
    between = np.abs(own - other.T).mean()
    within = (4 + 5 + 1) / 3
    np.testing.assert_allclose(found.energy, 2 * between - 2 - within)
    np.testing.assert_allclose(found.score, (3 + 1 + 2) / 3 - within / 2)


def test_one_draw_is_refused():
    with pytest.raises(ValueError, match="draws: got 1 of other, allowed at least 2"):
        deviation.compare(np.zeros((1, 1, 2, 3)), np.zeros((1, 1, 1, 3)), np.zeros((1, 1, 3)))


def test_contexts_ask_for_unknown_tokens():
    images = np.random.default_rng(1).integers(0, 256, (40, 4, 6, 1), np.uint8)
    made = contexts.of_generation(images, np.zeros(40, np.int64), 2, per_image=2, seed=3)
    unknown = (~made.known).sum(axis=1)
    assert unknown.min() == 2 and unknown.max() == 6 and made.tokens.shape == (40, 6, 4)
    assert not np.take_along_axis(made.known, made.positions, axis=1).any()
    np.testing.assert_array_equal(made.targets[5, 1], made.tokens[5, made.positions[5, 1]])
