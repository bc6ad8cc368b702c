"""What is asked for: classes by number and name, texts, and what is neither."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from driftar_jax.data import captions
from driftar_jax.sampling import conditions, load, texts

NAMES = tiny.IMAGES.class_names
TEXTS = ["red heart", "grinning face", "blue square"]


@pytest.mark.parametrize(
    "asked",
    [[0, 2, -1], (0, 2, -1), np.array([0, 2, -1], np.int8), jnp.array([0, 2, -1])],
)
def test_numbers_of_every_kind(asked):
    found = conditions.class_numbers(asked, tiny.IMAGES)
    assert found.dtype == np.int32 and found.tolist() == [0, 2, -1]


def test_names_and_one_name_alone():
    asked = [NAMES[1], 0, "-1"]
    assert conditions.class_numbers(asked, tiny.IMAGES).tolist() == [1, 0, -1]
    assert conditions.class_numbers(NAMES[2], tiny.IMAGES).tolist() == [2]


ODD = [
    *([2**32], [2**40 + 1], np.array([2**32], np.int64), np.array([2**63], np.uint64), [1.5]),
    *([None], [True], np.array([True]), [[0]], [[0], [1, 2]], 0, None, [b"a"], ["no class"]),
    *([float("nan")], np.zeros((1, 1), np.int32)),
]


@pytest.fixture(scope="module")
def book():
    fitted = captions.fit("set", TEXTS, tiny.IMAGES.grid, 4)
    tokenizer = captions.tokenizer_of(fitted.tokenizer)
    by_class = tuple((text,) for text in TEXTS)
    return captions.Book(tokenizer, fitted.spec, tiny.IMAGES.grid, by_class)


@pytest.mark.parametrize("asked", ODD, ids=repr)
def test_what_is_no_class_is_named_and_becomes_no_other(asked, book):
    with pytest.raises(ValueError, match="^labels: got .*, allowed ") as caught:
        conditions.class_numbers(asked, tiny.IMAGES)
    assert "\n" not in str(caught.value)
    if not hasattr(asked, "ndim") or asked.ndim != 2:
        made = load.shapes(tiny.config("host"), tiny.IMAGES)
        with pytest.raises(ValueError, match="^(labels|prompt): got .*, allowed "):
            texts.Captions(book).conditions(made.model, made.settings(), asked, 0)


def test_texts_beside_classes_and_words_that_nobody_knows(book):
    reader, made = texts.Captions(book), load.shapes(tiny.config("host"), tiny.IMAGES)
    rows = lambda subjects: reader.conditions(made.model, made.settings(), subjects, 0)  # noqa: E731
    for other in (3, None, b"red"):
        with pytest.raises(ValueError, match="^labels: got .*, allowed texts alone or classes"):
            rows(["red heart", other])
    np.testing.assert_array_equal(rows("red heart"), rows(["red heart"]))
    assert reader.unknown(["Red $heart xyzzy", "plugh xyzzy face"]) == ["$", "xyzzy", "plugh"]
    assert reader.unknown(TEXTS) == []


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "4", None])
def test_batch_sizes(size):
    made = load.shapes(tiny.config("host"), tiny.IMAGES)
    if size is None:
        assert made.batch(size) == 256
        return
    with pytest.raises(ValueError, match="^batch_size: got .*, allowed a whole number of at least"):
        made.batch(size)
