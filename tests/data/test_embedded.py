"""The embedded sets are the released ones, and their builders give them back unchanged."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from driftar_jax.data import embedded, pipeline

IN_CHILD = """
import sys
from driftar_jax.data import pipeline
source = pipeline.load_source("digits8", "train", data_dir=sys.argv[1])
batches = pipeline.Batches(source, batch_size=4, seed=0)
assert next(batches)["image"].shape == (4, 8, 8, 1)
assert "tensorflow" not in sys.modules
print("read", len(source))
"""


@pytest.mark.parametrize("name", embedded.NAMES)
def test_every_array_has_its_checksum(name):
    arrays = embedded.load(name)
    for key, array in arrays.items():
        raw = np.ascontiguousarray(array).tobytes()
        assert hashlib.sha256(raw).hexdigest() == embedded.CHECKSUMS[name][key], key
    assert set(arrays) | {"file"} == set(embedded.CHECKSUMS[name])


def test_a_changed_file_is_refused(monkeypatch, tmp_path):
    broken = bytearray((embedded.FOLDER / "digits8.npz").read_bytes())
    broken[1000] ^= 1
    (tmp_path / "digits8.npz").write_bytes(broken)
    monkeypatch.setattr(embedded, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="data.name: got 'digits8' whose file .* has sha256"):
        embedded.load("digits8")


def test_emoji64_is_held_out_by_emoji_and_says_what_it_shows():
    arrays, texts = embedded.load("emoji64"), embedded.captions("emoji64")
    assert arrays["image"].shape == (8506, 64, 64, 3) and len(texts) == 8506
    for text, label in zip(texts, arrays["label"], strict=True):
        kind = str(arrays["names"][label]).replace("-", " ")
        assert text.split(", ")[-2] == kind and text.split(", ")[-1] in (
            "noto",
            "twemoji",
            "fluent",
        )
    # The first words name the emoji, whatever its skin and design.
    emoji = np.array([text.split(", ")[0] for text in texts])
    assert not set(emoji[arrays["test"]]) & set(emoji[~arrays["test"]])


def test_licences_name_every_set():
    text = (embedded.FOLDER / "LICENSES.md").read_text()
    said = (
        "CC BY 4.0",
        "MIT License",
        "Apache License",
        "(c) Twitter, Inc",
        "Microsoft Corporation",
    )
    for word in (*embedded.NAMES, *said):
        assert word in text, word


def _rows(images, labels):
    """Sorted rows of pixels and label: TFDS stores the images in an order of its own."""
    flat = np.concatenate([images.reshape(len(images), -1), labels[:, None]], axis=1)
    return flat[np.lexsort(flat.T)]


LARGE = ("emoji64", "fashion28")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n in LARGE else []) for n in embedded.NAMES],
)
def test_prepared_images_equal_the_arrays(name, data_dir):
    arrays = embedded.load(name)
    for split, rows in (("train", ~arrays["test"]), ("test", arrays["test"])):
        source = pipeline.load_source(name, split, data_dir=data_dir)
        assert source.class_names == tuple(arrays["names"])
        assert source.image_shape == arrays["image"].shape[1:]
        images, labels = pipeline.all_images(source)
        assert images.dtype == np.uint8 and labels.dtype == np.int32
        want = _rows(arrays["image"][rows], arrays["label"][rows])
        np.testing.assert_array_equal(_rows(images, labels), want)


def test_two_processes_may_prepare_at_once_and_tensorflow_stays_out(tmp_path):
    command = [sys.executable, "-c", IN_CHILD, str(tmp_path)]
    children = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for child in children:
        out, err = child.communicate(timeout=60)
        assert (child.returncode, out.split()) == (0, ["read", "1498"]), err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["digits8"]
    assert [p.name for p in (tmp_path / "digits8").iterdir()] == ["1.0.0"]


def test_loser_of_the_race_keeps_the_winners_set(tmp_path, monkeypatch):
    from driftar_jax.data import prepared

    pipeline.load_source("digits8", "test", data_dir=str(tmp_path))
    before = sorted(p.stat().st_mtime_ns for p in (tmp_path / "digits8/1.0.0").iterdir())
    seen = iter([False])  # the first look comes before the winner's rename
    really = prepared.os.path.isdir
    monkeypatch.setattr(prepared.os.path, "isdir", lambda p: next(seen, True) and really(p))
    prepared._prepare_embedded("digits8", str(tmp_path))
    assert before == sorted(p.stat().st_mtime_ns for p in (tmp_path / "digits8/1.0.0").iterdir())
    assert [p.name for p in tmp_path.iterdir()] == ["digits8"]
