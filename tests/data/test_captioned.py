"""Captions of a folder: tables and texts beside pictures."""

import json

import pytest

from driftar_jax.data import captioned


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "dog").mkdir()
    made = [tmp_path / "cat" / "1.png", tmp_path / "cat" / "2.png", tmp_path / "dog" / "1.png"]
    for path in made:
        path.write_bytes(b"picture")
    return tmp_path


def _paths(folder):
    return [str(path) for path in sorted(folder.rglob("*.png"))]


def _lines(folder, rows, name="metadata.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


NAMES = ["cat/1.png", "cat/2.png", "dog/1.png"]


def test_a_table_of_lines_in_any_order(folder):
    _lines(folder, [{"file_name": n, "text": f"a {n}"} for n in reversed(NAMES)])
    assert captioned.read("folder:x", str(folder), _paths(folder)) == [f"a {n}" for n in NAMES]


def test_a_table_with_commas_quotes_and_a_mark_of_order(folder):
    rows = "".join(f'{n},"red, ""{n}"""\r\n' for n in NAMES)
    (folder / "metadata.csv").write_text("\ufefffile_name,caption\r\n" + rows, encoding="utf-8")
    found = captioned.read("folder:x", str(folder), _paths(folder))
    assert found == [f'red, "{n}"' for n in NAMES]


def test_tables_in_the_folders_of_classes(folder):
    _lines(
        folder / "cat", [{"file_name": "1.png", "text": "x"}, {"file_name": "2.png", "text": "y"}]
    )
    _lines(folder / "dog", [{"file_name": "1.png", "text": "z"}])
    assert captioned.read("folder:x", str(folder), _paths(folder)) == ["x", "y", "z"]


@pytest.mark.parametrize("ending", [".txt", ".TXT"])
def test_texts_beside_pictures(folder, ending):
    for path in _paths(folder):
        with open(path.replace(".png", ending), "w", encoding="utf-8") as file:
            file.write(" two\nlines \n")
    assert captioned.read("folder:x", str(folder), _paths(folder)) == ["two lines"] * 3


def test_a_folder_without_texts_has_none(folder):
    assert captioned.read("folder:x", str(folder), _paths(folder)) is None


@pytest.mark.parametrize(
    "rows, said",
    [
        ([{"file_name": "cat/1.png", "text": "x"}], "2 of 3 have none"),
        ([{"file_name": "cat/9.png", "text": "x"}], "line 1 names cat/9.png, which is not there"),
        ([{"file_name": "cat/1.png", "text": "x"}] * 2, "line 2 names cat/1.png a second time"),
        ([{"file_name": "cat/1.png"}], "line 1 has no file_name or no text"),
        ([{"file_name": 3, "text": "x"}], "line 1 has no file_name or no text"),
        (["x"], "line 1 is no JSON object"),
        ([], "it has none"),
        ([{"file_name": "cat/1.png", "text": "a\0b"}], "line 1 holds zero bytes"),
    ],
)
def test_a_bad_table_is_one_line(folder, rows, said):
    _lines(folder, rows)
    with pytest.raises(ValueError, match=said) as caught:
        captioned.read("folder:x", str(folder), _paths(folder))
    assert "\n" not in str(caught.value)


def test_a_text_that_is_no_text_is_named(folder):
    (folder / "cat" / "1.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match="texts in UTF-8"):
        captioned.read("folder:x", str(folder), _paths(folder))
