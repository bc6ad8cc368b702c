"""Captions and their ids: the same on every machine, checked, and refused where they do not fit."""

import json

import numpy as np
import pytest

from driftar_jax.data import captions, embedded, emoji_names, pipeline, prompts, source

TEXTS = ["red heart, heart", "Black Heart, heart", "fox face, animal mammal", "input 12, arrow"]
GRID, LENGTH = (3, 2), 5
FITTED = captions.fit("set", TEXTS, GRID, LENGTH)
TOKENIZER = captions.WordTokenizer(FITTED.tokenizer)


def test_the_table_of_emoji_is_what_the_script_writes():
    found = embedded.captions("emoji32")
    arrays = embedded.load("emoji32")
    with np.load(embedded.FOLDER / "emoji32.npz") as file:
        codes = file["code"].tolist()
    assert len(found) == len(codes) == len(arrays["label"])
    for code, label, text in zip(codes, arrays["label"].tolist(), found, strict=True):
        assert text == emoji_names.caption(code, str(arrays["names"][label]))
    assert found[codes.index("1f412")] == "monkey, animal mammal"
    assert embedded.captions("digits8") is None


def test_a_changed_table_is_refused(monkeypatch):
    monkeypatch.setitem(embedded.CAPTIONS, "emoji32", "0" * 64)
    with pytest.raises(ValueError, match="data.name: got 'emoji32' whose file .*_captions.txt"):
        embedded.captions("emoji32")


def test_captions_come_with_the_set(data_dir):
    part = pipeline.load_source("emoji32", "test", data_dir=data_dir, image_size=8)
    labels = part.gather(np.arange(len(part)))[1]
    for text, label in zip(part.captions, labels, strict=True):
        kind = part.class_names[label].replace("-", " ").replace("&", "and")
        assert text.endswith(f", {kind}")
    by_class = captions.by_class(part.captions, labels, part.num_classes)
    assert all(by_class) and set().union(*by_class) == set(part.captions)


def test_the_vocabulary_depends_on_the_words_alone():
    assert captions.vocabulary_of(TEXTS[::-1]) == FITTED.tokenizer
    vocabulary = FITTED.tokenizer["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert vocabulary["heart"] < vocabulary["animal"] < vocabulary["red"]
    assert FITTED.spec.vocab_size == len(vocabulary)


def test_ids_are_those_of_the_library():
    library = pytest.importorskip("tokenizers")
    made = library.Tokenizer.from_str(json.dumps(FITTED.tokenizer))
    for text in (*TEXTS, "<|image_area|>8*12", "FOX 12a Müller's red_heart [PAD]x"):
        assert TOKENIZER.encode(text) == made.encode(text, add_special_tokens=False).ids, text


def test_rows_end_with_the_size_and_the_mark():
    spec = FITTED.spec
    want = [TOKENIZER.id_of(t) for t in (prompts.AREA, "3", "*", "2", "<|begin_of_image|>")]
    assert list(spec.suffix) == want and spec.prompt == LENGTH + 5
    (row,) = captions.rows(TOKENIZER, spec, ["a red heart"], GRID)
    words = [spec.unknown, *(TOKENIZER.id_of(w) for w in ("red", "heart"))]
    np.testing.assert_array_equal(row, [2, spec.pad, spec.pad, *words, *want])
    np.testing.assert_array_equal(captions.nothing(spec), [LENGTH, *[spec.pad] * LENGTH, *want])
    assert captions.TextSpec.from_json(json.loads(json.dumps(spec.as_json()))) == spec
    np.testing.assert_array_equal(FITTED.rows, captions.rows(TOKENIZER, spec, TEXTS, GRID))


@pytest.mark.parametrize(
    ("caption", "line"),
    [
        ("zebra crossing", "prompt: got 'zebra crossing', allowed at least one word of the"),
        (" ", "prompt: got ' ', allowed text"),
        ("red red red red red red", "prompt: got 'red red red red red red' of 6 tokens, allowed"),
    ],
)
def test_captions_that_mean_nothing_are_refused(caption, line):
    with pytest.raises(ValueError) as error:
        captions.rows(TOKENIZER, FITTED.spec, ["red", caption], GRID)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_sets_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="data.name: got 'set', allowed a set with captions"):
        captions.fit("set", None, GRID, LENGTH)
    with pytest.raises(ValueError, match="text.length: got 4, allowed at least 5"):
        captions.fit("set", TEXTS, GRID, 4)


def _damaged(text):
    def damage(folder):
        (folder / prompts.FILE).write_text(text)

    return damage


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda folder: (folder / prompts.FILE).unlink(), "tokenizer.json: got None, allowed"),
        (_damaged("{"), "tokenizer.json: got '"),
        (_damaged('{"model": {"type": "BPE"}}'), "tokenizer.json: got '"),
        (
            _damaged(json.dumps(captions.vocabulary_of(TEXTS[:2]))),
            "tokenizer.json: got '21 words', allowed",
        ),
        (lambda folder: (folder / captions.FILE).unlink(), "captions.json: got '"),
    ],
)
def test_a_damaged_book_is_named(tmp_path, damage, line):
    (tmp_path / prompts.FILE).write_text(json.dumps(FITTED.tokenizer))
    (tmp_path / captions.FILE).write_text(json.dumps([["red"], ["fox", "heart"]]))
    book = captions.read_book(tmp_path, FITTED.spec, GRID)
    drawn = book.drawn(np.array([1, -1, 0, 1, 1, 1]), seed=3)
    assert drawn[1] == "" and drawn[2] == "red" and set(drawn[3:]) <= {"fox", "heart"}
    assert book.drawn(np.array([1, 0]), seed=3)[0] == drawn[0]
    np.testing.assert_array_equal(book.rows(drawn)[1], captions.nothing(FITTED.spec))
    damage(tmp_path)
    with pytest.raises(ValueError) as error:
        captions.read_book(tmp_path, FITTED.spec, GRID)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_text_follows_its_image(digits, data_dir, monkeypatch):
    """By both roads that a batch can take; another text is another sequence."""
    text = np.arange(3 * len(digits), dtype=np.int32).reshape(-1, 3)
    images, _ = pipeline.all_images(digits)

    def check(part):
        batches = pipeline.Batches(part, batch_size=7, seed=1, text=text)
        with batches:
            batch = next(batches)
        assert batch["text"].dtype == np.int32
        np.testing.assert_array_equal(images[batch["text"][:, 0] // 3], batch["image"])
        return batches.state()

    state = check(digits)
    monkeypatch.setattr(source, "MEMORY_LIMIT", 0)
    assert check(pipeline.load_source("digits8", "test", data_dir=data_dir)) == state
    with pytest.raises(ValueError, match="data state: got text"):
        pipeline.Batches(digits, batch_size=7, seed=1, text=text + 1).restore(state)
