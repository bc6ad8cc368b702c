"""How far to draft: chances from lengths, expected groups, and the best of measured costs."""

import numpy as np
import pytest

from driftar_jax.sampling import draft_count


def test_chances_are_those_of_a_brute_count():
    rng, truth = np.random.default_rng(0), (0.8, 0.5, 0.3)
    stands = rng.random((40_000, 3)) < truth
    lengths = np.bincount(np.cumprod(stands, axis=1).sum(axis=1), minlength=4)
    np.testing.assert_allclose(draft_count.acceptance(lengths), truth, atol=0.02)


def test_a_draft_that_was_never_reached_has_the_chance_of_the_one_before():
    np.testing.assert_array_equal(draft_count.acceptance(np.array([6, 2, 0, 0])), [0.25, 0.0, 0.0])
    np.testing.assert_array_equal(draft_count.acceptance(np.array([5, 0, 0])), [0.0, 0.0])


def test_expected_groups_are_the_mean_of_accepted_ones_and_one():
    lengths = np.array([7, 5, 2, 1])
    chances = draft_count.acceptance(lengths)
    mean = (lengths * np.arange(4)).sum() / lengths.sum()
    np.testing.assert_allclose(draft_count.groups_per_call(chances, 3), 1 + mean)
    assert draft_count.groups_per_call(chances, 0) == 1


@pytest.mark.parametrize(
    ("chances", "seconds", "want"),
    [
        ((1.0, 1.0), {0: 1.0, 1: 1.1, 2: 1.2}, 2),  # drafts are right and nearly free
        ((0.5, 0.5), {0: 1.0, 1: 1.4, 2: 1.8}, 1),  # 1.07 groups a second, 0.97 with two drafts
        ((0.0, 0.0), {0: 1.0, 1: 1.1, 2: 1.2}, 0),
        ((0.5, 0.5), {0: 1.0, 1: 1.5, 2: 1.75}, 0),  # no gain: the plain one
    ],
)
def test_the_best_is_what_yields_most_per_second(chances, seconds, want):
    assert draft_count.best(chances, seconds) == want
