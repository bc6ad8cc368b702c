"""Sizes that are left to one's own pictures, and what is said of them."""

import numpy as np
import pytest
from PIL import Image

from driftar_jax import config
from driftar_jax.cli import files
from driftar_jax.data import captions, pipeline, sizes


@pytest.fixture
def pictures(tmp_path):
    """`pictures(count, (width, height), ...)` writes a folder of two classes with captions."""

    def write(count, *shapes, name="set"):
        rng = np.random.default_rng(0)
        for i in range(count):
            place = tmp_path / name / "ab"[i % 2] / f"{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            width, height = shapes[i % len(shapes)]
            Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(place)
            place.with_suffix(".txt").write_text(f"{'red' if i % 2 else 'blue'} square {i}")
        return f"folder:{tmp_path / name}"

    return write


@pytest.mark.parametrize(
    "shapes, side, patch",
    [
        ([(32, 32)], 32, 4),
        ([(28, 28)], 28, 4),
        ([(8, 8)], 8, 2),
        ([(48, 48)], 48, 6),
        ([(64, 64)], 64, 8),
        ([(256, 256)], 64, 8),
        ([(40, 30)], 24, 3),
        ([(100, 200), (37, 50)], 32, 4),
        ([(37, 37)], 32, 4),
        ([(5, 5)], 8, 2),
    ],
)
def test_sizes_are_those_of_the_pictures(pictures, shapes, side, patch):
    settings = files.load("mar_small:own")
    settings.data.name = pictures(12, *shapes)
    lines = sizes.fit(settings)
    assert (settings.data.image_size, settings.data.patch_size) == (side, patch)
    assert settings.train.batch_size == 10
    assert f"data.image_size={side}" in lines[0] and "10 pictures of 2 class(es)" in lines[0]
    assert any("autoencoder" in line for line in lines) == (min(map(min, shapes)) > 128)
    config.check(settings)
    assert not sizes.fit(settings)


@pytest.mark.parametrize(
    "name",
    ["mar_small", "drift_mar_small", "transdiff_small", "classifier", "mae", "nextstep_small"]
    + ["drift_nextstep"],
)
def test_every_small_config_takes_ones_own(pictures, name):
    settings = files.load(f"{name}:own")
    settings.data.name = pictures(12, (32, 32))
    sizes.fit(settings)
    config.check(settings)
    if "text" in settings:
        assert settings.sample.ar_steps == 64 and settings.text.length == 32


def test_what_the_command_line_says_stays(pictures):
    settings = files.load("mar_small:own")
    settings.data.name = pictures(12, (32, 32))
    settings.data.patch_size, settings.train.batch_size = 8, 5
    sizes.fit(settings)
    assert (settings.data.patch_size, settings.train.batch_size) == (8, 5)


def test_a_set_has_to_be_named():
    with pytest.raises(ValueError, match=r"data.name: got '', allowed --config.data.name="):
        sizes.fit(files.load("mar_small:own"))


def test_no_word_of_ones_own_captions_is_unknown(pictures):
    name = pictures(12, (8, 8))
    texts = pipeline.load_source(name, "train").captions
    fitted = captions.fit(name, texts, (4, 4), 16)
    tokenizer = captions.tokenizer_of(fitted.tokenizer)
    assert fitted.tokenizer["model"]["type"] == "BPE"
    for text in ("red square 3", "Zebra, crossing über 12 \u732b", "[PAD]"):
        ids = tokenizer.encode(text)
        assert ids and fitted.spec.unknown not in ids
    assert tokenizer.encode("RED square") == tokenizer.encode("red SQUARE")
    assert len(tokenizer.encode("red square 3")) < len("red square 3")
    assert tokenizer.encode("<|image_area|>4*4<|begin_of_image|>") == list(fitted.spec.suffix)
    again = captions.fresh_vocabulary(name, texts[::-1])
    assert again == fitted.tokenizer


def test_a_vocabulary_of_pieces_is_read_back(pictures, tmp_path):
    import json

    name = pictures(12, (8, 8))
    texts = pipeline.load_source(name, "train").captions
    fitted = captions.fit(name, texts, (4, 4), 16)
    (tmp_path / "tokenizer.json").write_text(json.dumps(fitted.tokenizer))
    made = captions.read_tokenizer(tmp_path, fitted.spec)
    np.testing.assert_array_equal(captions.rows(made, fitted.spec, texts, (4, 4)), fitted.rows)
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({**fitted.tokenizer, "model": {"type": "X"}})
    )
    with pytest.raises(ValueError, match="allowed the file that the run wrote"):
        captions.read_tokenizer(tmp_path, fitted.spec)


def test_pictures_that_become_smaller_are_said(pictures, capsys):
    settings = files.load("mar_small:digits8")
    settings.data.name = pictures(12, (32, 32))
    pipeline.open_data(settings, "train")
    assert "pictures of 32x32 are made 8x8 (data.image_size)" in capsys.readouterr().err
