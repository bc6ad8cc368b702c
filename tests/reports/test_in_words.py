"""Sentences of a report say what its numbers say."""

import json
import pathlib

import pytest

from driftar_jax.reports import in_words

RESULTS = pathlib.Path(__file__).parents[2] / "results"


def _said(name, **changes):
    record = json.loads((RESULTS / f"{name}.json").read_text())
    drift = next(row for row in record["rows"] if row["method"] == "drift")
    drift.update(changes)
    asked = record["rows"], record["floor"], "classifier", record["real"], record["premise"]
    return " ".join(in_words.lines(*asked))


def test_the_quickstart_in_words():
    said = _said("quickstart_digits8")
    assert "the gain is 7.5 times and not 50: 483 images a second instead of 64" in said
    assert "The own head is 1.5 times that, Drift-AR 1.6 times" in said
    assert "With 25 evaluations (`own`)" in said and "the gain is 4.2 times" in said
    assert "Drift-AR: errors are larger where it is *low*" in said and "(-0.29 to -0.05)" in said
    assert "Drift-AR: it predicts error clearly (+0.71 to +0.76)" in _said("nextstep_emoji32")


@pytest.mark.parametrize(
    ("frechet", "words"),
    [
        (10.9, "no further apart than two seeds of one head"),
        (9.0, "nearer to the real pictures"),
        (14.0, "further from the real pictures"),
    ],
)
def test_a_distance_within_the_spread_is_no_difference(frechet, words):
    said = _said("quickstart_digits8", frechet=frechet)
    assert words in said
    assert ("No row of the own head is as near" in said) == (frechet < 10.7)
