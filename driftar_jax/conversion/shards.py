"""Reads a folder of safetensors shards, one array at a time, without mapping or keeping a file.

A language model's weights are larger than the memory of most machines: names and shapes come from
the headers, and an array is read where it lies when it is asked for, so that nothing of a shard
stays behind.
"""

import math
import pathlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from driftar_jax.conversion import formats
from driftar_jax.storage import jsons

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
# No header of a real file comes near it: one of 10,000 arrays has about 1 MB.
_LONGEST_HEADER = 2**25


@dataclass(frozen=True)
class Stored:
    """An array of a shard, read when it is turned into a NumPy array.

    Attributes:
      shape, dtype: of the array.
    """

    file: pathlib.Path
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Count its bytes in the file."""
        return self.dtype.itemsize * math.prod(self.shape)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        count = math.prod(self.shape)
        with open(self.file, "rb") as file:
            file.seek(self.start)
            # Read and not mapped: pages of a mapped file would count as this process's memory until
            # all is done.
            flat = np.fromfile(file, self.dtype, count)
        if len(flat) != count:
            raise _bad(self.file, "it became shorter while it was read")
        array = flat.reshape(self.shape)
        return array if dtype in (None, array.dtype) else array.astype(dtype)


class Shards(Mapping):
    """Name -> `Stored` of all shards of a folder."""

    def __init__(self, folder: str | pathlib.Path):
        """Reads the index and every header.

        Args:
          folder: with `model.safetensors.index.json` and its shards, or with one
            `model.safetensors`.

        Raises:
          ValueError: no such file, a shard missing, truncated or damaged, or an index that names
            what is not there; one line that names the shard.
        """
        folder = pathlib.Path(folder)
        self._arrays: dict[str, Stored] = {}
        if not (folder / _INDEX).exists():
            if not (folder / _SINGLE).exists():
                meaning = formats.of_folder(folder)
                raise _bad(folder, meaning or f"no {_INDEX} and no {_SINGLE} in it")
            self._arrays = read_file(folder / _SINGLE)
            return
        held: dict[str, dict[str, Stored]] = {}
        for name, file in _index(folder / _INDEX).items():
            if file not in held:
                held[file] = read_file(folder / file)
            if name not in held[file]:
                raise _bad(folder / file, f"the index looks for {name[:80]} in it, which it lacks")
            self._arrays[name] = held[file][name]
        for file, arrays in held.items():
            for name in arrays:
                if name not in self._arrays:
                    raise _bad(
                        folder / file, f"it holds {name[:80]}, which the index does not name"
                    )

    def __getitem__(self, name: str) -> Stored:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def read_json(path: str | pathlib.Path) -> dict:
    """Read a JSON object of a checkpoint.

    Raises:
      ValueError: it is absent, damaged or of another kind; one line.
    """
    path = pathlib.Path(path)
    index = path.name.endswith(".index.json")
    if (meaning := None if index else formats.of_file(path, text=True)) is not None:
        raise _bad(path, meaning)
    return jsons.read_json("source", path, "a complete JSON file of the checkpoint")


def _index(path: pathlib.Path) -> dict[str, str]:
    names = read_json(path).get("weight_map")
    plain = isinstance(names, dict) and all(
        isinstance(f, str) and 0 < len(f) < 256 and f == pathlib.PurePath(f).name and "\0" not in f
        for f in names.values()
    )
    if not plain or not names:
        raise _bad(path, "no weight_map of names to files beside it")
    return names


def read_file(path: str | pathlib.Path) -> dict[str, Stored]:
    """Read what a safetensors file holds, once it is sure that all of it is there.

    Raises:
      ValueError: absent, truncated or damaged, or its arrays leave gaps or overlap; one line.
    """
    path = pathlib.Path(path)
    if (meaning := formats.of_file(path)) is not None:
        raise _bad(path, meaning)
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise _bad(path, "truncated or no safetensors file")
            # The length is the file's own claim; believed, eight bytes could ask for any amount of
            # memory.
            if length > _LONGEST_HEADER:
                raise _bad(path, f"a header of {length} bytes, more than any file has")
            text = file.read(length)
    except OSError as error:
        raise _bad(path, error.strerror) from None
    try:
        read = jsons.parse(text)
    except ValueError:
        raise _bad(path, "a damaged header") from None
    if not isinstance(read, dict):
        raise _bad(path, "a damaged header")
    notes = read.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(v, str) for v in notes.values()):
        raise _bad(path, "a damaged entry for __metadata__")
    begin = 8 + length
    arrays = {name: _entry(path, name, facts, begin) for name, facts in read.items()}
    _check_tiles(path, arrays, begin, size)
    return arrays


def _entry(path, name: str, facts, begin: int) -> Stored:
    kind = facts.get("dtype") if isinstance(facts, dict) else None
    if isinstance(kind, str) and kind not in _DTYPES:
        raise _bad(
            path, f"numbers of type {kind[:20]} in {name[:80]}, known are {', '.join(_DTYPES)}"
        )
    try:
        dtype = np.dtype(_DTYPES[kind])
        shape = tuple(facts["shape"])
        start, end = facts["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, start, end))
        if not whole or end - start != math.prod(shape) * dtype.itemsize:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise _bad(path, f"a damaged entry for {name[:80]}") from None
    return Stored(path, begin + start, shape, dtype)


def _check_tiles(path, arrays: Mapping[str, Stored], begin: int, size: int) -> None:
    """Refuse arrays that leave gaps, overlap, or end before or behind the file."""
    at = begin
    # Empty arrays share their start with the one behind them and must come before it.
    for name, stored in sorted(arrays.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if stored.start != at:
            raise _bad(path, f"a gap or an overlap before {name[:80]}")
        at += stored.nbytes
    if at > size:
        raise _bad(path, f"truncated: {at - size} bytes or more are missing")
    if at < size:
        raise _bad(path, f"{size - at} bytes that belong to no array")


def _bad(path, reason: str) -> ValueError:
    return ValueError(
        f"source: got {str(path)!r}, allowed a complete folder or file of safetensors ({reason})"
    )
