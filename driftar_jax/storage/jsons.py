"""JSON files: written whole, and read of whoever wrote them, or one line that says why not."""

import json
import os
import pathlib
from typing import Any

from driftar_jax.storage import reasons
from driftar_jax.storage.reasons import reason

# Python's objects take up to thirty times the room of their text.
_LARGEST = 2**24
_CONTAINERS, _ITEMS = 2**20, 2**21


def parse(text: bytes):
    """Read what JSON text holds.

    Raises:
      ValueError: it is no JSON, nested without end, names a key twice, holds half of a letter, or
        would become out of proportion to its length.
    """
    if text.count(b"[") + text.count(b"{") > _CONTAINERS or text.count(b",") > _ITEMS:
        raise ValueError("more parts than such a file can have")
    try:
        value = json.loads(text, object_pairs_hook=_once)
        # A text that was cut inside of an escaped letter: no file and no hash would take it later.
        # Names of files that are not UTF-8 look alike, and stay.
        if b"\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except RecursionError:
        raise ValueError("nested without end") from None
    except UnicodeEncodeError:
        raise ValueError("half of a letter, such as \\ud83d alone") from None
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Python keeps the last of two; another reader may keep the first, and be shown something else.
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise ValueError("a name that stands there twice")
    return mapping


def read_json(field: str, path: str | os.PathLike, allowed: str, most: int = _LARGEST) -> dict:
    """Read the JSON object of a file.

    Args:
      field: for the message.
      path: of the file.
      allowed: what belongs there, for the message.
      most: bytes of the largest file that is read.

    Raises:
      ValueError: it is absent, damaged, nested without end, too large or no object; one line that
        names the file.
    """
    path = pathlib.Path(path)
    try:
        size = path.stat().st_size
        if size > most:
            raise ValueError(f"{size} bytes, more than the {most} that such a file can have")
        value = parse(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("no JSON object")
    except OSError as error:
        why = error.strerror
    except ValueError as error:
        why = reasons.of_file(path) or reason(error)
    else:
        return value
    raise ValueError(f"{field}: got {str(path)!r}, allowed {allowed} ({why})")


def write_json(path: str | os.PathLike, value) -> None:
    """Write JSON under a temporary name, then rename, so that no reader sees half of it."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    os.replace(temporary, path)
