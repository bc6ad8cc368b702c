"""What holds for archives and tables alike: order, memory, what is counted, files not there."""

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from own_sets import archive, numbered, table

from driftar_jax.data import pipeline


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_batches_of_archives_are_seeded_and_go_on(tmp_path, kind):
    archive(tmp_path / "a.tar", numbered(0, 30))
    table(tmp_path / "a.parquet", range(30))
    part = pipeline.load_source(f"{kind}:{tmp_path}", "train")
    options = dict(batch_size=4, seed=3, prefetch=0)
    whole = pipeline.Batches(part, **options)
    firsts = [next(whole)["image"] for _ in range(4)]
    state = whole.state()
    third = [next(whole)["image"] for _ in range(3)]
    again = pipeline.Batches(pipeline.load_source(f"{kind}:{tmp_path}", "train"), **options)
    np.testing.assert_array_equal(next(again)["image"], firsts[0])
    again.restore(state)
    for image in third:
        np.testing.assert_array_equal(next(again)["image"], image)


def test_sets_beyond_memory_are_read_at_random(tmp_path, monkeypatch):
    monkeypatch.setattr("driftar_jax.data.source.MEMORY_LIMIT", 0)
    archive(tmp_path / "a.tar", numbered(0, 20))
    table(tmp_path / "t" / "a.parquet", range(20))
    for name in (f"webdataset:{tmp_path}", f"parquet:{tmp_path}/t"):
        part = pipeline.load_source(name, "train")
        assert not part.in_memory
        seen = {int(part[i]["image"][0, 0, 0]) for i in reversed(range(len(part)))}
        assert len(seen) == 18


def test_what_a_set_without_classes_may_have_meant_as_such_is_counted(tmp_path, monkeypatch):
    for i, name in enumerate(("cat", "dog")):
        samples = numbered(2 * i, 2, json=lambda i: b'{"class_id": 3, "prompt": "x"}')
        samples = [(n, data) for n, data in samples if not n.endswith("cls")]
        archive(tmp_path / "w" / name / "a.tar", samples)
        made = pyarrow.parquet.read_table(table(tmp_path / "t.parquet", range(2), told=False))
        (tmp_path / "p" / f"label={name}").mkdir(parents=True)
        pyarrow.parquet.write_table(
            made.drop_columns(["label"]), tmp_path / "p" / f"label={name}" / "a.parquet"
        )
    archive(tmp_path / "w" / "cat" / "b.tar", [])
    part = pipeline.load_source(f"webdataset:{tmp_path}/w", "train")
    assert part.left_out == (
        "4 .json without class and caption (but class_id, prompt), 1 archives without a picture, "
        "2 folders of files, which are no classes (cat, dog)"
    )
    made = made.append_column("text", [["a", "b"]])
    pyarrow.parquet.write_table(made.slice(0, 0), tmp_path / "p" / "label=dog" / "c.parquet")
    part = pipeline.load_source(f"parquet:{tmp_path}/p", "train")
    assert part.left_out == (
        "2 columns (label, text), 2 folders of files, which are no classes (label=cat, label=dog), "
        "1 tables without a row"
    )
    # A file in the folder that one stands in has no folder in its name.
    monkeypatch.chdir(tmp_path / "w" / "dog")
    assert "folders" not in pipeline.load_source("webdataset:a.tar", "train").left_out


def test_files_that_others_count_and_that_are_not_there_are_said(tmp_path):
    for i in (0, 2):
        table(tmp_path / "t" / f"train-{i:05d}-of-00005-{i}a.parquet", range(4 * i, 4 * i + 4))
        archive(tmp_path / "a" / f"b-{i:03d}.tar", numbered(4 * i, 4))
    part = pipeline.load_source(f"parquet:{tmp_path}/t", "train")
    assert part.left_out == "3 files of train-*-of-00005 that are not there"
    table(tmp_path / "t1" / "a-00001-of-00001.parquet", range(4))
    assert pipeline.load_source(f"parquet:{tmp_path}/t1", "train").left_out == ""
    with pytest.raises(ValueError, match=r"files that are there \(1 are not: .*b-001.tar"):
        pipeline.load_source(f"webdataset:{tmp_path}/a/b-{{000..002}}.tar", "train")
