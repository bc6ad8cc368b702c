"""Spread against error: brute force, and what it says of draws known to be right, or not."""

import numpy as np
import pytest

from driftar_jax.drift import spread


def _brute(x, y, basis, band):
    """One band by loops in float64."""
    variance = error = 0.0
    for draws, real in zip(x.reshape(-1, *x.shape[-2:]), y.reshape(-1, y.shape[-1]), strict=True):
        for column in band:
            along = [float(np.dot(draw, basis[:, column])) for draw in draws]
            mean = sum(along) / len(along)
            variance += sum((a - mean) ** 2 for a in along) / (len(along) - 1)
            error += (float(np.dot(real, basis[:, column])) - mean) ** 2
    return (1 + 1 / x.shape[-2]) * variance / error


def test_it_is_the_ratio_of_the_definition():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(3, 2, 5, 6)), rng.normal(size=(3, 2, 6))
    basis = spread.directions(rng.normal(size=(40, 6)) * np.arange(1, 7))
    np.testing.assert_allclose(basis.T @ basis, np.eye(6), atol=1e-12)
    want = [_brute(x, y, basis, band) for band in ((0, 1), (2, 3), (4,), (5,))]
    np.testing.assert_allclose(spread.to_error(x, y, basis), want, rtol=1e-10)
    single = spread.to_error(x.astype(np.float32), y.astype(np.float32), basis)
    np.testing.assert_allclose(single, want, rtol=1e-5)


def test_directions_go_from_the_coarse_to_the_fine():
    rng = np.random.default_rng(1)
    tokens = rng.normal(size=(500, 2, 4)) * [0.1, 3.0, 1.0, 0.3]
    found = np.abs(spread.directions(tokens)).argmax(axis=0)
    assert found.tolist() == [1, 2, 3, 0]


def test_one_where_draws_and_data_agree_whatever_their_number():
    rng = np.random.default_rng(2)
    scale, n = np.array([4.0, 2.0, 1.0, 0.5]), 20_000
    y = rng.normal(size=(n, 4)) * scale
    for draws in (2, 8):
        x = rng.normal(size=(n, draws, 4)) * scale
        found = np.array(spread.to_error(x, y, np.eye(4)))
        assert np.abs(found - 1).max() < 0.05
        # Twice as wide in the last direction, half as wide in the second.
        bent = np.array(spread.to_error(x * [1, 0.5, 1, 2], y, np.eye(4)))
        own = [1, 0.25 * (1 + 1 / draws) / (1 + 0.25 / draws)]
        own += [1, 4 * (1 + 1 / draws) / (1 + 4 / draws)]
        np.testing.assert_allclose(bent, own, rtol=0.06)


def test_few_channels_have_fewer_bands():
    rng = np.random.default_rng(3)
    y = rng.normal(size=(50, 2))
    assert len(spread.to_error(rng.normal(size=(50, 3, 2)), y, spread.directions(y))) == 2
    assert (
        len(spread.to_error(rng.normal(size=(50, 3, 1)), y[:, :1], spread.directions(y[:, :1])))
        == 1
    )
    with pytest.raises(ValueError, match="draws: got 1, allowed 2 or more"):
        spread.to_error(y[:, None], y, np.eye(2))
