"""Prompts from files: a line each, and the files of GenEval, DPG-Bench and MJHQ-30K."""

import collections
import dataclasses
import hashlib
import os
import pathlib
import re
from typing import Any

from driftar_jax.config import wrong
from driftar_jax.data import listing
from driftar_jax.storage import jsons, paths, reasons
from driftar_jax.storage.reasons import reason

_LARGEST = 2**26  # bytes of a file, or of all files of a folder
_TABLES = (".csv", ".tsv", ".parquet", ".xlsx", ".yaml", ".yml", ".xml", ".html")
# A prompt may begin with `<image>`: of pages only what nobody would draw.
_PAGES = tuple((word, reasons.PAGE) for word in (b"<!doctype", b"<html", b"<?xml"))
_STAND_INS = (*(b for b in reasons.BEGINNINGS if b[0] != b"<"), *_PAGES)
_NAME = re.compile(r"[\w.-]+")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
      text: of it.
      key: what its picture is called after: its number, the name of its file, its id.
      facts: the JSON object it was given in, or None.
    """

    text: str
    key: str
    facts: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Hold the prompts of a file, in its order.

    Attributes:
      kind: lines | jsonl | folder | table; of a layout's demands.
      items: at least one.
      left_out: one line that counts what lies in their folder and is no prompt, or "".
      digest: SHA-256 of the text and keys of all of them.
    """

    kind: str
    items: tuple[Prompt, ...]
    left_out: str = ""

    @property
    def digest(self) -> str:
        """Return the SHA-256 of all keys and texts, in hexadecimal digits."""
        lines = "".join(f"{item.key}\t{item.text}\n" for item in self.items)
        return hashlib.sha256(lines.encode()).hexdigest()


def read(field: str, source: str) -> Prompts:
    """Read the prompts of a file or a folder.

    Args:
      field: for messages.
      source: `.jsonl` with `prompt` (GenEval), `.json` of id to `{category, prompt}` (MJHQ-30K), a
        folder of `id.txt` (DPG-Bench), or any other text file with a prompt a line.

    Raises:
      ValueError: nothing there, an empty prompt, or a name that no file can have; one line.
    """
    path = pathlib.Path(paths.local(field, source))
    counts: collections.Counter[str] = collections.Counter()
    try:
        if path.is_dir():
            kind, items = "folder", _folder(field, source, path, counts)
        else:
            if path.stat().st_size > _LARGEST:
                raise ValueError(f"more than {_LARGEST} bytes")
            if path.suffix.lower() in _TABLES:
                raise ValueError("a table: write a prompt a line, or objects with prompt in .jsonl")
            readers = {".jsonl": ("jsonl", _json_lines), ".json": ("table", _table)}
            readers[".ndjson"] = readers[".jsonl"]
            kind, reader = readers.get(path.suffix.lower(), ("lines", _lines))
            data = path.read_bytes()
            if what := reasons.of_head(data[:64], _STAND_INS):
                raise ValueError(what)
            items = reader(data)
        _check(items)
    except OSError as error:
        raise wrong(field, source, f"a file or folder of prompts ({error.strerror})") from None
    except ValueError as error:
        why = reason(error)
        raise wrong(field, source, f"prompts in UTF-8 ({why})") from None
    return Prompts(kind, tuple(items), listing.line(counts))


def _check(items: list[Prompt]) -> None:
    if not items:
        raise ValueError("there is none")
    keys: set[str] = set()
    for number, item in enumerate(items, 1):
        if not item.text.strip():
            raise ValueError(f"prompt {number} is empty")
        if "\0" in item.text:
            raise ValueError(f"prompt {number} holds zero bytes")
        if any("\ud800" <= letter <= "\udfff" for letter in item.text):
            raise ValueError(f"prompt {number} holds half of a letter")
        # Keys become names of picture files: no separators in them, and none that is hidden.
        if not _NAME.fullmatch(item.key) or item.key.startswith("."):
            raise ValueError(f"prompt {number} is called {item.key[:40]!r}")
        os.fsencode(item.key)  # a ValueError where such a file cannot be here
        if item.key in keys:
            raise ValueError(f"two prompts are called {item.key!r}")
        keys.add(item.key)


def _numbered(texts: list[tuple[str, dict | None]]) -> list[Prompt]:
    return [Prompt(text, f"{i:05d}", facts) for i, (text, facts) in enumerate(texts)]


def _split(data: bytes) -> list[str]:
    # Not `splitlines`: a text may hold what ends a line elsewhere.
    return data.decode("utf-8-sig").replace("\r\n", "\n").split("\n")


def _lines(data: bytes) -> list[Prompt]:
    lines = _split(data)
    # Else its braces and quotes would be drawn.
    if lines[0].lstrip().startswith('{"'):
        raise ValueError("lines of JSON: call the file .jsonl")
    return _numbered([(line.strip(), None) for line in lines if line.strip()])


def _json_lines(data: bytes) -> list[Prompt]:
    items = []
    for number, line in enumerate(_split(data), 1):
        if line.strip():
            facts = jsons.parse(line.encode())
            if not isinstance(facts, dict) or not isinstance(facts.get("prompt"), str):
                raise ValueError(f"line {number} is no object with a prompt")
            items.append((facts["prompt"], facts))
    return _numbered(items)


def _table(data: bytes) -> list[Prompt]:
    table = jsons.parse(data)
    if not isinstance(table, dict):
        raise ValueError("no object of ids")
    items = []
    for key, facts in table.items():
        if not isinstance(facts, dict) or not isinstance(facts.get("prompt"), str):
            raise ValueError(f"{key[:40]!r} has no prompt")
        category = facts.get("category", "")
        if not isinstance(category, str) or category and not _NAME.fullmatch(category):
            raise ValueError(f"{key[:40]!r} is of category {str(category)[:40]!r}")
        items.append(Prompt(facts["prompt"], key, facts))
    return items


def _folder(
    field: str, source: str, path: pathlib.Path, counts: collections.Counter
) -> list[Prompt]:
    files = []
    for file in map(pathlib.Path, listing.walk(field, source, str(path), counts)):
        if file.parent != path:
            counts["files in folders below"] += 1
        elif file.suffix.lower() == ".txt":
            files.append(file)
        else:
            listing.count_ending(file.name, counts)
    files.sort()
    if sum(file.stat().st_size for file in files) > _LARGEST:
        raise ValueError(f"more than {_LARGEST} bytes")
    return [
        Prompt(" ".join(f.read_bytes().decode("utf-8-sig").split()), f.name[: -len(".txt")])
        for f in files
    ]
