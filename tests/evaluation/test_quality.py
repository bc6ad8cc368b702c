"""Distances between features, the real floor, and the judge's reading."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import tiny

from driftar_jax.evaluation import quality
from driftar_jax.features import SmallClassifier


def _features(seed, n, d, scale=1.0, shift=0.0):
    draw = np.random.default_rng(seed)
    return shift + scale * draw.normal(size=(n, d)) @ draw.normal(size=(d, d))


def test_frechet_distance_matches_the_matrix_root():
    a = quality.Moments.of(_features(0, 40, 5))
    b = quality.Moments.of(_features(1, 60, 5, scale=1.7, shift=0.4))
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    want = ((a.mean - b.mean) ** 2).sum()
    want += np.trace(a.covariance + b.covariance - 2 * root)
    np.testing.assert_allclose(quality.frechet_distance(a, b), want, rtol=1e-9)
    np.testing.assert_allclose(quality.frechet_distance(b, a), want, rtol=1e-9)


def test_frechet_distance_of_normals_on_a_line():
    a = quality.Moments(np.array([1.0]), np.array([[4.0]]), 10)
    b = quality.Moments(np.array([-2.0]), np.array([[0.25]]), 10)
    np.testing.assert_allclose(quality.frechet_distance(a, b), 3.0**2 + (2 - 0.5) ** 2)


def test_a_set_is_at_no_distance_from_itself():
    a = quality.Moments.of(_features(2, 50, 4))
    assert abs(quality.frechet_distance(a, a)) < 1e-9


def test_moments_need_more_images_than_features():
    with pytest.raises(ValueError, match="num: got 4 images, allowed more than 4"):
        quality.Moments.of(np.zeros((4, 4)))
    m = quality.Moments.of(_features(3, 9, 4))
    assert m.count == 9 and m.covariance.shape == (4, 4)


def test_the_floor_is_above_zero_and_falls_with_the_number_of_images():
    features = _features(4, 600, 3)
    few, many = quality.real_floor(features[:60]), quality.real_floor(features)
    assert few > many > 0
    assert quality.real_floor(features) == many
    assert many < quality.frechet_distance(
        quality.Moments.of(features), quality.Moments.of(1.5 * features)
    )


@pytest.fixture(scope="module")
def judge():
    module = SmallClassifier(num_classes=3, width=4)
    params = tiny.params(module.init, jnp.zeros((1, *tiny.IMAGES.image_shape)))["params"]
    return quality.Judge(module, params)


def test_the_judge_reads_all_images_whatever_the_batch(judge):
    images = tiny.batch(11)["image"]
    features, classes = judge.read(images, batch_size=4)
    whole, same = judge.read(images, batch_size=16)
    np.testing.assert_allclose(features, whole, atol=1e-5)
    np.testing.assert_array_equal(classes, same)
    assert features.shape == (11, 4) and features.dtype == np.float64
    assert features.std(axis=0).max() > 1e-3


def test_quality_compares_with_the_real_moments_and_the_labels(judge):
    images = tiny.batch(20)["image"]
    features, classes = judge.read(images)
    real = quality.Moments.of(features)
    labels = classes.copy()
    labels[:5] = (labels[:5] + 1) % 3
    found = quality.measure(judge, real, images, labels)
    assert found.accuracy == 0.75 and abs(found.frechet) < 1e-9
    darker = quality.measure(judge, real, images // 4, labels)
    assert darker.frechet > 1e-3
