"""Ways to spoil a file, and a watch over what a program does while it reads one."""

import contextlib
import os
import pathlib
import sys

from hypothesis import strategies as st

# One change: what, where (modulo the length), and the bytes it brings.
_CHANGE = st.tuples(
    st.sampled_from(("flip", "insert", "remove", "cut", "zero", "repeat")),
    st.integers(0, 2**20),
    st.binary(min_size=1, max_size=8),
)
CHANGES = st.lists(_CHANGE, min_size=1, max_size=4)


def spoiled(whole: bytes, changes) -> bytes:
    """`whole` after the changes, in order."""
    data = bytearray(whole)
    for kind, place, new in changes:
        at = place % (len(data) + 1)
        here = slice(at, at + len(new))
        if kind == "flip":
            data[here] = bytes(a ^ b for a, b in zip(data[here], new, strict=False))
        elif kind == "insert":
            data[at:at] = new
        elif kind == "remove":
            del data[here]
        elif kind == "cut":
            del data[at:]
        elif kind == "zero":
            data[at : at + 8 * len(new)] = bytes(len(data[at : at + 8 * len(new)]))
        else:
            data[at:at] = data[max(at - 64, 0) : at]
    return bytes(data)


_STARTS = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pty.spawn"}
_TAKES_PATHS = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink"}
_NETWORK = {"socket.connect", "socket.bind", "urllib.Request"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_watch: dict = {"folder": None, "seen": []}


def _hook(event, arguments):
    folder = _watch["folder"]
    if folder is None:
        return
    if event in _STARTS or event in _NETWORK or event == "pickle.find_class":
        _watch["seen"].append((event, repr(arguments)[:200]))
    elif event == "open" and arguments[2] is not None and arguments[2] & _WRITES:
        _note(event, arguments[0], folder)
    elif event in _TAKES_PATHS:
        _note(event, arguments[0], folder)


def _note(event, path, folder):
    # A file descriptor stands for what was opened, and noted, before.
    if isinstance(path, int):
        return
    path = pathlib.Path(os.path.realpath(os.fsdecode(path)))
    if path != pathlib.Path(os.devnull) and not path.is_relative_to(folder):
        _watch["seen"].append((event, str(path)))


# An audit hook cannot be taken out again; outside `watched` this one does nothing.
sys.addaudithook(_hook)


@contextlib.contextmanager
def watched(folder):
    """Fails if the block starts a program, opens a socket, unpickles freely or writes elsewhere."""
    _watch.update(folder=pathlib.Path(os.path.realpath(folder)), seen=[])
    try:
        yield
    finally:
        _watch["folder"] = None
    assert _watch["seen"] == []


@contextlib.contextmanager
def refused_in_one_line(kinds=(ValueError, OSError), also=()):
    """Lets the block end well, or with one of `kinds` in one line.

    `also` holds words of which one must stand in the line.
    """
    try:
        yield
    except kinds as error:
        line = str(error)
        assert line and "\n" not in line and len(line) < 1000, line
        assert not also or any(word in line for word in also), line
