"""Image sets in parquet tables as Hugging Face writes them; needs the library pyarrow.

Columns are found by their kind and name; `parquet:PATH@label=fine_label,text=title` names those
that are not. A picture lies in a row group, which is read whole: in order that costs nothing, at
random it costs a group for each picture, so that large sets are better encoded first.
"""

import collections
import functools
import json
import threading
from typing import Any

from driftar_jax.config import wrong
from driftar_jax.data import PARQUET, listing, own
from driftar_jax.data.source import ImageSource
from driftar_jax.storage import reasons
from driftar_jax.storage.reasons import reason

_KINDS = ("image", "label", "text")
_NAMES = {
    "image": ("image", "img", "picture", "jpg", "png"),
    "label": ("label", "labels", "class", "cls"),
    "text": ("text", "caption", "prompt"),
}
_GROUPS_KEPT = 16


def open_parquet(
    name: str, split: str, *, image_size: int | None, center_crop: bool
) -> ImageSource:
    """Open the split of `parquet:PATH`; see `own.files` for paths and `own.source_of` for splits.

    Raises:
      ValueError: no tables, damaged ones, no column of encoded pictures, or pyarrow is missing.
        One line each.
    """
    path, chosen = name.removeprefix(PARQUET), ""
    # Folders may hold the mark in their names.
    if "=" in path.rpartition("@")[2]:
        path, _, chosen = path.rpartition("@")
    counts: collections.Counter[str] = collections.Counter()
    tables = own.files(name, path, ".parquet", counts)
    set_ = _Tables(name, [file for file, _ in tables], _chosen(name, chosen))
    parts = [p for (_, p), n in zip(tables, set_.lengths, strict=True) for _ in range(n)]
    if set_.others:
        counts[f"columns ({listing.shown(set_.others)})"] = len(set_.others)
    if without := sum(not count for count in set_.lengths):
        counts["tables without a row"] = without
    labels = set_.column("label")
    if labels is None:
        own.count_folders([file for file, _ in tables], counts)
    pictures = own.Pictures(
        keys=set_.keys,
        parts=parts,
        labels=labels,
        class_names=set_.class_names or own.names_beside(name, tables[0][0]),
        captions=set_.column("text"),
        encoded=set_.encoded,
        left_out=listing.line(counts),
    )
    return own.source_of(name, split, pictures, image_size=image_size, center_crop=center_crop)


def _chosen(name: str, text: str) -> dict[str, str]:
    words = [word.partition("=")[::2] for word in text.split(",") if word]
    columns = dict(words)
    if len(columns) < len(words):
        raise wrong("data.name", name, f"{PARQUET}PATH@image=COLUMN with each kind once")
    if unknown := set(columns) - set(_KINDS):
        allowed = f"PATH@image=COLUMN,label=COLUMN,text=COLUMN, not {sorted(unknown)[0]}="
        raise wrong("data.name", name, f"{PARQUET}{allowed}")
    return columns


class _Tables:
    """The tables of a set, one after the other."""

    def __init__(self, name: str, files: list[str], chosen: dict[str, str]):
        self._name, self._files, self._open = name, files, threading.local()
        self.lengths: list[int] = []
        self.keys: list[str] = []
        self._groups: list[tuple[int, int, int]] = []  # file, row group, first row in the set
        schemas = []
        for number, file in enumerate(files):
            table = self._table(number)
            schemas.append(table.schema_arrow)
            first = len(self.keys)
            for group in range(table.num_row_groups):
                self._groups.append((number, group, first))
                first += table.metadata.row_group(group).num_rows
            count = table.metadata.num_rows
            self.lengths.append(count)
            # A file that is added leaves the keys of the others as they are.
            stem = file.rpartition("/")[2]
            self.keys += [f"{stem}/{i}" for i in range(count)]
        self._columns = _columns(name, schemas[0], chosen)
        for file, schema in zip(files, schemas, strict=True):
            for column in self._columns.values():
                if column not in schema.names:
                    raise wrong("data.name", name, f"tables of one form ({file}: no {column})")
        of_all = dict.fromkeys(c for schema in schemas for c in schema.names)
        self.others = [c for c in of_all if c not in self._columns.values()]
        classes = [_features(s).get(self._columns.get("label"), {}).get("names") for s in schemas]
        for file, names in zip(files, classes, strict=True):
            if names != classes[0]:
                raise wrong("data.name", name, f"tables of the same classes ({file} has others)")
        self.class_names: list[str] | None = classes[0] or None
        # A group is read as a whole: pictures that follow each other are read once and not once
        # each.
        self._group = functools.lru_cache(maxsize=_GROUPS_KEPT)(self._read_group)

    def _table(self, number: int):
        """The file's reader of this thread."""
        parquet = _library(self._name)
        # A reader for each thread: one that is shared would move its place in the file under the
        # others.
        opened = self._open.__dict__.setdefault("tables", {})
        if number not in opened:
            with _whole(self._name, self._files[number]):
                opened[number] = parquet.ParquetFile(self._files[number], memory_map=True)
        return opened[number]

    def column(self, kind: str) -> list | None:
        """Values of the column of a kind, for every row; None: there is no such column."""
        column = self._columns.get(kind)
        if column is None:
            return None
        values: list[Any] = []
        for number, file in enumerate(self._files):
            with _whole(self._name, file):
                values += self._table(number).read(columns=[column])[column].to_pylist()
        kinds = (int, str) if kind == "label" else str
        for key, value in zip(self.keys, values, strict=True):
            empty = isinstance(value, str) and not value.strip()
            if not isinstance(value, kinds) or isinstance(value, bool) or empty:
                allowed = f"a {kind} in every row of {column} ({key}: {str(value)[:40]!r})"
                raise wrong("data.name", self._name, allowed)
        return values

    def encoded(self, indices: list[int]) -> list[bytes]:
        """Bytes of the pictures of these rows."""
        return [self._picture(i) for i in indices]

    def _picture(self, i: int) -> bytes:
        low, high = 0, len(self._groups)
        # The group of a row, by bisection over the first rows of all groups.
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._groups[middle][2] <= i else (low, middle)
        number, group, first = self._groups[low]
        value = self._group(number, group)[i - first].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            allowed = f"tables that hold the pictures themselves ({self.keys[i]} does not)"
            raise wrong("data.name", self._name, allowed)
        return data

    def _read_group(self, number: int, group: int):
        column = self._columns["image"]
        with _whole(self._name, self._files[number]):
            return self._table(number).read_row_group(group, columns=[column])[column]


def _columns(name: str, schema, chosen: dict[str, str]) -> dict[str, str]:
    """The column of each kind that the tables have."""
    features = _features(schema)
    for column in chosen.values():
        if column not in schema.names:
            raise wrong("data.name", name, f"columns {' | '.join(schema.names)}, not {column}")
    columns = dict(chosen)
    said = {"image": "Image", "label": "ClassLabel"}
    for kind in _KINDS:
        if kind in columns:
            continue
        of_kind = [c for c in schema.names if features.get(c, {}).get("_type") == said.get(kind, 0)]
        by_name = [c for c in _NAMES[kind] if c in schema.names]
        # What a file says of its columns counts for more than what they are called.
        options = of_kind or by_name[:1]
        if len(options) > 1:
            allowed = f"{name}@{kind}=COLUMN with COLUMN one of {' | '.join(options)}"
            raise wrong("data.name", name, allowed)
        if options:
            columns[kind] = options[0]
    if "image" not in columns:
        allowed = f"tables with a column of pictures, or {name}@image=COLUMN ({schema.names})"
        raise wrong("data.name", name, allowed)
    return columns


def _features(schema) -> dict[str, Any]:
    """What Hugging Face wrote of the columns; nothing where it did not."""
    try:
        facts = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = facts["info"]["features"]
        return {column: f for column, f in features.items() if isinstance(f, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _library(name: str):
    try:
        import pyarrow.parquet
    except ImportError:
        raise wrong(
            "data.name", name, "an environment with pyarrow (pip install pyarrow)"
        ) from None
    return pyarrow.parquet


class _whole:
    """Turns what pyarrow says of a damaged file into one line."""

    def __init__(self, name: str, file: str):
        self._name, self._file = name, file

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if isinstance(error, Exception) and (
            type(error).__module__.startswith("pyarrow")
            or isinstance(error, OSError | UnicodeError)
        ):
            line = reason(error)
            line = reasons.of_file(self._file) or line
            raise wrong("data.name", self._name, f"whole tables ({self._file}: {line})") from None
