"""List the programs, or run one: `driftar sample ...` is `python -m driftar_jax.sample ...`."""

import ast
import pathlib
import runpy
import sys

import driftar_jax
from driftar_jax.cli import environment

# In the order in which one meets them.
PROGRAMS = ("train", "sample", "demo", "evaluate", "export", "convert", "encode", "benchmark")
PROGRAMS += ("evaluate_drafts", "deviation", "ablate", "report", "scale")


def about(program: str) -> str:
    """Return the first sentence of a program's own text, read without importing it."""
    file = pathlib.Path(__file__).with_name(f"{program}.py")
    if not file.exists():
        file = file.with_suffix("") / "__main__.py"
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def listing() -> str:
    """Return a line for each program."""
    lines = [f"  {program:<17}{about(program)}" for program in PROGRAMS]
    head = "usage: driftar PROGRAM [--flags], or python -m driftar_jax.PROGRAM [--flags]"
    tail = "driftar PROGRAM --help shows the flags of a program."
    return "\n".join([head, "", *lines, "", tail])


def main() -> None:
    """Run the program that the first word names; without a word, list them all."""
    words = sys.argv[1:]
    if not words or words[0].lstrip("-") in ("help", "h", "helpfull"):
        print(listing())
        return
    if words[0] == "--version":
        print(f"driftar_jax {driftar_jax.__version__}")
        return
    environment.watch()
    if words[0] not in PROGRAMS:
        from driftar_jax import config  # here: the list need not wait for JAX
        from driftar_jax.cli import program as cli

        near = config.nearest(words[0], PROGRAMS)
        cli.fail(f"program: got {words[0]!r}, allowed {' | '.join(PROGRAMS)}{near}")
    del sys.argv[1]
    runpy.run_module(f"driftar_jax.{words[0]}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
