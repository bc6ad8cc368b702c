"""Prepared TFDS sets in the format TFRecord, the default of TFDS, read without tensorflow.

A file is `u64 length, u32 check of it, the record, u32 check of that`, over and over. Where a
record starts is found once per file; then records are read at random. Lengths and records are held
against their checks: a flipped label would pass as another class.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np

from driftar_jax.config import wrong

FORMAT = "tfrecord"
_HEAD, _TAIL = 12, 4
_MASK = 0xA282EAD8


def masked_check(data: bytes) -> int:
    """Compute the check that TFRecord keeps of `data`: its CRC-32C, rotated and shifted."""
    value = google_crc32c.value(data)
    return ((value >> 15 | value << 17) + _MASK) & 0xFFFFFFFF


def starts(path: str, count: int) -> np.ndarray:
    """Find where the records of a file start, and its end: int64 `[count + 1]`.

    Raises:
      ValueError: the lengths in the file do not fit their checks, its size or `count`.
    """
    size, at, offsets = os.path.getsize(path), 0, []
    with open(path, "rb") as file:
        while at < size:
            file.seek(at)
            head = file.read(_HEAD)
            length = int.from_bytes(head[:8], "little")
            if len(head) < _HEAD or masked_check(head[:8]) != int.from_bytes(head[8:], "little"):
                raise ValueError(f"{path}: no record at byte {at}")
            offsets.append(at)
            at += _HEAD + length + _TAIL
    if at != size or len(offsets) != count:
        raise ValueError(f"{path}: {len(offsets)} whole records, {count} in dataset_info.json")
    return np.asarray([*offsets, size], np.int64)


class Records:
    """Give the records of a split as `as_data_source` does: `len`, `[i]`, `__getitems__`.

    Reading raises OSError or ValueError where a file is gone or damaged.
    """

    def __init__(self, info, split: str, decoders: Mapping[str, Any]):
        """Of `tfds.core.DatasetInfo`; `split` may be a part, `train[:10%]`; raises ValueError."""
        self._decoders = dict(decoders)
        self._parse = info.features.deserialize_example_np
        instructions = info.splits[split].file_instructions
        self._files = [(i.filename, i.skip, i.examples_in_shard) for i in instructions]
        self._ends = np.cumsum([i.take for i in instructions])
        self._starts = functools.cache(starts)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, i: int) -> dict:
        number = int(np.searchsorted(self._ends, i, side="right"))
        path, skip, count = self._files[number]
        first = int(self._ends[number - 1]) if number else 0
        places = self._starts(path, count)
        start, end = places[skip + i - first : skip + i - first + 2].tolist()
        with open(path, "rb") as file:
            file.seek(start + _HEAD)
            data = file.read(end - start - _HEAD - _TAIL)
            tail = file.read(_TAIL)
        if masked_check(data) != int.from_bytes(tail, "little"):
            allowed = f"records that fit their checks ({skip + i - first} does not)"
            raise wrong("data.name", path, allowed)
        return self._parse(data, decoders=self._decoders)

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        return [self[i] for i in indices]
