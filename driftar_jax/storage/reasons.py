"""Why a file could not be read: what a library says, and what lies in the file's place.

In place of a file that was not fetched lie pointers of Git LFS, and pages of a server.
"""

import os

POINTER = "a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"
PAGE = "a web page, not the file: download it again, from the address of the raw file"
BEGINNINGS = (
    (b"version https://git-lfs", POINTER),
    (b"version https://hawser", POINTER),
    (b"<", PAGE),
    (b'{"error', PAGE),
    (b'{"message', PAGE),
)
_LONGEST = 200  # characters: a library may repeat the whole of a damaged value


def reason(error: Exception) -> str:
    """Return what `error` says in one line, or its kind where it says nothing."""
    return " ".join(str(error).split())[:_LONGEST] or type(error).__name__


def of_head(head: bytes, beginnings=BEGINNINGS) -> str | None:
    """Say what begins so, and what to do; None: nobody knows."""
    lower = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((m for b, m in beginnings if lower.startswith(b.lower())), None)


def of_file(path: str | os.PathLike) -> str | None:
    """Say what a file is that could not be read; None: nobody knows, or it is not there."""
    try:
        with open(path, "rb") as file:
            return of_head(file.read(64))
    except OSError:
        return None
