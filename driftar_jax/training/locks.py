"""One writer per workdir: a lock that ends with its process, however that ends."""

import fcntl
import os
import pathlib
import socket

FILE = "run.lock"


class WorkdirLock:
    """Holds `run.lock` of a folder until `release`, or until the process is gone.

    The kernel keeps the lock, not the file: what a killed run leaves behind blocks nobody.
    """

    def __init__(self, folder: str | os.PathLike):
        """
        Args:
          folder: an existing folder.

        Raises:
          ValueError: another run holds it; OSError: the file cannot be written.
        """
        path = pathlib.Path(folder) / FILE
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(self._file, 200).decode(errors="replace").strip()
            self.release()
            raise ValueError(
                f"workdir: got {str(folder)!r}, "
                f"allowed one that no other run is writing ({holder or 'a run'} is)"
            ) from error
        except OSError:
            return  # a file system without locks; nothing can be said there
        os.ftruncate(self._file, 0)
        os.write(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def release(self) -> None:
        """Let the next run in. Safe to call twice."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
