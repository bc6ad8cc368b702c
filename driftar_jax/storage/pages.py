"""Pages for readers, such as `report.md`: in UTF-8 on any machine, and whole or not there."""

import os
import pathlib


def write_page(path: str | os.PathLike, text: str) -> None:
    """Write a text under a temporary name, then rename.

    Its letters are those of UTF-8 whatever the terminal knows; what is none, as in a folder's name,
    stands there as an escape.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
