"""Pictures of anybody, measured with a network that takes no time: figures and refusals."""

import json
import shutil
import types

import numpy as np
import pytest
from PIL import Image

from driftar_jax.data import picture_sets
from driftar_jax.evaluation import frechet, judges, networks
from driftar_jax.evaluation.kid import kid
from driftar_jax.reports import given_images

WIDTH = 6


def _apply(_, images):
    flat = np.asarray(images, np.float32).reshape(len(images), -1)
    features = flat[:, :WIDTH] / 32
    return features, features[:, :3]


@pytest.fixture
def judge(monkeypatch):
    """A judge whose features are the first pixels, and 40 real images of it."""
    real = np.random.default_rng(0).integers(0, 200, (40, 4, 4, 1), np.uint8)
    network = networks.Network("classifier", WIDTH, 3, 16, _apply, None)
    settings = types.SimpleNamespace(data=types.SimpleNamespace(name="squares"))
    made = judges.Judge("judge", settings, network, (4, 4, 1))
    monkeypatch.setattr(judges, "open_judge", lambda workdir: made)
    monkeypatch.setattr(judges.Judge, "open_sources", lambda self: [])
    monkeypatch.setattr(judges, "all_images", lambda sources: (real, np.zeros(40, int)))
    return real


def _features(images):
    return _apply(None, images)[0]


@pytest.fixture
def made():
    return np.random.default_rng(1).integers(50, 256, (30, 4, 4, 1), np.uint8)


@pytest.fixture
def folder(made, tmp_path):
    place = tmp_path / "made" / "below"
    place.mkdir(parents=True)
    for i, image in enumerate(made):
        Image.fromarray(image[..., 0]).save(place / f"{i:05d}.png")
    (place / "notes.txt").write_text("no picture")
    return str(tmp_path / "made")


def _measure(tmp_path, images, **asked):
    said = given_images.measure(images, str(tmp_path / "report"), **asked)
    record = json.loads((tmp_path / "report" / "report.json").read_text())
    assert said == (tmp_path / "report" / "report.md").read_text()
    return record, said


def test_a_folder_against_the_set_of_the_judge(judge, made, folder, tmp_path):
    record, said = _measure(tmp_path, folder, judge="judge")
    real, ours = _features(judge), _features(made)
    moments = [frechet.Moments.of(f) for f in (ours, real)]
    assert record["frechet"] == pytest.approx(frechet.frechet_distance(*moments))
    assert [record["kid"], record["kid_spread"]] == pytest.approx(list(kid(real, ours)))
    assert record["kid"] > 10 * abs(record["kid_real_halves"])
    assert 0 <= record["recall"] <= 1 and record["count"] == 30
    assert "fd_classifier" in said and "kid_classifier" in said


def test_what_is_no_picture_is_counted(folder, tmp_path, capsys):
    for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
        shutil.copytree(folder, tmp_path / "set" / name)
    shutil.copytree(folder, tmp_path / "set" / "pictures")
    for name in ("Thumbs.db", "._1.png", "notes.txt", "clip.MP4"):
        (tmp_path / "set" / name).write_bytes(b"")
    opened = given_images._opened("images", str(tmp_path / "set"))
    assert len(opened) == 30
    said = "left out of images: 1 files with .mp4, 2 files with .txt, 5 hidden or of the system"
    assert said in capsys.readouterr().err


def test_a_file_of_adm_gives_the_figures_of_the_folder(judge, made, folder, tmp_path):
    np.savez(tmp_path / "made.npz", made)
    one, _ = _measure(tmp_path, folder, judge="judge")
    other, _ = _measure(tmp_path, str(tmp_path / "made.npz"), judge="judge", overwrite=True)
    for key in ("frechet", "kid", "precision", "recall", "inception_score"):
        assert one[key] == other[key]


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_real_pictures_of_ones_own(judge, folder, tmp_path, kind):
    other = np.random.default_rng(5).integers(0, 256, (25, 4, 4, 1), np.uint8)
    if kind == "npz":
        np.savez(tmp_path / "real.npz", arr_0=other)
        reference = str(tmp_path / "real.npz")
    else:
        (tmp_path / "real").mkdir()
        for i, image in enumerate(other):
            Image.fromarray(image[..., 0]).save(tmp_path / "real" / f"{i}.png")
        reference = str(tmp_path / "real")
    record, _ = _measure(tmp_path, folder, judge="judge", reference=reference)
    # Order of files is another, and draws of subsets with it: the whole sets give the distance.
    moments = frechet.Moments.of(_features(other))
    made = frechet.Moments.of(_features(np.concatenate(list(_given(folder)))))
    assert record["frechet"] == pytest.approx(frechet.frechet_distance(made, moments))
    assert "25 pictures" in record["reference"] and "kid" in record


def _given(path):
    return picture_sets.open_pictures("images", path).parts()


def test_moments_alone_give_the_distance_alone(judge, made, folder, tmp_path):
    moments = frechet.Moments.of(_features(judge))
    frechet.write(tmp_path / "moments.npz", moments, "classifier")
    reference = str(tmp_path / "moments.npz")
    record, _ = _measure(tmp_path, folder, judge="judge", reference=reference)
    want = frechet.frechet_distance(frechet.Moments.of(_features(made)), moments)
    assert record["frechet"] == pytest.approx(want)
    assert "kid" not in record and len(record["left_out"]) == 2


def test_few_pictures_have_a_kernel_distance_and_no_other(judge, tmp_path):
    few = np.random.default_rng(3).integers(0, 256, (WIDTH, 4, 4, 1), np.uint8)
    np.savez(tmp_path / "few.npz", few)
    record, said = _measure(tmp_path, str(tmp_path / "few.npz"), judge="judge")
    assert "frechet" not in record and "kid" in record
    assert "no Frechet distance: 6 pictures, more than 6 are needed" in said


def _sizes(folder, tmp_path):
    Image.new("L", (5, 4)).save(f"{folder}/odd.png")
    return folder


def _floats(folder, tmp_path):
    np.savez(tmp_path / "f.npz", arr_0=np.zeros((5, 4, 4, 1), np.float32))
    return str(tmp_path / "f.npz")


def _unnamed(folder, tmp_path):
    np.savez(tmp_path / "u.npz", images=np.zeros((5, 4, 4, 1), np.uint8))
    return str(tmp_path / "u.npz")


def _bad(folder, tmp_path):
    (tmp_path / "made" / "x.png").write_bytes(b"no picture")
    return folder


def _large(folder, tmp_path):
    np.savez(tmp_path / "l.npz", arr_0=np.zeros((5, 8, 8, 1), np.uint8))
    return str(tmp_path / "l.npz")


@pytest.mark.parametrize(
    "change, said",
    [
        (_sizes, "pictures of one size"),
        (_floats, "arr_0 of uint8"),
        (_unnamed, "a .npz with arr_0"),
        (_bad, "pictures that can be read"),
        (_large, "pictures of 4x4x1, as the judge reads them"),
        (lambda folder, tmp_path: str(tmp_path / "none"), "a folder of pictures"),
        (lambda folder, tmp_path: str(tmp_path / "made" / "below" / "notes.txt"), "a folder of"),
    ],
)
def test_what_cannot_be_measured_is_one_line(judge, folder, tmp_path, change, said):
    with pytest.raises(ValueError, match=f"images: got .*{said}") as caught:
        given_images.measure(change(folder, tmp_path), str(tmp_path / "out"), judge="judge")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_something_has_to_measure(folder, tmp_path):
    with pytest.raises(ValueError, match="--judge=RUN or --inception=FOLDER"):
        given_images.measure(folder, str(tmp_path / "out"))
    with pytest.raises(ValueError, match="metrics: got 'fid'"):
        given_images.measure(folder, str(tmp_path / "out"), judge="j", metrics=["fid"])
