"""The programs as a user calls them, in this process where a new one would only cost time."""

import contextlib
import dataclasses
import io
import runpy
import sys

import jax
import pytest
from absl import app, flags

PROGRAMS = ("train", "sample", "evaluate", "evaluate_drafts", "export")
PROGRAMS += ("ablate", "deviation", "report", "benchmark", "demo")


@dataclasses.dataclass(frozen=True)
class Done:
    """What a program left: exit status, output, and how many programs XLA compiled for it."""

    status: int
    stdout: str
    stderr: str
    compiled: int


@pytest.fixture(scope="session")
def call(data_dir, compiled_programs):
    """`call("train", "--flag=value", ...)` runs `python -m driftar_jax.train` in this process.

    With `terminal=True` standard error is a terminal's, as far as a program can see.
    """
    app.define_help_flags()
    foreign = set(flags.FLAGS)
    compiled = []

    def count(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(count)

    def run(program, *words, terminal=False):
        assert program in PROGRAMS
        out, err, before = io.StringIO(), io.StringIO(), len(compiled)
        err.isatty = lambda: terminal
        kept, sys.argv = sys.argv, [program, *map(str, words)]
        try:
            with (
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
            ):
                runpy.run_module(f"driftar_jax.{program}", run_name="__main__")
            raise AssertionError("the program did not exit")
        except SystemExit as end:
            status = end.code or 0
        finally:
            sys.argv = kept
            _forget_flags(program, foreign)
        return Done(status, out.getvalue(), err.getvalue(), len(compiled) - before)

    yield run
    jax.monitoring.unregister_event_duration_listener(count)


def _forget_flags(program, foreign):
    """Remove the flags of a program, as if it had not been imported."""
    flags.FLAGS.unparse_flags()
    for name in set(flags.FLAGS) - foreign:
        module = flags.FLAGS.find_module_defining_flag(name)
        shared = module and module.endswith("_flags")
        if module == program or shared or name.startswith("config."):
            delattr(flags.FLAGS, name)


@dataclasses.dataclass(frozen=True)
class Workdirs:
    """Finished runs of the `:tiny` configs."""

    judge: str
    own: str
    drift: str


@pytest.fixture(scope="session")
def workdirs(call, tmp_path_factory):
    """A classifier, a host with its own head, and Drift-AR started from that host."""
    root = tmp_path_factory.mktemp("runs")
    made = Workdirs(*(str(root / name) for name in ("judge", "own", "drift")))
    for config, workdir, more in (
        ("classifier", made.judge, ()),
        ("mar_small", made.own, ()),
        ("drift_mar_small", made.drift, (f"--config.init_from={made.own}",)),
    ):
        done = call("train", f"--config=configs/{config}.py:tiny", f"--workdir={workdir}", *more)
        assert (done.status, done.stderr) == (0, "")
    return made
