"""Rows of ids from prompts."""

import numpy as np
import pytest
from words import AREA, MARKS, Words
from words import ids as text

from driftar_jax.data import prompt_files, prompts

WORDS = Words()


def rows(captions, grid=(2, 3), **changes):
    return prompts.rows(WORDS, MARKS, captions, grid, **{"branches": 1, **changes})


def row(made, index):
    """A row without its padding."""
    assert (made.ids[index, : made.padding[index]] == MARKS["pad"]).all()
    return list(made.ids[index, made.padding[index] :])


SUFFIX = [AREA, *text("2*3"), MARKS["begin_image"]]


def test_text_then_size_then_mark():
    made = rows(["fox", "a red"], branches=2, positive="hi", negative="no")
    assert row(made, 0) == text("fox hi") + SUFFIX
    assert row(made, 1) == text("a red hi") + SUFFIX
    assert row(made, 2) == row(made, 3) == text("no") + SUFFIX
    np.testing.assert_array_equal(made.padding, [2, 0, 6, 6])
    assert made.ids.dtype == np.int32
    # All images begin at the same slot.
    np.testing.assert_array_equal(made.ids[:, -len(SUFFIX) :], [SUFFIX] * 4)


def test_an_empty_negative_prompt_is_all_padding():
    made = rows(["fox"], branches=2)
    assert row(made, 1) == SUFFIX and made.padding[1] == 3


def test_an_edit_puts_the_image_where_the_caption_says():
    made = rows(["put <image> on it"], source=(1, 2), branches=3, negative="bad")
    image = [AREA, *text("1*2"), 90, 92, 92, 91]
    assert row(made, 0) == text("put ") + image + text(" on it") + SUFFIX
    assert row(made, 1) == image + text("bad") + SUFFIX
    assert row(made, 2) == text("bad") + SUFFIX


@pytest.mark.parametrize(
    ("words", "captions", "changes"),
    [
        ("prompt: got '  ', allowed text", ["fox", "  "], {}),
        ("prompt: got 'see <image>', allowed no <image>", ["see <image>"], {}),
        ("prompt: got 'fox', allowed <image> once", ["fox"], {"source": (1, 1)}),
        ("allowed <image> once", ["<image> and <image>"], {"source": (1, 1)}),
        ("prompt: got 'foxes' of 5 tokens, allowed at most 4", ["fox", "foxes"], {"longest": 15}),
        ("guidance_image: got 'above 1'", ["fox"], {"branches": 3}),
    ],
)
def test_prompts_that_cannot_be_are_refused(words, captions, changes):
    with pytest.raises(ValueError) as error:
        rows(captions, **changes)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_another_tokenizer_is_refused():
    prompts.check_tokenizer(WORDS, MARKS)
    with pytest.raises(ValueError, match=r"^tokenizer.json: got 91, allowed 7 for <\|end_of_image"):
        prompts.check_tokenizer(WORDS, MARKS | {"end_image": 7})


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match="^tokenizer.json: got None, allowed the checkpoint's own"):
        prompts.load_tokenizer(tmp_path, MARKS)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="^tokenizer(s|.json): got"):
        prompts.load_tokenizer(tmp_path, MARKS)


def test_a_real_tokenizer_file(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {c: i for i, c in enumerate("abcdefghijklmnop ")}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({**vocabulary, "?": 50}, "?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    special = [*prompts.TOKENS.values(), prompts.AREA]
    made.add_special_tokens(special)
    # As a trainer's last batch may have left the file.
    made.enable_truncation(4)
    made.enable_padding(length=12)
    made.save(str(tmp_path / "tokenizer.json"))
    marks = {mark: made.token_to_id(token) for mark, token in prompts.TOKENS.items()}
    loaded = prompts.load_tokenizer(tmp_path, marks)
    got = loaded.encode(f"abc{prompts.AREA}")
    assert got[-1] == made.token_to_id(prompts.AREA) and len(got) >= 2
    assert loaded.encode("abcdefgh") == list(range(8)) and loaded.encode("a") == [0]


PROMPTS = {
    "a.txt": ("red\u2028heart\x85x\r\nblue\n".encode(), ["red\u2028heart\x85x", "blue"]),
    "b.jsonl": ('{"prompt": "a\u2028b"}\r\n'.encode(), ["a\u2028b"]),
    "c.txt": (b"\xef\xbb\xbf$$ {x} %s \\frac", ["$$ {x} %s \\frac"]),
    "d.txt": (b"r\0e\0d\0", "prompt 1 holds zero bytes"),
    "e.csv": (b"prompt\nred\n", "a table: write a prompt a line"),
    "f.TSV": (b"prompt\tx\n", "a table: write a prompt a line"),
    "g.txt": ("red".encode("utf-16"), "prompts in UTF-8"),
    "h.JSONL": (b'{"prompt": "red"}', ["red"]),
    "i.ndjson": (b'{"prompt": "red"}', ["red"]),
    "j.txt": (b'{"prompt": "red"}', "lines of JSON: call the file .jsonl"),
    "k.txt": (b"<!DOCTYPE html>", "a web page"),
    "l.txt": (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
    "m.txt": (b"<image> in the snow", ["<image> in the snow"]),
    "n.jsonl": (b'{"prompt": "red \\ud83d"}', "half of a letter"),
    "o.jsonl": (b'{"prompt": "red \\udc8d"}', "prompt 1 holds half of a letter"),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_files_of_prompts(tmp_path, name):
    data, want = PROMPTS[name]
    (tmp_path / name).write_bytes(data)
    if isinstance(want, str):
        with pytest.raises(ValueError, match=f"^prompts: got .*{want}"):
            prompt_files.read("prompts", str(tmp_path / name))
        return
    found = prompt_files.read("prompts", str(tmp_path / name))
    assert [item.text for item in found.items] == want


def test_a_folder_of_prompts_counts_what_is_none(tmp_path):
    for name in ("1.txt", "2.TXT", ".3.txt", "._1.txt", "x.png", "sub/4.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    found = prompt_files.read("prompts", str(tmp_path))
    assert [item.key for item in found.items] == ["1", "2"]
    assert found.left_out == (
        "1 files in folders below, 1 files with .png, 2 hidden or of the system"
    )
