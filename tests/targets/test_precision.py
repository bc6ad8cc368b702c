"""`--matmul`: what is asked of each chip, and what a reader is told."""

import importlib.util

import jax
import pytest

from driftar_jax.targets import precision


@pytest.fixture(autouse=True)
def as_before():
    yield
    precision.choose("default")


@pytest.mark.parametrize(
    ("matmul", "platform", "asked", "told"),
    [
        ("default", "cuda", None, "TF32"),
        ("tf32", "cuda", None, "TF32"),
        ("float32", "cuda", "highest", "float32"),
        ("default", "tpu", None, "one pass of bfloat16"),
        ("tf32", "tpu", "high", "three passes of bfloat16"),
        ("float32", "tpu", "highest", "float32"),
        ("default", "cpu", None, "float32"),
    ],
)
def test_every_chip_is_asked_for_what_the_flag_says(matmul, platform, asked, told):
    precision.choose(matmul, platform)
    assert jax.config.jax_default_matmul_precision == asked
    assert precision.words(platform) == told


def test_without_a_platform_the_installed_packages_say_it(monkeypatch):
    for there, asked in (({"libtpu"}, "high"), ({"libtpu", "jax_cuda13_plugin"}, None)):
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, there=there: name in there or None
        )
        precision.choose("tf32")
        assert jax.config.jax_default_matmul_precision == asked
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    precision.choose("tf32")
    assert jax.config.jax_default_matmul_precision is None


def test_chips_that_are_not_here_are_asked_the_same():
    precision.choose("tf32", "cuda")
    precision.again("tpu")
    assert jax.config.jax_default_matmul_precision == "high"


def test_a_word_that_is_none_is_one_line(python):
    done = python("-m", "driftar_jax.scale", "--matmul=bfloat16")
    said = "driftar_jax: matmul: got 'bfloat16', allowed "
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith(said)
