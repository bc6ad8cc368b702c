"""Prepared TFDS sets in TFRecord format, against the same records in array_record format."""

import json
import pathlib
import shutil
import struct

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader

from driftar_jax.data import pipeline, tfrecords


def _check(data):
    """CRC-32C bit by bit, as TFRecord masks it."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ 0x82F63B78 if value & 1 else value >> 1
    value ^= 0xFFFFFFFF
    return (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF


@pytest.fixture(scope="module")
def as_tfrecord(digits, data_dir, tmp_path_factory):
    """`digits8` with its records copied word by word into TFRecord files."""
    root = tmp_path_factory.mktemp("tfds")
    made = root / "digits8" / "1.0.0"
    shutil.copytree(pathlib.Path(data_dir) / "digits8" / "1.0.0", made)
    facts = json.loads((made / "dataset_info.json").read_text())
    facts["fileFormat"] = "tfrecord"
    (made / "dataset_info.json").write_text(json.dumps(facts))
    for file in made.glob("*.array_record-*"):
        records = ArrayRecordReader(str(file)).read_all()
        with open(str(file).replace("array_record", "tfrecord"), "wb") as out:
            for record in records:
                head = struct.pack("<Q", len(record))
                out.write(head + struct.pack("<I", _check(head)))
                out.write(record + struct.pack("<I", tfrecords.masked_check(record)))
        file.unlink()
    return root


def test_the_check_is_crc_32c():
    for data in (b"123456789", b"\0" * 8, bytes(range(40))):
        assert tfrecords.masked_check(data) == _check(data)
    unmasked = (tfrecords.masked_check(b"123456789") - 0xA282EAD8) & 0xFFFFFFFF
    assert (unmasked << 15 | unmasked >> 17) & 0xFFFFFFFF == 0xE3069283


@pytest.mark.parametrize("split", ["train", "test", "train[:10%]", "train[37:250]", "test+train"])
def test_pictures_and_labels_are_those_of_array_record(as_tfrecord, data_dir, split):
    ours = pipeline.load_source("digits8:1.0.0", split, data_dir=as_tfrecord)
    theirs = pipeline.load_source("digits8:1.0.0", split, data_dir=data_dir)
    assert len(ours) == len(theirs) and ours.class_names == theirs.class_names
    for one, other in zip(pipeline.all_images(ours), pipeline.all_images(theirs), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_unknown_split_is_named(as_tfrecord):
    with pytest.raises(ValueError, match="data.split: got 'dev'"):
        pipeline.load_source("digits8:1.0.0", "dev", data_dir=as_tfrecord)


@pytest.mark.parametrize("damage", ["length", "cut", "gone", "fewer"])
def test_a_damaged_file_is_named(as_tfrecord, tmp_path, damage):
    shutil.copytree(as_tfrecord, tmp_path, dirs_exist_ok=True)
    (file,) = (tmp_path / "digits8" / "1.0.0").glob("*-test.tfrecord-*")
    data = bytearray(file.read_bytes())
    if damage == "length":
        data[1] ^= 4
        file.write_bytes(data)
    elif damage == "gone":
        file.unlink()
    elif damage == "fewer":
        file.write_bytes(data[: 16 + int.from_bytes(data[:8], "little")])
    else:
        file.write_bytes(data[:-7])
    with pytest.raises(ValueError, match="damaged or missing") as caught:
        pipeline.load_source("digits8:1.0.0", "test", data_dir=tmp_path)
    assert file.name in str(caught.value) and "\n" not in str(caught.value)


def test_a_flipped_bit_of_a_record_is_named(as_tfrecord, tmp_path):
    """The last byte of a record is its label's, or its picture's: nothing else would see it."""
    shutil.copytree(as_tfrecord, tmp_path, dirs_exist_ok=True)
    (file,) = (tmp_path / "digits8" / "1.0.0").glob("*-test.tfrecord-*")
    data = bytearray(file.read_bytes())
    data[11 + int.from_bytes(data[:8], "little")] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="^data.name: got .*fit their checks") as caught:
        list(pipeline.all_images(pipeline.load_source("digits8:1.0.0", "test", data_dir=tmp_path)))
    assert file.name in str(caught.value) and "\n" not in str(caught.value)
