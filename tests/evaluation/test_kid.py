"""The kernel distance against loops in float64, its bias, and what is refused."""

import numpy as np
import pytest

from driftar_jax.evaluation import kid


def _by_loops(x, y):
    def kernel(a, b):
        return (sum(float(p) * float(q) for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    within_x = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j)
    within_y = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j)
    across = sum(kernel(a, b) for a in x for b in y)
    return within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * across / (n * m)


def test_a_subset_is_what_loops_give():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 5)), rng.normal(0.5, 2.0, size=(9, 5))
    np.testing.assert_allclose(kid.discrepancy(x, y), _by_loops(x, y), rtol=1e-12)


def test_mean_and_spread_are_those_of_the_subsets():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(30, 4)), rng.normal(size=(20, 4))
    draws = np.random.default_rng(3)
    want = []
    for _ in range(6):
        a = x[draws.choice(30, 8, replace=False)]
        want.append(_by_loops(a, y[draws.choice(20, 8, replace=False)]))
    found = kid.kid(x, y, subsets=6, size=8, seed=3)
    np.testing.assert_allclose(found, (np.mean(want), np.std(want)), rtol=1e-10)


def test_it_is_unbiased_for_small_sets_of_one_distribution():
    rng = np.random.default_rng(2)
    found = [kid.discrepancy(rng.normal(size=(6, 3)), rng.normal(size=(6, 3))) for _ in range(4000)]
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found)) < 4 * error and np.min(found) < 0
    moved = [
        kid.discrepancy(rng.normal(size=(6, 3)), rng.normal(1.0, size=(6, 3))) for _ in range(400)
    ]
    assert np.mean(moved) > 20 * error


def test_small_sets_are_cut_in_half():
    rng = np.random.default_rng(4)
    mean, spread = kid.kid(rng.normal(size=(60, 4)), rng.normal(size=(54, 4)))
    assert np.isfinite(mean) and spread > 0


@pytest.mark.parametrize(
    "shapes, said", [(((3, 2), (9, 2)), "got 3 images"), (((9, 2), (9, 3)), "width")]
)
def test_what_is_refused(shapes, said):
    with pytest.raises(ValueError, match=said):
        kid.kid(*(np.zeros(shape) for shape in shapes))
