"""How every program ends where the disk or the machine ends it."""

import os
import shlex
import subprocess
import sys

import pytest

from driftar_jax.cli import program

PROGRAM = """
import sys
from driftar_jax.cli import program
from driftar_jax.storage.checkpoints import SaveFailed

def full(_):
    raise OSError(28, "No space left on device")

def read_only(_):
    with program.user_errors():
        raise OSError(30, "Read-only file system", "/a/b.png")

def later(_):
    raise PermissionError(13, "Permission denied", "/a/b.png")

def save(_):
    raise SaveFailed("checkpoint: got 'no room', allowed room")

def bug(_):
    raise FileNotFoundError(2, "No such file or directory", "/a/b.png")

def letters(_):
    open("/caf\\xe9")

sys.argv[1:] = ["--compile_cache=off"]
for main in (full, read_only, later, save, letters, bug):
    try:
        program.run(main)
    except SystemExit as end:
        print(main.__name__, end.code, flush=True)
    except FileNotFoundError:
        print("a traceback", flush=True)
"""
SAID = """\
driftar_jax: disk: got 'No space left on device', allowed one with room that can be read and written
driftar_jax: file: got '/a/b.png', allowed one that can be read and written (Read-only file system)
driftar_jax: file: got '/a/b.png', allowed one that can be read and written (Permission denied)
driftar_jax: checkpoint: got 'no room', allowed room
driftar_jax: LC_ALL: got ascii, allowed UTF-8 for names of files with '\\xe9'
"""


def test_disks_end_programs_in_one_line_and_mistakes_of_ours_do_not():
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env=os.environ | ascii_alone,
    )
    assert done.stderr == SAID
    assert done.stdout.split("\n") == [
        "full 1",
        "read_only 2",
        "later 1",
        "save 1",
        "letters 2",
        "a traceback",
        "",
    ]


def test_a_command_of_a_result_can_be_typed_as_it_stands(monkeypatch):
    words = ["--only=own,own longer", "--prompt=it's $HOME", "--out=runs/a"]
    monkeypatch.setattr(sys, "argv", ["ablate.py", *words])
    assert shlex.split(program.command("ablate")) == ["python", "-m", "driftar_jax.ablate", *words]


def test_texts_are_what_their_bytes_say_on_any_terminal(monkeypatch):
    # As an argument arrives where the locale is C.
    monkeypatch.setattr(os, "fsencode", lambda text: text.encode("ascii", "surrogateescape"))
    arrived = "röt".encode().decode("ascii", "surrogateescape")
    assert program._to_text("prompt", arrived) == "röt" and program._to_text("prompt", "a") == "a"


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to initialize\nx")])
def test_devices_that_are_not_there_are_one_line(monkeypatch, capsys, error):
    def devices():
        raise error

    monkeypatch.setattr(program.jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(SystemExit, match="2"):
        program._check_platform()
    line = capsys.readouterr().err
    assert line.startswith("driftar_jax: JAX_PLATFORMS: got 'cuda', allowed platforms that this")
    assert line.count("\n") == 1
