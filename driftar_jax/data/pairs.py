"""Edits of one's own: a source picture, what is to be done to it, and the picture that comes of it.

`pairs:PATH` is a folder with `metadata.jsonl` or `metadata.csv`, whose lines have `source`, `text`
and `target`; names of pictures are relative to the table. Two such folders, `train` and `test`, are
the parts of a set; of one table a tenth of the source pictures is held out with all their edits.
"""

import collections
import csv
import hashlib
import os
from collections.abc import Callable

import numpy as np

from driftar_jax.config import wrong
from driftar_jax.data import PAIRS, captioned, folder, listing, own
from driftar_jax.data.prompts import IMAGE
from driftar_jax.data.source import ImageSource
from driftar_jax.storage import paths, reasons
from driftar_jax.storage.reasons import reason

# What a line may call its fields, the first of them here.
_FIELDS = {
    "source": ("source", "source_file_name"),
    "text": ("text", "instruction", "caption"),
    "target": ("target", "target_file_name", "file_name"),
}


class PairSource(ImageSource):
    """An `ImageSource` of the targets, whose items have a `source` picture of the same shape.

    Attributes:
      originals: the source pictures, in the order of the targets.
    """

    originals: ImageSource

    def __getitem__(self, i: int) -> dict:
        item = super().__getitem__(i)
        return item | {"source": self.originals[i]["image"]}

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return `{"image", "label", "source"}` at `indices [B]`; new arrays."""
        return super().batch(indices) | {"source": self.originals.gather(indices)[0]}


def open_pairs(name: str, split: str, *, image_size: int | None, center_crop: bool) -> PairSource:
    """Open the split of `pairs:PATH`; sources and targets become pictures of one shape.

    They are grey if all of them are. Captions are the texts.

    Raises:
      ValueError: there is no table or no such split, a line that is no edit (numbered), a bad
        picture (named), or sizes that differ while `image_size` is None. One line each.
    """
    root = paths.local("data.name", name.removeprefix(PAIRS))
    if not os.path.isdir(root):
        raise wrong("data.name", name, f"{PAIRS}PATH with PATH a folder")
    edits, parts = _edits(name, root)
    columns = list(zip(*edits, strict=True))
    left_out = _left_out(name, root, edits)
    held = [
        own.Pictures(
            keys=[os.path.relpath(path, root) for path in column],
            parts=parts,
            labels=None,
            class_names=None,
            captions=columns[1],
            encoded=_bytes_of(name, column),
            left_out=left_out,
        )
        for column in (columns[0], columns[2])
    ]
    options = {"image_size": image_size, "center_crop": center_crop}
    originals, targets = (own.source_of(name, split, one, **options) for one in held)
    channels = max(originals.image_shape[2], targets.image_shape[2])
    # A picture in colour of a grey one is an edit like any other.
    originals, targets = (
        one
        if one.image_shape[2] == channels
        else own.source_of(name, split, pictures, channels=channels, **options)
        for one, pictures in zip((originals, targets), held, strict=True)
    )
    if originals.image_shape != targets.image_shape:
        sizes = " and ".join("x".join(map(str, s.image_shape)) for s in (originals, targets))
        allowed = f"an int >= 1: sources and targets of {name!r} are {sizes}"
        raise wrong("data.image_size", image_size, allowed)
    return _joined(originals, targets)


def _joined(originals: ImageSource, targets: ImageSource) -> PairSource:
    """Put the targets and their sources beside each other."""

    def read(indices: list[int]):
        items = (targets[i] for i in indices)
        return [(item["image"], item["label"]) for item in items]

    source = PairSource(
        read,
        len(targets),
        name=targets.name,
        split=targets.split,
        image_shape=targets.image_shape,
        class_names=targets.class_names,
        fingerprint=f"{targets.fingerprint}|{originals.fingerprint}",
        captions=lambda: list(targets.captions),
        sizes=[*originals.sizes, *targets.sizes],
        left_out=targets.left_out,
    )
    source.originals = originals
    return source


def _edits(name: str, root: str) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Read `(source, text, target)` of all tables, and the part that each belongs to."""
    places = [root, *(os.path.join(root, split) for split in own.SPLITS)]
    whole, *parts = tables = [_table(name, place) for place in places]
    # Of tables in two places one would be read, and the other lost without a word.
    if whole is None and all(parts):
        each = [(split, _read(name, table)) for split, table in zip(own.SPLITS, parts, strict=True)]
        edits = [edit for _, some in each for edit in some]
        return edits, [split for split, some in each for _ in some]
    if whole is None or any(parts):
        held = listing.shown([os.path.relpath(table, root) for table in tables if table])
        allowed = f"a folder with {' or '.join(listing.TABLES)}, or train/ and test/ with one each"
        raise wrong("data.name", name, f"{allowed} (it holds {held})" if held else allowed)
    edits = _read(name, whole)
    return edits, _parts(edits, root)


def _table(name: str, folder: str) -> str | None:
    places = [os.path.join(folder, table) for table in listing.TABLES]
    held = [place for place in places if os.path.isfile(place)]
    if len(held) > 1:
        raise wrong("data.name", name, f"one table in a folder ({folder} holds both kinds)")
    return held[0] if held else None


def _left_out(name: str, root: str, edits: list[tuple[str, str, str]]) -> str:
    """Count, in words, what lies in the folder and is in no line."""
    counts: collections.Counter[str] = collections.Counter()
    files = map(os.path.normpath, listing.walk("data.name", name, root, counts))
    known = {path for source, _, target in edits for path in (source, target)}
    for path in files:
        if path in known or os.path.basename(path) in (*listing.TABLES, *own.BESIDE):
            continue
        if path.lower().endswith(folder.ENDINGS):
            counts["pictures that no line names"] += 1
        else:
            listing.count_ending(path, counts)
    return listing.line(counts)


def _read(name: str, path: str) -> list[tuple[str, str, str]]:
    """Read the lines of a table; raises ValueError with the number of the first bad one."""
    edits: dict[tuple[str, str, str], None] = {}
    try:
        for number, row in captioned.table_rows(path):
            edit = _edit(row, os.path.dirname(path), number)
            if edit in edits:
                raise ValueError(f"line {number} is there a second time")
            edits[edit] = None
        if not edits:
            raise ValueError("it has no line")
    except (OSError, ValueError, csv.Error) as error:
        why = reasons.of_file(path) or reason(error)
        allowed = f"lines with source, text and target in {path} ({why})"
        raise wrong("data.name", name, allowed) from None
    return list(edits)


def _edit(row: dict, folder: str, number: int) -> tuple[str, str, str]:
    values = []
    for field, names in _FIELDS.items():
        value = next((row[n] for n in names if row.get(n)), None)
        if not isinstance(value, str) or not value.strip():
            held = listing.shown([str(name) for name in row])
            raise ValueError(f"line {number} has no {field} (its fields: {held})")
        if "\0" in value:
            raise ValueError(f"line {number} holds zero bytes")
        if field != "text":
            value = os.path.normpath(os.path.join(folder, value))
            if not os.path.isfile(value):
                shown = os.path.relpath(value, folder)
                raise ValueError(f"line {number} names {shown}, which is not there")
        values.append(value.strip() if field == "text" else value)
    if values[1].count(IMAGE) > 1:
        raise ValueError(f"line {number} says {IMAGE} more than once")
    if not values[1].replace(IMAGE, "").strip():
        raise ValueError(f"line {number} has no text beside {IMAGE}")
    return tuple(values)


def _parts(edits: list[tuple[str, str, str]], root: str) -> list[str]:
    """Return the part of each edit.

    All edits of a picture are in one part: a test on a known source would flatter the model.
    """
    sources, _, targets = zip(*edits, strict=True)
    # Of a single source the edits themselves are held out.
    keys = [os.path.relpath(path, root) for path in (sources if len(set(sources)) > 1 else targets)]
    # By a hash and not by position: pictures that are added later move few of the others.
    order = sorted(set(keys), key=lambda key: hashlib.sha256(os.fsencode(f"0/{key}")).digest())
    count = max(1, round(own.HELD_OUT * len(order))) if len(order) > 1 else 0
    held_out = set(order[:count])
    return ["test" if key in held_out else "train" for key in keys]


def _bytes_of(name: str, files: tuple[str, ...]) -> Callable[[list[int]], list[bytes]]:
    def encoded(indices: list[int]) -> list[bytes]:
        data = []
        for i in indices:
            try:
                with open(files[i], "rb") as file:
                    data.append(file.read())
            except OSError as error:
                allowed = f"pictures that can be read ({files[i]}: {error.strerror})"
                raise wrong("data.name", name, allowed) from None
        return data

    return encoded
