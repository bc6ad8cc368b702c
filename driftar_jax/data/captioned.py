"""Captions beside the pictures of a folder, as image folders have them.

`metadata.jsonl` or `metadata.csv` with `file_name` and `text` (or `caption`), in the folder of a
part or in a folder below it, and names relative to where it lies; else `picture.txt` beside
`picture.png`.
"""

import csv
import os
from collections.abc import Iterator, Sequence

from driftar_jax.config import wrong
from driftar_jax.data import listing
from driftar_jax.storage import jsons, reasons
from driftar_jax.storage.reasons import reason

_TEXTS = ("text", "caption")
_LARGEST = 2**16


def read(name: str, root: str, pictures: Sequence[str]) -> list[str] | None:
    """Read a text for each picture; None: the folder has none.

    Args:
      name: of the set, for messages.
      root: folder of the part.
      pictures: paths of its pictures, below `root`.

    Raises:
      ValueError: a table that cannot be read, names what is not there or names it twice, or
        pictures without a text beside others with one. One line each.
    """
    texts_by_path: dict[str, str] = {}
    tables = _tables(root, pictures)
    for table in tables:
        _read_table(name, table, texts_by_path)
    if not tables:
        for picture in pictures:
            stem = os.path.splitext(picture)[0]
            beside = next((stem + e for e in (".txt", ".TXT") if os.path.isfile(stem + e)), None)
            if beside is not None:
                texts_by_path[os.path.normpath(picture)] = _text_of(name, beside)
    if not texts_by_path and tables:
        raise wrong(
            "data.name", name, f"lines with file_name and text in {tables[0]} (it has none)"
        )
    if not texts_by_path:
        return None
    texts = [texts_by_path.get(os.path.normpath(picture)) for picture in pictures]
    lacking = [p for p, text in zip(pictures, texts, strict=True) if not text]
    if lacking:
        shown = f"{len(lacking)} of {len(pictures)} have none: {lacking[0]}"
        raise wrong("data.name", name, f"a text for every picture or for none ({shown})")
    return texts


def _tables(root: str, pictures: Sequence[str]) -> list[str]:
    """Tables in the folders of the pictures and above them, down from `root`."""
    folders = {os.path.normpath(root)}
    for picture in pictures:
        folder = os.path.dirname(os.path.normpath(picture))
        while folder not in folders and folder.startswith(os.path.normpath(root)):
            folders.add(folder)
            folder = os.path.dirname(folder)
    places = [os.path.join(folder, table) for folder in sorted(folders) for table in listing.TABLES]
    return [place for place in places if os.path.isfile(place)]


def _read_table(name: str, path: str, texts: dict[str, str]) -> None:
    folder = os.path.dirname(path)
    try:
        for number, row in table_rows(path):
            file_name = row.get("file_name")
            text = next((row[field] for field in _TEXTS if row.get(field)), None)
            if not isinstance(file_name, str) or not isinstance(text, str):
                raise ValueError(f"line {number} has no file_name or no text")
            picture = os.path.normpath(os.path.join(folder, file_name))
            if "\0" in text:
                raise ValueError(f"line {number} holds zero bytes")
            if picture in texts:
                raise ValueError(f"line {number} names {file_name} a second time")
            if not os.path.isfile(picture):
                raise ValueError(f"line {number} names {file_name}, which is not there")
            texts[picture] = text.strip()
    except (OSError, ValueError, csv.Error) as error:
        why = reasons.of_file(path) or reason(error)
        allowed = f"lines with file_name and text (or caption) in {path} ({why})"
        raise wrong("data.name", name, allowed) from None


def table_rows(path: str) -> Iterator[tuple[int, dict]]:
    """Read the lines of a `.jsonl` or `.csv` table, each with its number in the file.

    Raises:
      OSError, ValueError, csv.Error: it cannot be read, or a line is no record.
    """
    rows = _json_rows if path.endswith(".jsonl") else _csv_rows
    # Spreadsheets put a mark before the first letter, which would become part of a column's name.
    with open(path, encoding="utf-8-sig", newline="") as file:
        yield from rows(file)


def _json_rows(file):
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                row = jsons.parse(line.encode())
            except ValueError:
                # The parser counts lines within this one.
                raise ValueError(f"line {number} is no JSON") from None
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is no JSON object")
            yield number, row


def _csv_rows(file):
    # Else a quote that is left open takes the rest of the table for one text.
    reader = csv.DictReader(file, strict=True)
    names = reader.fieldnames or []
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two columns {twice[0][:40]!r}")
    for row in reader:
        # A text with a comma and without quotes, whose rest would be lost.
        if None in row:
            raise ValueError(f"line {reader.line_num} has more than {len(names)} fields")
        yield reader.line_num, row


def _text_of(name: str, path: str) -> str:
    try:
        with open(path, "rb") as file:
            # One byte more than allowed tells a long file without reading all of it.
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise ValueError(f"more than {_LARGEST} bytes")
        return " ".join(data.decode("utf-8-sig").split())
    except (OSError, ValueError) as error:
        why = reason(error)
        raise wrong("data.name", name, f"texts in UTF-8 ({path}: {why})") from None
