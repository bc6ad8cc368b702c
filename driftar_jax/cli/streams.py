"""Standard output and error of a program whose reader may be gone, or know no letter of it."""

import contextlib
import errno
import os
import sys


class Patient:
    """A stream that writes what its terminal knows, and is silent once nobody listens."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text; letters that the stream cannot encode as escapes.

        Raises:
          OSError: the disk is full, or the like; a closed pipe or terminal is passed over.
        """
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            code = self._stream.encoding or "ascii"
            return self.write(text.encode(code, "backslashreplace").decode(code))
        except OSError as error:
            return self._gone(error, len(text))

    def flush(self) -> None:
        """Flush the stream; raises as `write`."""
        try:
            self._stream.flush()
        except OSError as error:
            self._gone(error, 0)

    def _gone(self, error: OSError, count: int) -> int:
        """A closed terminal or pipe ends no run; a full disk does."""
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise error
        # What is still buffered would fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        return count


@contextlib.contextmanager
def patient():
    """Replace both streams by patient ones inside of the context; one that is closed is silent."""
    # The first file that is opened would take the number of a closed stream, and get what
    # libraries write there.
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    with open(os.devnull, "w", encoding="utf-8") as nobody:
        out, err = (Patient(stream or nobody) for stream in (sys.stdout, sys.stderr))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield
