"""`docs/published.md` speaks of code that exists."""

import importlib
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
TEXT = (ROOT / "docs" / "published.md").read_text()
NAMED = sorted(set(re.findall(r"`([\w/]+)\.py (\w+(?:\.\w+)*)`", TEXT)))


def test_the_page_names_code():
    assert len(NAMED) > 20


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[f"{f}-{n}" for f, n in NAMED])
def test_what_is_named_exists(file, name):
    found = importlib.import_module(f"driftar_jax.{file.replace('/', '.')}")
    for part in name.split("."):
        found = getattr(found, part)


def test_every_row_has_a_test_of_its_topic():
    table = TEXT.split("## What differs")[1].split("## What no mode repeats")[0]
    topics = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")][
        1:
    ]
    tests = (pathlib.Path(__file__).parent / "test_differences.py").read_text()
    names = set(re.findall(r"def test_(\w+)", tests))
    for topic in topics:
        words = re.sub(r"\W+", "_", topic)
        assert words in names, topic
    assert len(topics) == len(names)
