"""Streams whose reader is gone, or whose terminal knows ASCII alone."""

import errno
import io
import os
import subprocess
import sys

import pytest

from driftar_jax.cli import streams


def test_an_ascii_terminal_gets_what_it_can_show():
    raw = io.BytesIO()
    stream = streams.Patient(io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    print("0.5 ± 0.1, café, \udcff", file=stream)
    assert raw.getvalue() == b"0.5 \\xb1 0.1, caf\\xe9, \\udcff\n"


@pytest.mark.parametrize("code", [errno.EPIPE, errno.EIO])
def test_a_reader_that_is_gone_ends_nothing(tmp_path, code):
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError(code, "gone")

        def flush(self):
            raise OSError(code, "gone")

        def fileno(self):
            return handle

    handle = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    stream = streams.Patient(Gone())
    print("a line", file=stream, flush=True)
    stream.flush()
    assert os.readlink(f"/proc/self/fd/{handle}") == os.devnull
    os.close(handle)


def test_a_full_disk_is_no_silence():
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        print("a line", file=streams.Patient(Full()))


def test_streams_come_back():
    before = sys.stdout, sys.stderr
    with streams.patient():
        assert isinstance(sys.stdout, streams.Patient) and sys.stdout.encoding
    assert before == (sys.stdout, sys.stderr)


def test_a_closed_stream_is_silent(monkeypatch):
    """As `>&-` leaves them: Python has none, and the next file would take their number."""
    monkeypatch.setattr(sys, "stdout", None)
    with streams.patient():
        print("a line", flush=True)
        assert isinstance(sys.stdout, streams.Patient)
    assert sys.stdout is None


CLOSED = """
import os, sys
os.close(1)
sys.stdout = None
from driftar_jax.cli import streams
with streams.patient():
    print("nobody", flush=True)
    held = os.readlink("/proc/self/fd/1")
print(held, file=sys.stderr)
"""


def test_no_file_takes_the_place_of_a_closed_stream():
    done = subprocess.run([sys.executable, "-c", CLOSED], capture_output=True, text=True)
    assert done.stderr.strip() == os.devnull and done.returncode == 0
