"""What JAX refuses of the environment, before a program has run a line of its own."""

import os
import subprocess
import sys

import pytest

# As the script `driftar` that pip installs.
SCRIPT = "import sys; from driftar_jax.__main__ import main; sys.exit(main())"
WAYS = (["-m", "driftar_jax.sample"], ["-c", SCRIPT, "sample"], ["-m", "driftar_jax", "sample"])


def _run(words, **variables):
    words = [sys.executable, *words]
    return subprocess.run(words, env=os.environ | variables, capture_output=True, text=True)


@pytest.mark.parametrize("words", WAYS)
def test_a_switch_that_is_none_ends_in_one_line(words):
    done = _run([*words, "--help"], JAX_ENABLE_X64="maybe")
    assert done.stderr == "driftar_jax: JAX_ENABLE_X64: got 'maybe', allowed true | false\n"
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize(
    "name, known",
    [("JAX_DEFAULT_PRNG_IMPL", "threefry2x32"), ("JAX_DEFAULT_MATMUL_PRECISION", "highest")],
)
def test_an_unknown_word_ends_in_one_line_with_those_that_jax_has(name, known):
    done = _run(["-m", "driftar_jax.sample"], **{name: "it's"})
    line, end = done.stderr.split("\n")
    assert line.startswith(f'driftar_jax: {name}: got "it\'s", allowed ') and not end
    assert known in line.partition(", allowed ")[2].split(" | ")
    assert done.returncode == 2


def test_other_mistakes_keep_their_traceback():
    done = _run(["-c", "from driftar_jax.cli import environment as e; e.watch(); int('maybe')"])
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and "ValueError: invalid literal" in done.stderr


def test_without_a_program_jax_is_not_waited_for():
    done = _run(["-m", "driftar_jax", "--version"], JAX_ENABLE_X64="maybe")
    assert (done.returncode, done.stderr) == (0, "")
