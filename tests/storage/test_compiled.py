"""Compiled programs are kept where somebody said, and a process that cannot keep them goes on."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import driftar_jax
from driftar_jax.storage import compiled

SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture(autouse=True)
def untold(monkeypatch):
    """As in a process that has told JAX of no folder."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr(compiled, "_asked", False)
    monkeypatch.setattr(compiled, "_folder", None)
    monkeypatch.delenv(compiled.VARIABLE)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_the_flag_comes_first_then_jax_then_the_variable_then_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert compiled.keep() is None
    assert compiled.place().startswith(str(tmp_path / "caches" / "driftar_jax"))
    monkeypatch.setenv(compiled.VARIABLE, str(tmp_path / "variable"))
    assert compiled.keep() is None and "caches" in compiled.place()  # once is enough
    for told, want in ((None, "variable"), (str(tmp_path / "jax"), "jax")):
        monkeypatch.setattr(compiled, "_asked", False)
        jax.config.update("jax_compilation_cache_dir", told)
        assert compiled.keep() is None and compiled.place() == str(tmp_path / want)
    assert compiled.keep(str(tmp_path / "flag")) is None
    assert compiled.place() == str(tmp_path / "flag")
    assert compiled.keep("off") is None and compiled.place() is None


@pytest.mark.parametrize("kind", ["a file", "no home", "read only"])
def test_a_folder_that_cannot_be_used_is_one_line(tmp_path, monkeypatch, kind):
    if kind == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
        monkeypatch.chdir(tmp_path)
    else:
        (tmp_path / "place").write_text("") if kind == "a file" else (tmp_path / "place").mkdir()
        monkeypatch.setenv(compiled.VARIABLE, str(tmp_path / "place"))
        if kind == "read only":  # root may write everywhere
            monkeypatch.setattr(os, "access", lambda path, mode: False)
    line = compiled.keep()
    assert line.startswith("compile_cache: got ") and "\n" not in line
    assert "compiled programs are not kept" in line and compiled.place() is None
    assert not (tmp_path / "~").exists()


def test_load_warns_and_reads_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(compiled.VARIABLE, str(tmp_path / "file"))
    with (
        pytest.warns(UserWarning, match="compiled programs are not kept"),
        pytest.raises(ValueError, match="^workdir: got"),
    ):
        driftar_jax.load(tmp_path / "nothing")


def test_programs_are_kept_found_and_left_aside(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    hits = []
    listener = lambda event, **_: hits.append(event) if "cache_hits" in event else None  # noqa: E731
    jax.monitoring.register_event_listener(listener)
    try:
        compiled.keep(str(tmp_path))

        def double():
            made = jax.jit(lambda x: 2 * x + 17.25)  # a new function: nothing is in memory
            np.testing.assert_array_equal(made(jnp.ones(3)), np.full(3, 19.25))
            return len(hits)

        with compiled.afresh():
            double()
            assert compiled.place() is None and not list(tmp_path.glob("jit__lambda*"))
        assert compiled.place() == str(tmp_path)
        first = double()
        assert list(tmp_path.glob("jit__lambda*"))
        assert double() > first
    finally:
        jax.monitoring.unregister_event_listener(listener)


def test_an_address_makes_no_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(compiled.VARIABLE, "gs://bucket/cache")
    line = compiled.keep()
    assert line.startswith("compile_cache: got 'gs://bucket/cache', allowed a folder of this")
    assert "\n" not in line and compiled.place() is None and not list(tmp_path.iterdir())
