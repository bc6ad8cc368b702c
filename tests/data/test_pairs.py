"""Edits of one's own: tables of source, text and target, and what stands in a batch."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from driftar_jax.data import pipeline
from driftar_jax.vae import encoding

WORDS = ("make it darker", "<image> turned to blue")


def write(folder, *, count=10, size=8, edits=2, table="metadata.jsonl"):
    """Write `count` source pictures with `edits` edits each; returns the lines."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(count):
        Image.new("RGB", (size, size), (20 * i, 200, 10)).save(folder / f"{i}.png")
        for k in range(edits):
            Image.new("RGB", (size, size), (20 * i, k, 10)).save(folder / f"{i}_{k}.png")
            line = {"source": f"{i}.png", "text": WORDS[k % 2], "target": f"{i}_{k}.png"}
            lines.append(line)
    (folder / table).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def opened(folder, split="train", **options):
    return pipeline.load_source(f"pairs:{folder}", split, **options)


def test_sources_and_targets_stand_beside_each_other(tmp_path):
    write(tmp_path)
    parts = [opened(tmp_path, split) for split in ("train", "test")]
    assert [len(part) for part in parts] == [18, 2]
    seen = []
    for part in parts:
        assert part.image_shape == (8, 8, 3) and part.num_classes == 1
        for i, text in enumerate(part.captions):
            item = part[i]
            # Both bear the number of the source in red, and the target says the edit in green.
            assert item["image"][0, 0, 0] == item["source"][0, 0, 0]
            assert item["source"][0, 0, 1] == 200 and text == WORDS[item["image"][0, 0, 1]]
        seen.append({part[i]["source"][0, 0, 0] for i in range(len(part))})
    assert not seen[0] & seen[1]  # no picture is in both parts


@pytest.mark.parametrize("flip", [False, True])
def test_batches_go_on_where_they_were(tmp_path, flip, monkeypatch):
    write(tmp_path, edits=1)
    for i in range(10):  # what is mirrored can be told
        for name in (f"{i}.png", f"{i}_0.png"):
            made = np.zeros((8, 8, 3), np.uint8)
            made[:, :4] = 25 * i + 1
            Image.fromarray(made).save(tmp_path / name)
    each = []
    for limit in (pipeline.ImageSource.__init__.__globals__["MEMORY_LIMIT"], 0):
        monkeypatch.setitem(pipeline.ImageSource.__init__.__globals__, "MEMORY_LIMIT", limit)
        with pipeline.Batches(opened(tmp_path), batch_size=4, seed=3, flip=flip) as batches:
            some = [next(batches) for _ in range(3)]
            state = batches.state()
            after = next(batches)
        with pipeline.Batches(opened(tmp_path), batch_size=4, seed=3, flip=flip) as again:
            again.restore(state)
            np.testing.assert_array_equal(next(again)["source"], after["source"])
        each.append(np.concatenate([batch["source"] for batch in some]))
        for batch in some:
            np.testing.assert_array_equal(batch["source"], batch["image"])
    np.testing.assert_array_equal(*each)  # kept in memory or read from the disk
    assert flip == bool((each[0][:, 0, -1] > 0).any())


def test_parts_commas_other_names_and_a_grey_source(tmp_path):
    write(tmp_path / "train", count=2)
    write(tmp_path / "test", count=1, edits=1)
    (tmp_path / "test" / "metadata.jsonl").unlink()
    Image.new("L", (8, 8), 7).save(tmp_path / "test" / "0.png")
    table = 'source_file_name,instruction,target_file_name\n0.png,"red, please",0_0.png\n'
    (tmp_path / "test" / "metadata.csv").write_text(table)
    train, test = (opened(tmp_path, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (4, 1) and test.captions == ["red, please"]
    assert test[0]["source"].tolist() == np.full((8, 8, 3), 7).tolist()


def test_of_one_source_edits_are_held_out(tmp_path):
    write(tmp_path, count=1)
    assert [len(opened(tmp_path, split)) for split in ("train", "test")] == [1, 1]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"target": "none.png"}, "line 3 names none.png, which is not there"),
        ({"source": ""}, "line 3 has no source"),
        ({"text": " "}, "line 3 has no text"),
        ({"target": 4}, "line 3 has no target"),
        ({"text": "<image> or <image>"}, "line 3 says <image> more than once"),
        ({"text": "<image>"}, "line 3 has no text beside <image>"),
        ({"text": "a\0b"}, "line 3 holds zero bytes"),
        ({"source": "0.png", "target": "0_0.png", "text": WORDS[0]}, "line 3 is there a second"),
        (
            {"target": "1_0.png", "source": "https://a.b/1.png"},
            "names https:/a.b/1.png, which",
        ),
        (None, "line 3"),
    ],
)
def test_a_bad_line_is_named(tmp_path, change, said):
    lines = write(tmp_path, count=2)
    rows = [json.dumps(line) for line in lines]
    rows[2] = '{"source": ' if change is None else json.dumps(lines[2] | change)
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    with pytest.raises(ValueError) as error:
        opened(tmp_path)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith("data.name: got 'pairs:")


@pytest.mark.parametrize(
    "text, said",
    [
        ("source,text,target\n0.png,red, please,0_0.png\n", "line 2 has more than 3 fields"),
        ("source,target,text\n0.png,0_0.png,red, please\n", "line 2 has more than 3 fields"),
        ("source,text,target,text\n0.png,a,0_0.png,b\n", "two columns 'text'"),
        ("source;text;target\n0.png;a;0_0.png\n", "no source (its fields: source;text;target)"),
        ('source,text,target\n0.png,"a,0_0.png\n', "unexpected end of data"),
        ("version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("<!DOCTYPE html>\n<html></html>\n", "a web page"),
    ],
)
def test_a_bad_table_is_one_line(tmp_path, text, said):
    write(tmp_path, count=1)
    (tmp_path / "metadata.jsonl").rename(tmp_path / "metadata.csv")
    (tmp_path / "metadata.csv").write_text(text)
    with pytest.raises(ValueError) as error:
        opened(tmp_path)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_table_that_would_be_lost_is_refused(tmp_path):
    for part in ("train", "test"):
        write(tmp_path / part, count=2)
    assert len(opened(tmp_path)) == 4
    shutil.copy(tmp_path / "train" / "metadata.jsonl", tmp_path)
    with pytest.raises(ValueError, match=r"with one each \(it holds metadata.jsonl, train/meta"):
        opened(tmp_path)
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "test" / "metadata.jsonl").rename(tmp_path / "test" / "meta.jsonl")
    with pytest.raises(ValueError, match=r"with one each \(it holds train/metadata.jsonl\)"):
        opened(tmp_path)
    (tmp_path / "train" / "metadata.csv").write_text("source,text,target\n")
    with pytest.raises(ValueError, match=r"one table in a folder \(.*train holds both kinds"):
        opened(tmp_path / "train")


def test_what_no_line_names_is_counted(tmp_path):
    lines = write(tmp_path, count=4)
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines[:6])))
    for name in ("README.md", ".DS_Store", "notes.doc"):
        (tmp_path / name).write_bytes(b"")
    assert opened(tmp_path).left_out == (
        "1 files with .doc, 1 hidden or of the system, 3 pictures that no line names"
    )


def test_edits_are_not_encoded_without_their_sources(tmp_path):
    write(tmp_path / "edits")
    words = (str(tmp_path / "vae"), str(tmp_path / "out"))
    with pytest.raises(ValueError, match="data.name: got 'pairs:.*allowed a set without source p"):
        encoding.encode_set([opened(tmp_path / "edits")], *words, per_shard=4, batch_size=2)
    assert not (tmp_path / "out").exists()


def test_bad_folders_are_one_line(tmp_path):
    def refused(split="train", **options):
        with pytest.raises(ValueError) as error:
            opened(tmp_path, split, **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "allowed a folder with metadata.jsonl or metadata.csv" in refused()
    (tmp_path / "metadata.csv").write_text("source,text,target\n")
    assert "it has no line" in refused()
    (tmp_path / "metadata.csv").unlink()
    write(tmp_path)
    assert "data.split: got 'val', allowed train | test" in refused("val")
    (tmp_path / "4_1.png").write_bytes(b"no picture")
    assert "with bad pictures, mend or remove: 4_1.png" in refused()
    shutil.copy(tmp_path / "4.png", tmp_path / "4_1.png")
    Image.new("RGB", (9, 8)).save(tmp_path / "3.png")
    assert "data.image_size: got None, allowed an int >= 1" in refused()
    assert opened(tmp_path, image_size=4).image_shape == (4, 4, 3)
