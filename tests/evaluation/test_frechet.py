"""Frechet distance, moments in a stream, and files of reference statistics."""

import zipfile

import numpy as np
import pytest
import scipy.linalg

from driftar_jax.evaluation import frechet
from driftar_jax.evaluation.frechet import Moments


def _features(seed, n, d, scale=1.0, shift=0.0):
    draw = np.random.default_rng(seed)
    return shift + scale * draw.normal(size=(n, d)) @ draw.normal(size=(d, d))


def test_frechet_distance_matches_the_matrix_root():
    a = Moments.of(_features(0, 40, 5))
    b = Moments.of(_features(1, 60, 5, scale=1.7, shift=0.4))
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    want = ((a.mean - b.mean) ** 2).sum()
    want += np.trace(a.covariance + b.covariance - 2 * root)
    np.testing.assert_allclose(frechet.frechet_distance(a, b), want, rtol=1e-9)
    np.testing.assert_allclose(frechet.frechet_distance(b, a), want, rtol=1e-9)


def test_frechet_distance_of_normals_on_a_line():
    a = Moments(np.array([1.0]), np.array([[4.0]]), 10)
    b = Moments(np.array([-2.0]), np.array([[0.25]]), 10)
    np.testing.assert_allclose(frechet.frechet_distance(a, b), 3.0**2 + (2 - 0.5) ** 2)


def test_a_set_is_at_no_distance_from_itself():
    a = Moments.of(_features(2, 50, 4))
    assert abs(frechet.frechet_distance(a, a)) < 1e-9


def test_features_of_two_networks_are_not_compared():
    a, b = Moments.of(_features(2, 50, 4)), Moments.of(_features(2, 50, 3))
    with pytest.raises(ValueError, match="features: got width 4, allowed 3"):
        frechet.frechet_distance(a, b)


def test_a_stream_gives_the_moments_of_the_whole():
    # So far from zero, a sum of squares in one pass would lose half of the digits.
    features = _features(3, 53, 4, shift=1e6)
    sums = frechet.MomentSums(4)
    for part in np.split(features, [1, 3, 30, 30]):
        sums.add(part)
    got = sums.moments()
    assert got.count == sums.count == 53
    np.testing.assert_allclose(got.mean, features.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(got.covariance, np.cov(features, rowvar=False), rtol=1e-9)


def test_a_stream_keeps_no_features():
    sums = frechet.MomentSums(3)
    part = np.ones((100, 3), np.float32)
    held = [a.nbytes for a in vars(sums).values() if isinstance(a, np.ndarray)]
    for _ in range(500):
        sums.add(part)
    assert sums.count == 50_000
    assert [a.nbytes for a in vars(sums).values() if isinstance(a, np.ndarray)] == held


def test_moments_need_more_images_than_features():
    with pytest.raises(ValueError, match="num: got 4 images, allowed more than 4"):
        Moments.of(np.zeros((4, 4)))
    m = Moments.of(_features(3, 9, 4))
    assert m.count == 9 and m.covariance.shape == (4, 4)


@pytest.mark.parametrize(
    ("features", "line"),
    [
        (np.zeros((5, 4)), r"features: got shape \(5, 4\), allowed \[n, 3\]"),
        (np.full((5, 3), np.nan), "features: got NaN or infinity"),
    ],
)
def test_unfit_features_are_refused(features, line):
    with pytest.raises(ValueError, match=line):
        frechet.MomentSums(3).add(features)


def test_statistics_are_written_and_read(tmp_path):
    wanted = Moments.of(_features(5, 20, 3))
    frechet.write(tmp_path / "stats.npz", wanted, "classifier")
    got = frechet.read(tmp_path / "stats.npz", "classifier", 3)
    np.testing.assert_array_equal(got.mean, wanted.mean)
    np.testing.assert_array_equal(got.covariance, wanted.covariance)
    assert got.count == 20
    assert [p.name for p in tmp_path.iterdir()] == ["stats.npz"]


def test_published_statistics_are_read(tmp_path):
    """Such a file holds images and more statistics as well, single precision and either order."""
    wanted = Moments.of(_features(5, 20, 3))
    np.savez_compressed(
        tmp_path / "published.npz",
        arr_0=np.zeros((2, 4, 4, 3), np.uint8),
        mu=wanted.mean.astype(np.float32),
        sigma=np.asfortranarray(wanted.covariance),
        mu_s=np.zeros(7),
    )
    got = frechet.read(tmp_path / "published.npz", "inception", 3)
    np.testing.assert_allclose(got.mean, wanted.mean, rtol=1e-6)
    np.testing.assert_array_equal(got.covariance, wanted.covariance)
    assert got.mean.dtype == np.float64 and got.count is None


class _Harm:
    def __reduce__(self):
        return (print, ("code of the file ran",))


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        (dict(mu=np.zeros(3)), "no sigma"),
        (dict(mu=np.zeros(4), sigma=np.eye(4)), r"mu is of shape \[4\], not \[3\]"),
        (dict(mu=np.zeros(3), sigma=np.eye(4)), r"sigma is of shape \[4, 4\], not \[3, 3\]"),
        (dict(mu=np.zeros(3, int), sigma=np.eye(3)), "mu is of type int64"),
        (dict(mu=np.full(3, np.inf), sigma=np.eye(3)), "NaN or infinity"),
        (dict(mu=np.zeros(3), sigma=np.triu(np.ones((3, 3)))), "sigma is not symmetric"),
        (
            dict(mu=np.zeros(3), sigma=np.eye(3), network=np.array("inception")),
            "made with network 'inception', not 'classifier'",
        ),
        (dict(mu=np.array([_Harm()] * 3), sigma=np.eye(3)), "mu is of type object"),
    ],
)
def test_unfit_statistics_are_named(tmp_path, capsys, arrays, reason):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=f"^reference: got '.*', allowed a .npz.*{reason}") as bad:
        frechet.read(tmp_path / "bad.npz", "classifier", 3)
    assert "\n" not in str(bad.value) and capsys.readouterr().out == ""


def test_damaged_statistics_are_named(tmp_path):
    path = tmp_path / "cut.npz"
    with pytest.raises(ValueError, match="reference: got .* No such file"):
        frechet.read(path, "classifier", 3)
    path.write_bytes(b"not an archive")
    with pytest.raises(ValueError, match="File is not a zip file"):
        frechet.read(path, "classifier", 3)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mu.npy", b"\x93NUMPY\x01\x00")
        archive.writestr("sigma.npy", b"")
    with pytest.raises(ValueError, match="mu cannot be read"):
        frechet.read(path, "classifier", 3)
