"""Configs with anything in them: accepted, or the first bad field named in one line."""

import json

import ml_collections
import pytest
import tiny
from damage import refused_in_one_line
from hypothesis import given, settings
from hypothesis import strategies as st

from driftar_jax import config

pytestmark = pytest.mark.timeout(120)
TASKS = sorted(tiny.FILES)
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-2, 70),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["mar", "drift", "host", "float32", "folder:", "../..", "\n", "a\nb"]),
)
_VALUES = st.one_of(
    _SCALARS,
    st.lists(_SCALARS, max_size=3),
    st.dictionaries(st.text("abc", min_size=1, max_size=4), _SCALARS, max_size=2),
)


def _changed(task, changes, removed, added):
    """The `:tiny` config of a task as plain data, spoiled."""
    flat = config.flatten(tiny.config(task))
    names = sorted(flat)
    for place, value in changes:
        flat[names[place % len(names)]] = value
    for place in removed:
        flat.pop(names[place % len(names)], None)
    nested = {}
    for name, value in flat.items():
        section, _, field = name.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[field] = value
    return nested | added


@pytest.mark.parametrize("task", TASKS)
@given(
    changes=st.lists(st.tuples(st.integers(0, 99), _VALUES), min_size=1, max_size=3),
    removed=st.lists(st.integers(0, 99), max_size=1),
    added=st.dictionaries(st.text("abcx_", min_size=1, max_size=5), _VALUES, max_size=1),
)
@settings(max_examples=100)
def test_spoiled_configs(task, changes, removed, added):
    spoiled = ml_collections.ConfigDict(_changed(task, changes, removed, added))
    with refused_in_one_line(ValueError, also=(": got ",)):
        config.check(spoiled)


@given(value=_VALUES)
@settings(max_examples=100)
def test_a_run_of_another_config_is_not_resumed(value):
    """What `config.json` of a workdir says, whatever it is."""
    with refused_in_one_line(ValueError):
        stored = json.loads(json.dumps(value if isinstance(value, dict) else {"task": value}))
        config.check_same_run(tiny.config("host"), stored)
