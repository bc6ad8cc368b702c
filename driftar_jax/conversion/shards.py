"""Reads a folder of safetensors shards, one array at a time, without mapping or keeping a file.

A language model's weights are larger than the memory of most machines: names and shapes come from
the headers, and an array is read where it lies when it is asked for, so that nothing of a shard
stays behind.
"""

import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}
# No header of a real file comes near it.
_LONGEST_HEADER = 100 * 2**20


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

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        count = math.prod(self.shape)
        with open(self.file, "rb") as file:
            file.seek(self.start)
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
                raise _bad(folder, f"no {_INDEX} and no {_SINGLE} in it")
            self._arrays = _header(folder / _SINGLE)
            return
        held: dict[str, dict[str, Stored]] = {}
        for name, file in _index(folder / _INDEX).items():
            if file not in held:
                held[file] = _header(folder / file)
            if name not in held[file]:
                raise _bad(folder / file, f"the index looks for {name} in it, which it lacks")
            self._arrays[name] = held[file][name]
        for file, arrays in held.items():
            for name in arrays:
                if name not in self._arrays:
                    raise _bad(folder / file, f"it holds {name}, which the index does not name")

    def __getitem__(self, name: str) -> Stored:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def read_json(path: str | pathlib.Path) -> dict:
    """A JSON object of a checkpoint.

    Raises:
      ValueError: it is absent, damaged or of another kind; one line.
    """
    try:
        read = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise _bad(path, error.strerror) from None
    except ValueError as error:
        raise _bad(path, f"no JSON: {error}") from None
    if not isinstance(read, dict):
        raise _bad(path, "no JSON object")
    return read


def _index(path: pathlib.Path) -> dict[str, str]:
    names = read_json(path).get("weight_map")
    plain = isinstance(names, dict) and all(
        isinstance(f, str) and f == pathlib.PurePath(f).name for f in names.values()
    )
    if not plain or not names:
        raise _bad(path, "no weight_map of names to files beside it")
    return names


def _header(path: pathlib.Path) -> dict[str, Stored]:
    """What a safetensors file holds, once it is sure that all of it is there."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _LONGEST_HEADER):
                raise _bad(path, "truncated or no safetensors file")
            read = json.loads(file.read(length))
    except OSError as error:
        raise _bad(path, error.strerror) from None
    except ValueError as error:
        if str(error).startswith("source: got"):
            raise
        raise _bad(path, "a damaged header") from None
    if not isinstance(read, dict):
        raise _bad(path, "a damaged header")
    return {
        name: _entry(path, name, facts, 8 + length, size)
        for name, facts in read.items()
        if name != "__metadata__"
    }


def _entry(path, name: str, facts, begin: int, size: int) -> Stored:
    try:
        dtype = np.dtype(_DTYPES[facts["dtype"]])
        shape = tuple(facts["shape"])
        start, end = facts["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, start, end))
        if not whole or end - start != math.prod(shape) * dtype.itemsize:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise _bad(path, f"a damaged entry for {name}") from None
    if begin + end > size:
        raise _bad(path, f"truncated: {begin + end - size} bytes of {name} or more are missing")
    return Stored(path, begin + start, shape, dtype)


def _bad(path, reason: str) -> ValueError:
    return ValueError(
        f"source: got {str(path)!r}, allowed a complete folder of safetensors shards ({reason})"
    )
