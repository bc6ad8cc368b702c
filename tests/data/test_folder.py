"""Plain folders of pictures: labels, splits, and what is said about bad ones."""

import os

import numpy as np
import pytest
from PIL import Image

from driftar_jax.data import folder, listing, pipeline, source


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


@pytest.mark.parametrize("coloured", ["train", "test"])
def test_the_held_out_part_has_the_channels_of_what_is_trained_on(tmp_path, coloured):
    for part in ("train", "test"):
        (tmp_path / part / "x").mkdir(parents=True)
        mode = "RGB" if part == coloured else "L"
        Image.new(mode, (4, 4), 9).save(tmp_path / part / "x" / "1.png")
    want = 3 if coloured == "train" else 1
    for part in ("train", "test"):
        assert pipeline.load_source(f"folder:{tmp_path}", part).image_shape == (4, 4, want)


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
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no picture")
    texts = tmp_path / "texts"
    _raises_line("with 1 files outside of class folders and no class folders in ", texts)
    (tmp_path / "none").mkdir()
    _raises_line("with nothing and no class folders in ", tmp_path / "none")


def test_what_is_no_picture_of_a_class_is_counted_and_never_a_class(pets):
    for name in ("bird", "__MACOSX", "@eaDir", "cat/.hidden", "dog/@eaDir"):
        (pets / name).mkdir()
    _write(pets / "dog" / "@eaDir" / "thumb.jpg", (1, 1, 1))
    _write(pets / "__MACOSX" / "cat" / "0.png", (1, 1, 1))
    for name in ("Thumbs.db", "cat/desktop.ini", "list.txt", "dog/clip.mp4", "dog/raw"):
        (pets / name).write_bytes(b"x")
    part = pipeline.load_source(f"folder:{pets}", "train")
    assert part.class_names == ("cat", "dog") and len(part) == 24
    assert part.left_out == (
        "1 files outside of class folders, 1 files with .mp4, 1 files with .txt, "
        "1 files with no ending, 7 hidden or of the system, 1 folders without any (bird)"
    )


PARTS = [
    ("train", "val"),
    ("Train", "Valid"),
    ("TRAIN", "validation"),
    ("training", "testing"),
    ("train2017", "val2017"),
    ("train_images", "val_images"),
    ("ILSVRC2012_img_train", "ILSVRC2012_img_val"),
    ("train", "dev", "holdout"),
    ("trainset", "testset"),
    ("Training Set", "Validation_Set"),
    ("coco_train", "coco_val"),
    ("CIFAR10-Train", "CIFAR10-Test"),
    ("train", "val", "extra"),
    ("val",),
]


@pytest.mark.parametrize("parts", PARTS, ids=",".join)
@pytest.mark.parametrize("layered", [True, False])
def test_parts_of_a_set_are_no_classes(tmp_path, parts, layered):
    for part in parts:
        _write(tmp_path / part / "cat" / "0.png" if layered else tmp_path / part / "0.png", 1)
    (tmp_path / "annotations").mkdir()
    _raises_line(f"{parts[0]}/.* parts of a set, not classes, allowed train/ and test/", tmp_path)


def test_a_set_inside_of_a_folder_is_named(tmp_path):
    for part in ("train", "val"):
        _write(tmp_path / "imagenet" / part / "cat" / "0.png", 1)
    _raises_line("with train/ inside of its folder imagenet/", tmp_path)


def test_classes_that_sound_like_parts_stay_classes(tmp_path):
    """Some sets have a class of trains; one of test tubes is no part either."""
    for name in ("train", "bus", "test_tube", "dev kit", "set of images"):
        _write(tmp_path / name / "0.png", 1)
    names = pipeline.load_source(f"folder:{tmp_path}", "train").class_names
    assert names == ("bus", "dev kit", "set of images", "test_tube", "train")


@pytest.mark.parametrize(
    "names", [("train", "bus"), ("test_tube", "test_strip"), ("train_old", "train_new"), ("a", "b")]
)
def test_names_of_classes_that_are_none_of_a_sets_parts(names):
    assert listing.parts_among(names) == []


def test_train_beside_val_uses_train_and_test_and_says_so(tmp_path):
    for part in ("train", "test", "val"):
        _write(tmp_path / part / "cat" / "0.png", 1)
    part = pipeline.load_source(f"folder:{tmp_path}", "train")
    assert len(part) == 1 and part.left_out == "1 beside train/ and test/ (val)"


def test_names_that_are_not_utf8_become_text(tmp_path):
    home = os.fsencode(tmp_path)
    for name in (b"caf\xe9", "caf\xe9".encode()):
        os.mkdir(os.path.join(home, name))
        Image.new("RGB", (4, 4)).save(os.fsdecode(os.path.join(home, name, b"\xff.png")))
    part = pipeline.load_source(f"folder:{tmp_path}", "train")
    assert part.class_names == ("caf\xe9", "caf\\xe9") and len(part.fingerprint) < 100
    "".join(part.class_names).encode()
    with open(os.path.join(home, b"caf\xe9", b"\xfe.png"), "wb"):
        pass
    with pytest.raises(ValueError, match=r"bad pictures.*caf\\xe9.*xfe.png") as error:
        pipeline.load_source(f"folder:{tmp_path}", "train")
    str(error.value).encode()


def test_pipes_are_counted_and_links_to_themselves_are_named(pets):
    os.mkfifo(pets / "cat" / "pipe.png")  # to be read it would be waited for
    os.mkfifo(pets / "pipe.txt")
    assert "2 pipes and devices" in pipeline.load_source(f"folder:{pets}", "train").left_out
    (pets / "cat" / "round.png").symlink_to(pets / "cat" / "round.png")
    with pytest.raises(ValueError, match="bad pictures.*round.png") as error:
        pipeline.load_source(f"folder:{pets}", "train")
    assert "\n" not in str(error.value)


def test_a_link_that_goes_round_is_walked_once(tmp_path):
    _write(tmp_path / "cat" / "0.png", 1)
    (tmp_path / "cat" / "again").symlink_to(tmp_path / "cat")
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match="bad pictures.*gone.png"):
        pipeline.load_source(f"folder:{tmp_path}", "train")
    (tmp_path / "cat" / "gone.png").unlink()
    assert len(pipeline.load_source(f"folder:{tmp_path}", "train")) == 1


@pytest.mark.parametrize(
    "place", ["folder:s3://bucket/a", "latents:gs://bucket/a", "gs://bucket/a", "folder:gs:/b/a"]
)
def test_addresses_are_refused_with_the_way(place):
    with pytest.raises(ValueError, match="^data.name: got '.*', allowed .* mount the bucket"):
        pipeline.load_source(place, "train")
    with pytest.raises(ValueError, match="^data.data_dir: got 'gs://.*mount the bucket"):
        pipeline.load_source("digits8", "train", data_dir="gs://bucket/tfds")


def test_tilde_is_the_home(tmp_path, monkeypatch):
    _write(tmp_path / "pets" / "cat" / "0.png", 1)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(pipeline.load_source("folder:~/pets", "train")) == 1
    with pytest.raises(ValueError, match="^data.name: .* home folder is not known here"):
        pipeline.load_source("folder:~nobody-at-all/pets", "train")


def test_half_a_split_and_classes_of_test_alone_are_refused(tmp_path):
    _write(tmp_path / "train" / "a" / "1.png", (1, 0, 0))
    _raises_line("train/ are parts of a set", tmp_path)
    _write(tmp_path / "test" / "z" / "1.png", (1, 0, 0))
    _raises_line(r"classes \['z'\] in test alone", tmp_path, "test")


def test_one_picture_trains_and_leaves_nothing_held_out(tmp_path):
    _write(tmp_path / "a" / "1.png", (1, 0, 0))
    assert len(pipeline.load_source(f"folder:{tmp_path}", "train")) == 1
    _raises_line("split 'test' is empty", tmp_path, "test")
    assert folder.HELD_OUT == 0.1


def test_pictures_without_class_folders_are_one_class_with_their_captions(tmp_path):
    flat = tmp_path / "flat"
    for i in range(20):
        _write(flat / f"{i}.png", (i, 0, 0))
        (flat / f"{i}.txt").write_text(f"red {i}")
    train, test = (pipeline.load_source(f"folder:{flat}", s) for s in ("train", "test"))
    assert train.class_names == ("picture",) and (len(train), len(test)) == (18, 2)
    assert train.captions == [f"red {item['image'][0, 0, 0]}" for item in train]
    held_out = _values(test)
    flat.rename(tmp_path / "elsewhere")
    assert _values(pipeline.load_source(f"folder:{tmp_path}/elsewhere", "test")) == held_out


def test_a_table_of_captions_for_both_parts(tmp_path):
    rows = ""
    for i, place in enumerate(("train/a/1.png", "train/b/2.png", "test/b/3.png")):
        _write(tmp_path / place, (i, 0, 0))
        rows += f'{{"file_name": "{place}", "text": "number {i}"}}\n'
    (tmp_path / "metadata.jsonl").write_text(rows)
    train, test = (pipeline.load_source(f"folder:{tmp_path}", s) for s in ("train", "test"))
    assert train.captions == ["number 0", "number 1"] and test.captions == ["number 2"]


def test_a_folder_without_texts_has_no_captions(pets):
    assert pipeline.load_source(f"folder:{pets}", "train").captions is None
