"""The entropy tracker and the rule that ends drafting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftar_jax.heads import early_stop
from driftar_jax.published.merge import start, update


def _values(seed, *shape):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


def test_mean_and_variance_pool_the_updates():
    """Between updates the variance is that of all values; inside one it is the unbiased one."""
    parts = [_values(i, n) for i, n in enumerate((3, 8, 5))]
    tracker = start()
    for part in parts:
        tracker = jax.jit(update)(tracker, part)
    whole = np.concatenate(parts).astype(np.float64)
    n = np.asarray([len(p) for p in parts])
    inside = sum(k * p.astype(np.float64).var(ddof=1) for k, p in zip(n, parts, strict=True))
    between = sum(k * (p.mean() - whole.mean()) ** 2 for k, p in zip(n, parts, strict=True))
    np.testing.assert_allclose(tracker.mean, whole.mean(), rtol=1e-6)
    np.testing.assert_allclose(tracker.variance, (inside + between) / len(whole), rtol=1e-6)
    assert tracker.count == len(whole)


@pytest.mark.parametrize("gamma", [0.8, 0.3])
def test_the_first_update_makes_the_thresholds_equal(gamma):
    tracker = update(start(), _values(1, 2, 7), gamma=gamma)
    local = early_stop.context_threshold(tracker, gamma=gamma)
    np.testing.assert_allclose(local, early_stop.global_threshold(tracker), rtol=1e-6)
    later = update(tracker, _values(2, 2, 7), gamma=gamma)
    np.testing.assert_allclose(
        later.ema, 0.9 * tracker.ema + 0.1 * _values(2, 2, 7).mean(), rtol=1e-6
    )


def test_one_value_has_no_variance():
    tracker = update(start(), jnp.asarray([0.4]))
    np.testing.assert_allclose([tracker.mean, tracker.variance], [0.4, 0.0], atol=1e-7)


def test_stop_needs_both_thresholds():
    tracker = early_stop.EntropyTracker(*map(jnp.float32, (0.8, 0.04, 100, 0.5)))
    tau_g, tau_c = 0.3 * 0.8 - 0.1 * 0.2, 0.8 * 0.5
    np.testing.assert_allclose(early_stop.global_threshold(tracker), tau_g, rtol=1e-6)
    np.testing.assert_allclose(early_stop.context_threshold(tracker), tau_c, rtol=1e-6)
    rows = jnp.asarray([[0.1, 0.2], [0.2, 0.3], [0.5, 0.6]])  # means 0.15, 0.25, 0.55
    np.testing.assert_array_equal(early_stop.stop(rows, tracker), [True, False, False])
    calm = tracker.replace(ema=jnp.float32(0.1))
    np.testing.assert_array_equal(early_stop.stop(rows, calm), [False, False, False])


def test_a_tracker_that_saw_nothing_stops_nothing():
    assert not early_stop.stop(np.zeros((2, 3)), start()).any()


def test_statistics_of_training_are_a_tracker():
    values = np.random.default_rng(5).random(200)
    tracker = early_stop.of_training(float(values.mean()), float((values**2).mean()))
    np.testing.assert_allclose(tracker.mean, values.mean(), rtol=1e-6)
    np.testing.assert_allclose(tracker.variance, values.var(), rtol=1e-4)
    np.testing.assert_allclose(tracker.ema, values.mean(), rtol=1e-6)
    assert early_stop.of_training(0.3, 0.09 - 1e-9).variance == 0  # rounding is no spread


def test_a_number_stands_for_statistics():
    tracker = early_stop.of_threshold(0.27, gamma=0.9)
    np.testing.assert_allclose(early_stop.global_threshold(tracker), 0.27, rtol=1e-6)
    np.testing.assert_allclose(early_stop.context_threshold(tracker, gamma=0.9), 0.27, rtol=1e-6)
    assert not early_stop.stop(np.zeros((2, 3)), early_stop.of_threshold(0.0)).any()


def test_every_image_is_held_against_its_own_average():
    tracker = early_stop.of_threshold(0.5).replace(ema=jnp.array([0.9, 0.5]))
    rows = jnp.full((2, 3), 0.45)  # below tau_g; below 0.72 and not below 0.4
    np.testing.assert_array_equal(early_stop.stop(rows, tracker), [True, False])
    np.testing.assert_allclose(early_stop.follow(tracker.ema, np.zeros(2)), [0.81, 0.45], rtol=1e-6)
