"""Plain folders of pictures: labels, splits, and what is said about bad ones."""

import numpy as np
import pytest
from PIL import Image

from driftar_jax.data import folder, pipeline, source


def _write(path, value, size=(6, 5), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


@pytest.fixture
def pets(tmp_path):
    for i in range(20):
        _write(tmp_path / "dog" / f"{i}.png", (i, 0, 0))
    for i in range(7):
        _write(tmp_path / "cat" / f"{i}.png", (100 + i, 0, 0))
    (tmp_path / "cat" / "notes.txt").write_text("not a picture")
    (tmp_path / ".cache").mkdir()
    return tmp_path


def _values(part):
    return set(pipeline.all_images(part)[0][:, 0, 0, 0].tolist())


def test_labels_follow_the_sorted_class_folders(pets):
    part = pipeline.load_source(f"folder:{pets}", "train")
    assert part.class_names == ("cat", "dog") and part.image_shape == (5, 6, 3)
    for item in part:
        assert item["label"] == (0 if item["image"][0, 0, 0] >= 100 else 1)


def test_held_out_tenth_is_disjoint_and_stays_when_pictures_are_added(pets):
    train, test = (pipeline.load_source(f"folder:{pets}", s) for s in ("train", "test"))
    assert (len(train), len(test)) == (24, 3)
    held_out = _values(test)
    assert held_out | _values(train) == {*range(20), *range(100, 107)}
    assert not held_out & _values(train)
    for new in ("cat/-first.png", "dog/-first.png", "ant/0.png"):
        _write(pets / new, (200, 0, 0))
    assert held_out <= _values(pipeline.load_source(f"folder:{pets}", "test"))
    assert pipeline.load_source(f"folder:{pets}", "train").fingerprint != train.fingerprint


def test_own_split_is_used_when_both_parts_exist(tmp_path):
    _write(tmp_path / "train" / "a" / "1.png", (1, 0, 0))
    _write(tmp_path / "train" / "b" / "deep" / "2.JPEG", (2, 2, 2))
    _write(tmp_path / "test" / "b" / "3.png", (3, 0, 0))
    train, test = (pipeline.load_source(f"folder:{tmp_path}", s) for s in ("train", "test"))
    assert (len(train), len(test)) == (2, 1)
    assert test[0]["label"] == 1 and train.class_names == test.class_names == ("a", "b")


def test_grey_sets_have_one_channel_and_mixed_ones_three(tmp_path):
    _write(tmp_path / "a" / "1.png", 7, mode="L")
    _write(tmp_path / "a" / "2.png", 9, mode="L")
    assert pipeline.load_source(f"folder:{tmp_path}", "train").image_shape == (5, 6, 1)
    _write(tmp_path / "b" / "1.png", (1, 2, 3))
    assert pipeline.load_source(f"folder:{tmp_path}", "train").image_shape == (5, 6, 3)


def test_sizes_that_differ_need_an_image_size(pets):
    _write(pets / "dog" / "large.png", (250, 0, 0), size=(40, 30))
    with pytest.raises(ValueError, match=r"data.image_size: got None, .* differ in size, 5x6 to 3"):
        [pipeline.load_source(f"folder:{pets}", s) for s in ("train", "test")]
    assert pipeline.load_source(f"folder:{pets}", "train", image_size=4).image_shape == (4, 4, 3)


def test_unreadable_pictures_are_named_before_anything_is_read(pets):
    (pets / "dog" / "broken.png").write_bytes(b"nothing")
    (pets / "dog" / "broken2.png").write_bytes(b"")
    _raises_line("bad pictures.*broken.?.png .not an image", pets)


@pytest.mark.parametrize("in_memory", [True, False])
def test_truncated_picture_is_named(tmp_path, monkeypatch, in_memory):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "cut.png")
    whole = (tmp_path / "a" / "cut.png").read_bytes()
    (tmp_path / "a" / "cut.png").write_bytes(whole[: len(whole) // 2])
    if in_memory:
        _raises_line("cut.png .*truncated", tmp_path)
        return
    monkeypatch.setattr(source, "MEMORY_LIMIT", 0)
    part = pipeline.load_source(f"folder:{tmp_path}", "train")
    with pipeline.Batches(part, batch_size=1, seed=0) as batches:
        with pytest.raises(ValueError, match="cut.png .*truncated") as error:
            next(batches)
    assert "\n" not in str(error.value)


def _raises_line(match, root, split="train"):
    with pytest.raises(ValueError, match=match) as error:
        pipeline.load_source(f"folder:{root}", split)
    assert "\n" not in str(error.value) and str(error.value).startswith("data.")


def test_bad_folders_are_refused(pets, tmp_path):
    _raises_line("allowed folder:PATH", tmp_path / "missing")
    _raises_line(r"data.split: got 'validation' .* allowed \['train', 'test'\]", pets, "validation")
    (pets / "bird").mkdir()
    _raises_line("class 'bird' holds no pictures", pets)
    flat = tmp_path / "dog"
    _raises_line("with 20 files and no class folders", flat)


def test_half_a_split_and_classes_of_test_alone_are_refused(tmp_path):
    _write(tmp_path / "train" / "a" / "1.png", (1, 0, 0))
    _raises_line("train/ alone", tmp_path)
    _write(tmp_path / "test" / "z" / "1.png", (1, 0, 0))
    _raises_line(r"classes \['z'\] in test alone", tmp_path, "test")


def test_one_picture_trains_and_leaves_nothing_held_out(tmp_path):
    _write(tmp_path / "a" / "1.png", (1, 0, 0))
    assert len(pipeline.load_source(f"folder:{tmp_path}", "train")) == 1
    _raises_line("split 'test' is empty", tmp_path, "test")
    assert folder.HELD_OUT == 0.1
