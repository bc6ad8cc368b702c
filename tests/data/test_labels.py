"""Classes by name and number, whatever their names look like."""

import os

import numpy as np
import pytest

from driftar_jax.data import labels

COUNTED = ("1", "10", "2")
ODD = ("salt, pepper", "salt", "cafe\u0301", "a/b", "-1x", "t-shirt", "$5")


def test_a_text_is_a_name_first_and_then_a_number():
    assert labels.numbers(["2", "1", "0", 2, -1, np.int32(0), "-1"], COUNTED) == [
        2,
        0,
        0,
        2,
        -1,
        0,
        -1,
    ]
    assert labels.numbers(["t-shirt", "caf\u00e9", "salt,pepper", "3"], ODD) == [5, 2, 0, 3]


@pytest.mark.parametrize(
    "bad", ["7", "-2", "Salt", "", "1.0", 7, -2, 1.5, None, True, np.True_, "9" * 40, "²"]
)
def test_what_no_class_has_is_named(bad):
    with pytest.raises(ValueError, match="^labels: got .*, allowed -1 to 6 or a class name"):
        labels.numbers([bad], ODD)
    with pytest.raises(ValueError, match="did you mean 't-shirt'"):
        labels.numbers(["t-shrt"], ODD)


def test_names_that_end_a_line_end_no_message():
    with pytest.raises(ValueError, match="or a class name: a b, c$") as caught:
        labels.numbers(["x"], ("a\nb", "c"))
    assert "\n" not in str(caught.value)
    assert labels.numbers(["a\nb", "1"], ("a\nb", "c")) == [0, 1]


def test_names_with_commas_are_put_together_again():
    assert labels.words("salt, pepper", ODD) == ["salt, pepper"]
    assert labels.words("3,salt", ODD) == ["3", "salt"]
    names = ("red, green, blue", "red", "ham,eggs", "x")
    assert labels.words("x,ham, eggs,red,1", names) == ["x", "ham,eggs", "red", "1"]
    assert labels.words("green,blue,x", names) == ["green", "blue", "x"]
    assert labels.words("", names) == [] == labels.words(" , ", names)


def test_files_say_a_number_where_they_cannot_say_the_class(monkeypatch):
    monkeypatch.setattr(os, "fsencode", lambda text: text.encode("ascii"))
    assert labels.for_file(1, "caf\u00e9") == "class1" and labels.for_file(1, "tea") == "class1_tea"


def test_files_say_the_class():
    assert labels.for_file(2, "ankle-boot") == "class2_ankle-boot"
    assert labels.for_file(0, "../a b/$c") == "class0_a-b-c"
    assert labels.for_file(3, "3") == "class3" == labels.for_file(3, "...")
    assert labels.for_file(-1, "x") == "class-1"
    assert labels.for_file(1, "\u5b57\u5178") == "class1_\u5b57\u5178"
    assert len(labels.for_file(1, "x" * 300)) < 60
