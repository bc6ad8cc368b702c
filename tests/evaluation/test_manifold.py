"""Precision, recall and nearest images against brute force, whatever the blocks."""

import tracemalloc

import numpy as np
import pytest

from driftar_jax.evaluation import manifold


def _brute_force(real, made, k):
    def apart(a, b):
        return np.sqrt(((a[:, None] - b[None]) ** 2).sum(axis=-1))

    def inside(points, centres):
        radii = [np.sort(row)[k] for row in apart(centres, centres)]
        return np.mean([(row <= radii).any() for row in apart(points, centres)])

    return inside(made, real), inside(real, made)


@pytest.mark.parametrize("block", [1, 7, 100])
@pytest.mark.parametrize("far", [0.0, 1e5])
def test_precision_and_recall_match_brute_force(block, far):
    draw = np.random.default_rng(0)
    real = draw.normal(size=(31, 3)) + far
    made = 1.3 * draw.normal(size=(43, 3)) + 0.4 + far
    got = manifold.precision_recall(real, made, neighbours=2, block=block)
    assert got == _brute_force(real, made, 2)
    assert 0 < got[0] < 1 and 0 < got[1] < 1 and got[0] != got[1]


def test_memory_is_that_of_a_few_blocks():
    draw = np.random.default_rng(5)
    real, made = draw.normal(size=(2, 1500, 3))
    tracemalloc.start()
    try:
        manifold.precision_recall(real, made, block=20)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # All distances together would take 18 MB.
    assert most < 8 * 20 * 1500 * 8


def test_repeated_points_stay_in_their_own_manifold():
    """Their balls have no radius: rounding must not push them out."""
    point = np.random.default_rng(1).normal(size=(1, 5)).astype(np.float32) * 1e3
    real = np.concatenate([np.repeat(point, 6, axis=0), np.ones((2, 5), np.float32)])
    precision, _ = manifold.precision_recall(real, np.repeat(point, 5, axis=0))
    assert precision == 1.0


def test_a_collapsed_sampler_has_precision_without_recall():
    draw = np.random.default_rng(2)
    real = draw.normal(size=(60, 2))
    collapsed = real[:1] + 1e-3 * draw.normal(size=(50, 2))
    precision, recall = manifold.precision_recall(real, collapsed)
    assert precision == 1.0 and recall <= 2 / 60
    everywhere = 30 * draw.normal(size=(50, 2))
    precision, recall = manifold.precision_recall(real, everywhere)
    assert precision < 0.5 and recall > 0.9


@pytest.mark.parametrize(
    ("real", "made", "line"),
    [
        ((3, 2), (9, 2), "num: got 3 images, allowed more than 3"),
        ((9, 2), (3, 2), "num: got 3 images, allowed more than 3"),
        ((9, 2), (9, 3), "features: got"),
    ],
)
def test_sets_that_do_not_fit_are_refused(real, made, line):
    with pytest.raises(ValueError, match=line):
        manifold.precision_recall(np.zeros(real), np.zeros(made))


@pytest.mark.parametrize("block", [1, 2, 100])
def test_nearest_images_match_brute_force(block):
    draw = np.random.default_rng(3)
    training = draw.integers(0, 256, (37, 4, 6, 3), np.uint8)
    images = draw.integers(0, 256, (5, 4, 6, 3), np.uint8)
    images[2] = training[30]
    index, distance = manifold.nearest(images, training, block=block)
    apart = (images[:, None].astype(float) - training[None]) / 255
    want = np.sqrt((apart**2).mean(axis=(2, 3, 4)))
    np.testing.assert_array_equal(index, want.argmin(axis=1))
    np.testing.assert_allclose(distance, want.min(axis=1), rtol=1e-12)
    assert index[2] == 30 and distance[2] == 0.0


def test_large_images_are_compared_as_thumbnails():
    draw = np.random.default_rng(4)
    images = draw.integers(0, 256, (2, 66, 40, 1), np.uint8)
    small = manifold.thumbnails(images)
    # 66 rows in cells of 3, 40 columns in cells of 2.
    assert small.shape == (2, 22, 20, 1) and small.dtype == np.uint8
    want = images[1, 63:66, 38:40, 0].mean()
    assert abs(float(small[1, 21, 19, 0]) - want) <= 0.5
    np.testing.assert_array_equal(manifold.thumbnails(images[:, :9, :8]), images[:, :9, :8])


def test_images_of_another_size_are_refused():
    images = np.zeros((2, 4, 6, 1), np.uint8)
    with pytest.raises(ValueError, match="images: got shape"):
        manifold.nearest(images, np.zeros((3, 4, 5, 1), np.uint8))
    with pytest.raises(ValueError, match="at least one of them"):
        manifold.nearest(images, images[:0])
