"""TFDS sets by name: found, refused with one line, never downloaded."""

import json
import pathlib
import shutil
import sys

import pytest

from driftar_jax.data import pipeline, prepared


def _refusal(name, split="train", **settings):
    with pytest.raises(ValueError) as error:
        pipeline.load_source(name, split, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def other(digits, data_dir, tmp_path):
    """A set that TFDS knows, prepared: the digits under the name of imagenet2012."""
    home = tmp_path / "imagenet2012" / "5.0.0"
    shutil.copytree(pathlib.Path(data_dir) / "digits8" / "1.0.0", home)
    for path in home.glob("digits8-*"):
        path.rename(home / path.name.replace("digits8", "imagenet2012"))
    _edit(home, name="imagenet2012")
    return home


def _edit(home, **fields):
    path = home / "dataset_info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_any_prepared_set_is_read_the_same_way(other, digits):
    folder = str(other.parents[1])
    for name in ("imagenet2012", "imagenet2012:5.0.0"):
        part = pipeline.load_source(name, "test", data_dir=folder)
        assert len(part) == 299 and part.class_names == digits.class_names
    assert len(pipeline.load_source(name, "test[:10%]", data_dir=folder)) == 30


def test_what_a_prepared_set_holds_beside_is_counted(other):
    folder = str(other.parents[1])
    assert pipeline.load_source("imagenet2012", "test", data_dir=folder).left_out == ""
    (other / "incomplete.tmp").write_bytes(b"")
    (other / ".DS_Store").write_bytes(b"")
    (other / "imagenet2012-old.array_record-00000-of-00001").write_bytes(b"")
    part = pipeline.load_source("imagenet2012", "test", data_dir=folder)
    assert part.left_out == (
        "1 files with .array_record, 1 files with .tmp, 1 hidden or of the system"
    )


def test_other_sizes_are_made_on_request(data_dir):
    part = pipeline.load_source("digits8", "test", data_dir=data_dir, image_size=12)
    assert part.image_shape == part[0]["image"].shape == (12, 12, 1)


def test_data_folder_order(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "/from/environment")
    assert prepared.data_folder("/given") == "/given"
    assert prepared.data_folder(None) == "/from/environment"
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert prepared.data_folder("") == str(pathlib.Path.home() / "tensorflow_datasets")


def test_missing_set_says_where_it_looked_and_how_to_prepare(tmp_path):
    said = _refusal("imagenet2012", data_dir=str(tmp_path))
    assert said.startswith(f"data.name: got 'imagenet2012', not prepared under {tmp_path}; ")
    assert f"tfds build imagenet2012 --file_format=array_record --data_dir={tmp_path}" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name, nearest",
    [("imagenet212", "imagenet2012"), ("digit8", "digits8"), ("Fashion28", "fashion28")],
)
def test_unknown_names_offer_the_nearest(name, nearest, tmp_path):
    said = _refusal(name, data_dir=str(tmp_path))
    sets = "digits8, emoji32, emoji64, fashion28"
    assert said.startswith(f"data.name: got {name!r}, allowed {sets}, folder:")
    assert nearest in said.split("nearest: ")[1]


@pytest.mark.parametrize("name", ["../x", "a b", "huggingface:mnist", "qqqqqq"])
def test_hopeless_names_are_refused(name, tmp_path):
    assert "of a TFDS set" in _refusal(name, data_dir=str(tmp_path))


def test_a_format_that_is_not_read_is_named(other):
    _edit(other, fileFormat="riegeli")
    said = _refusal("imagenet2012", data_dir=str(other.parents[1]))
    assert "in file format 'riegeli', allowed 'array_record' or 'tfrecord'; prepare it with" in said


def test_version_and_config_must_be_there(other):
    folder = str(other.parents[1])
    assert "allowed the versions ['5.0.0'] in" in _refusal("imagenet2012:9.0.0", data_dir=folder)
    assert "not prepared under" in _refusal("imagenet2012/large", data_dir=folder)
    for config in ("one", "two"):
        shutil.copytree(other, other.parents[1] / "stl10" / config / "5.0.0")
    said = _refusal("stl10", data_dir=folder)
    assert "allowed one of its configs: ['stl10/one', 'stl10/two']" in said


@pytest.mark.parametrize("split", ["validation", "train[:x]", "train[:0]"])
def test_unknown_split_lists_the_known(split, data_dir):
    said = _refusal("digits8", split, data_dir=data_dir)
    assert said == f"data.split: got {split!r} for 'digits8', allowed ['test', 'train']"


def test_damaged_sets_are_named(other):
    folder = str(other.parents[1])
    records = next(other.glob("*-train*"))
    whole = records.read_bytes()
    records.write_bytes(whole[: len(whole) // 2])
    assert "damaged or missing" in _refusal("imagenet2012", data_dir=folder)
    records.unlink()
    assert "damaged or missing" in _refusal("imagenet2012", data_dir=folder)
    (other / "dataset_info.json").write_text("{")
    assert f"{other / 'dataset_info.json'}', allowed the facts of" in _refusal(
        "imagenet2012", data_dir=folder
    )


def test_a_set_that_names_a_module_of_its_own_is_refused_before_it_is_imported(other):
    path = other / "features.json"
    path.write_text(path.read_text().replace("tensorflow_datasets.core.features.image", "this"))
    said = _refusal("imagenet2012", data_dir=str(other.parents[1]))
    assert "features.json' which names 'this" in said and "this" not in sys.modules


def test_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    said = _refusal("digits8", data_dir=str(tmp_path / "file" / "below"))
    assert said.startswith("data.data_dir: got ") and "allowed a folder that can be written" in said


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(name=5), "data.name: got 5, allowed"),
        (dict(name=""), "data.name: got '', allowed"),
        (dict(split=None), "data.split: got None, allowed"),
        (dict(image_size=0), "data.image_size: got 0, allowed an int from 1 to"),
        (dict(image_size=True), "data.image_size: got True, allowed"),
        (dict(image_size="32"), "data.image_size: got '32', allowed"),
        (dict(center_crop=1), "data.center_crop: got 1, allowed True or False"),
        (dict(data_dir=3), "data.data_dir: got 3, allowed"),
    ],
)
def test_bad_settings_of_a_source(settings, message):
    assert _refusal(**{**dict(name="digits8", split="train"), **settings}).startswith(message)
