"""Parquet tables: what comes out, in which split, and what is refused."""

import builtins
import json
import os

import pyarrow
import pyarrow.parquet
import pytest
from own_sets import cut, table, values_of

from driftar_jax.data import own, parquet, pipeline


def test_what_tables_hold_beside_is_counted(tmp_path):
    table(tmp_path / "a.parquet", range(20), names=("even", "odd", "none"), score=[0.5] * 20)
    for name in (".a.parquet.tmp", "b.parquet.crc", "c.arrow", "README.md"):
        (tmp_path / name).write_bytes(b"")
    part = pipeline.load_source(f"parquet:{tmp_path}", "train")
    assert part.left_out == (
        "1 columns (score), 1 files with .arrow, 1 files with .crc, 1 hidden or of the system, "
        "1 classes without a picture (none)"
    )
    for names in (["train", "val"], [1, 2], ["a", ""]):
        table(tmp_path / "a.parquet", range(20), names=names)
        with pytest.raises(ValueError, match="^data.name: got .*(not parts of a set|names of cl)"):
            pipeline.load_source(f"parquet:{tmp_path}", "train")
    for label in (2**62, -1):
        column = pyarrow.array([0, label] * 10, pyarrow.int64())
        made = pyarrow.parquet.read_table(table(tmp_path / "a.parquet", range(20), told=False))
        made = made.set_column(1, "label", column)
        pyarrow.parquet.write_table(made, tmp_path / "a.parquet")
        with pytest.raises(ValueError, match="^data.name: got .*labels 0..131071"):
            pipeline.load_source(f"parquet:{tmp_path}", "train")


def test_tables_become_pictures_classes_and_captions(tmp_path):
    data = tmp_path / "data"
    table(data / "train-00000-of-00002.parquet", range(9), text=[f"t{i}" for i in range(9)])
    table(data / "train-00001-of-00002.parquet", range(9, 14), text=[f"t{i}" for i in range(9, 14)])
    table(data / "test-00000-of-00001.parquet", range(14, 16), text=["t14", "t15"])
    train = pipeline.load_source(f"parquet:{tmp_path}", "train")
    test = pipeline.load_source(f"parquet:{tmp_path}", "test")
    assert train.class_names == ("even", "odd")
    assert values_of(train) == list(range(14)) and values_of(test) == [14, 15]
    assert train.captions == [f"t{i}" for i in range(14)] and test.captions == ["t14", "t15"]


def test_tables_without_facts_go_by_the_names_of_columns(tmp_path):
    table(tmp_path / "a.parquet", range(10), told=False)
    part = pipeline.load_source(f"parquet:{tmp_path}", "train")
    assert part.class_names == ("0", "1") and len(part) == 8
    assert values_of(part) == sorted(values_of(part))


def test_columns_can_be_named(tmp_path):
    fine = pyarrow.array([i % 2 for i in range(8)], pyarrow.int64())
    path = table(tmp_path / "a.parquet", range(8), told=False, fine=fine, title=["x"] * 8)
    made = pyarrow.parquet.read_table(path).drop_columns(["label"])
    pyarrow.parquet.write_table(made, path)
    part = pipeline.load_source(f"parquet:{tmp_path}@label=fine,text=title", "train")
    assert part.num_classes == 2 and set(part.captions) == {"x"}
    for wrong, said in (("label=fne", "not fne"), ("colour=fine", "not colour")):
        with pytest.raises(ValueError, match=said):
            pipeline.load_source(f"parquet:{tmp_path}@{wrong}", "train")


def test_two_class_columns_are_asked_about(tmp_path):
    path = table(tmp_path / "a.parquet", range(4))
    made = pyarrow.parquet.read_table(path)
    label = {"_type": "ClassLabel", "names": ["a", "b"]}
    features = {"image": {"_type": "Image"}, "fine": label, "coarse": label}
    made = made.append_column("fine", made["label"]).rename_columns(["image", "coarse", "fine"])
    facts = {"huggingface": json.dumps({"info": {"features": features}})}
    pyarrow.parquet.write_table(made.replace_schema_metadata(facts), path)
    with pytest.raises(ValueError, match="one of coarse | fine"):
        pipeline.load_source(f"parquet:{tmp_path}", "train")


def _outside(path):
    made = pyarrow.table({"image": [{"bytes": None, "path": "a.png"}], "label": [0]})
    pyarrow.parquet.write_table(made, path)


@pytest.mark.parametrize(
    "change, said",
    [
        (cut, "whole tables"),
        (_outside, "hold the pictures themselves"),
        (lambda p: table(p, range(4), names=("one",)), "labels 0..0"),
        (lambda p: table(p, range(4), text=["a", None, "b", "c"]), "a text in every row"),
        (lambda p: table(p, range(4), text=["a", " ", "b", "c"]), "a text in every row"),
        (lambda p: os.rename(p, os.fsencode(p.parent) + b"/\xff.parquet"), "whole tables"),
        (lambda p: pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), p), "column of pictures"),
    ],
)
def test_a_bad_table_is_one_line(tmp_path, change, said):
    change(table(tmp_path / "a.parquet", range(8)))
    with pytest.raises(ValueError, match=said) as caught:
        pipeline.load_source(f"parquet:{tmp_path}", "train")
    assert "\n" not in str(caught.value)


def test_without_pyarrow_one_line_says_so(tmp_path, monkeypatch):
    table(tmp_path / "a.parquet", range(4))
    real = builtins.__import__

    def without(name, *rest, **more):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match="pip install pyarrow"):
        parquet.open_parquet(f"parquet:{tmp_path}", "train", image_size=None, center_crop=True)


def test_tables_that_number_their_classes_in_other_ways_are_refused(tmp_path):
    table(tmp_path / "a.parquet", range(4))
    path = table(tmp_path / "b.parquet", range(4), names=("odd", "even"))
    with pytest.raises(ValueError, match=r"tables of the same classes \(.*b.parquet has others"):
        pipeline.load_source(f"parquet:{tmp_path}", "train")
    made = pyarrow.parquet.read_table(table(path, range(4), told=False))
    made = made.set_column(1, "label", pyarrow.array(["even", "odd"] * 2))
    pyarrow.parquet.write_table(made, path)
    table(tmp_path / "a.parquet", range(4), told=False)
    with pytest.raises(ValueError, match="class numbers or class names, not both"):
        pipeline.load_source(f"parquet:{tmp_path}", "train")


def test_names_of_classes_beside_tables_and_folders_with_an_at(tmp_path):
    table(tmp_path / "u@h" / "a.parquet", range(4), told=False)
    (tmp_path / "u@h" / "classnames.txt").write_text("even\nodd\n")
    for chosen in ("", "@label=label"):
        part = pipeline.load_source(f"parquet:{tmp_path}/u@h{chosen}", "train")
        assert part.class_names == ("even", "odd")


def test_a_random_picture_costs_one_group(tmp_path):
    table(tmp_path / "a.parquet", range(40), group=4)
    made = parquet._Tables("parquet:x", [str(tmp_path / "a.parquet")], {})
    made.encoded(list(range(40)))
    assert made._group.cache_info().misses == 10
    assert own.LOOKED_AT >= 1000
