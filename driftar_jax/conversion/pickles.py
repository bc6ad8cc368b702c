"""Reads PyTorch checkpoints without PyTorch and without running anything that stands in them.

A pickle is a program. This reader lets it build dictionaries, lists, numbers, strings and tensors
and refuses every other name, so an untrusted file can at worst be rejected. Tensors are views of
the mapped file: nothing is read until an array is asked for.

Formats: zip files (`torch.save` since 1.6) and the older stream of pickles.
"""

import collections
import dataclasses
import mmap
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001

_DTYPES = {
    "Double": np.float64,
    "Float": np.float32,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
}


class Namespace(dict):
    """An `argparse.Namespace` of the file, as a dictionary that does nothing."""

    def __setstate__(self, state):
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a Namespace without a dictionary")
        self.update(state)


@dataclasses.dataclass(frozen=True)
class _StorageType:
    """Stands for a storage class such as `torch.FloatStorage`."""

    dtype: np.dtype

    def __setstate__(self, state):
        raise pickle.UnpicklingError("a type with state")


@dataclasses.dataclass(frozen=True)
class _Callable:
    """The only things a file may call; immutable, so that it cannot bend them either."""

    function: Any

    def __call__(self, *args):
        return self.function(*args)

    def __setstate__(self, state):
        raise pickle.UnpicklingError("a function with state")


@dataclasses.dataclass
class _Storage:
    """A run of numbers in the file; `start` is filled in once it is known where they lie."""

    dtype: np.dtype
    count: int
    buffer: Any
    start: int | None = None

    def __setstate__(self, state):
        raise pickle.UnpicklingError("a storage with state")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An array in a file, read when it is turned into a NumPy array.

    Attributes:
      shape, dtype: of the array.
    """

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __setstate__(self, state):
        raise pickle.UnpicklingError("a tensor with state")

    @property
    def dtype(self) -> np.dtype:
        return self.storage.dtype

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        size = self.storage.dtype.itemsize
        start = self.storage.start + self.offset * size
        count = 0 if 0 in self.shape else 1 + _reach(self.shape, self.strides)
        flat = np.frombuffer(self.storage.buffer, self.storage.dtype, count, start)
        strides = tuple(s * size for s in self.strides)
        view = np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)
        array = np.array(view, dtype or self.dtype, order="C")
        # What has been copied need not stay in memory a second time as pages of the file.
        if count:
            first = start - start % mmap.PAGESIZE
            self.storage.buffer.madvise(mmap.MADV_DONTNEED, first, start + count * size - first)
        return array


def _reach(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Index of the last element, from the first."""
    return sum((n - 1) * s for n, s in zip(shape, strides, strict=True))


def _rebuild_tensor(storage, offset, size, stride, *unused) -> Tensor:
    del unused
    shape, strides = tuple(size), tuple(stride)
    whole = all(isinstance(n, int) and n >= 0 for n in (offset, *shape, *strides))
    if not isinstance(storage, _Storage) or not whole or len(shape) != len(strides):
        raise pickle.UnpicklingError("a tensor that is none")
    if 0 not in shape and offset + _reach(shape, strides) >= storage.count:
        raise pickle.UnpicklingError("a tensor larger than its storage")
    return Tensor(storage, offset, shape, strides)


def _rebuild_parameter(data, *unused):
    del unused
    return data


_ALLOWED = {
    ("collections", "OrderedDict"): _Callable(collections.OrderedDict),
    ("torch._utils", "_rebuild_tensor_v2"): _Callable(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): _Callable(_rebuild_parameter),
    ("torch", "Size"): _Callable(tuple),
    ("argparse", "Namespace"): Namespace,
    **{
        ("torch", f"{name}Storage"): _StorageType(np.dtype(dtype))
        for name, dtype in _DTYPES.items()
    },
}


# The C unpickler keeps its memo in an array: a file of nine bytes could have it take 32 GiB.
class _Reader(pickle._Unpickler):
    """Unpickler of an allow-list. `storages` collects what the persistent ids name."""

    def __init__(self, stream, buffer):
        super().__init__(stream, encoding="utf-8")
        self._buffer = buffer
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str):
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, pid):
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise pickle.UnpicklingError("an unknown kind of reference")
        _, kind, key, _, count = pid[:5]
        if not isinstance(kind, _StorageType) or not isinstance(key, str):
            raise pickle.UnpicklingError("an unknown kind of storage")
        if not isinstance(count, int) or count < 0 or (len(pid) > 5 and pid[5] is not None):
            raise pickle.UnpicklingError("a storage of an unknown size or a view of another")
        known = self.storages.setdefault(key, _Storage(kind.dtype, count, self._buffer))
        if (known.dtype, known.count) != (kind.dtype, count):
            raise pickle.UnpicklingError("one storage of two types")
        return known


class _Refused(Exception):
    """A name outside the allow-list."""


def load(path: str | pathlib.Path) -> Any:
    """The object in a `.pth`, `.pt` or `.ckpt` file; its tensors are `Tensor`.

    Args:
      path: the file.

    Returns:
      Dictionaries, lists, numbers, strings, `Namespace` and `Tensor`, nested as in the file.

    Raises:
      ValueError: truncated, damaged or of another kind, or it names something that is not allowed;
        one line, and nothing of the file has been run; or it cannot be opened.
    """
    with _open(path) as file:
        try:
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise _bad(path, "an empty file") from None
        try:
            if zipfile.is_zipfile(file):
                return _load_zip(file, buffer)
            if buffer[:4] == b"PK\x03\x04":
                raise pickle.UnpicklingError("a zip file without its end: truncated")
            file.seek(0)
            return _load_stream(file, buffer)
        except _Refused as refused:
            raise ValueError(
                f"source: got {str(path)!r}, which asks for {refused} to be called, allowed "
                "checkpoints of tensors, numbers and strings"
            ) from None
        # A damaged pickle or zip can raise nearly anything, and each means the same to a user.
        except Exception as error:
            raise _bad(path, " ".join(str(error).split()) or type(error).__name__) from None


def _open(path):
    try:
        return open(path, "rb")
    except OSError as error:
        raise _bad(path, error.strerror) from None


def _bad(path, reason: str) -> ValueError:
    return ValueError(
        f"source: got {str(path)!r}, allowed a complete PyTorch or safetensors file "
        f"({reason[:200]})"
    )


def _load_zip(file, buffer) -> Any:
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        roots = [name for name in members if name.endswith("/data.pkl") or name == "data.pkl"]
        if len(roots) != 1:
            raise pickle.UnpicklingError("a zip file that is no checkpoint")
        folder = roots[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") != b"little":
            raise pickle.UnpicklingError("big-endian numbers")
        with archive.open(roots[0]) as stream:
            reader = _Reader(stream, buffer)
            tree = reader.load()
        for key, storage in reader.storages.items():
            info = members.get(f"{folder}data/{key}")
            size = storage.count * storage.dtype.itemsize
            if info is None or info.file_size < size:
                raise pickle.UnpicklingError(f"storage {key} is missing or short")
            if info.compress_type != zipfile.ZIP_STORED:
                raise pickle.UnpicklingError(f"storage {key} is compressed")
            storage.start = _member_start(buffer, info.header_offset)
            if storage.start + size > len(buffer):
                raise pickle.UnpicklingError("truncated")
        return tree


def _member_start(buffer, header: int) -> int:
    """Where a member's bytes begin: the local header repeats the lengths and may differ."""
    name, extra = struct.unpack_from("<HH", buffer, header + 26)
    return header + 30 + name + extra


def _load_stream(file, buffer) -> Any:
    """Magic number, protocol, facts of the machine, the object, storage keys, then the numbers."""

    def plain():
        return _Reader(file, buffer).load()

    if plain() != _MAGIC or plain() != _PROTOCOL:
        raise pickle.UnpicklingError("no checkpoint")
    facts = plain()
    if not isinstance(facts, dict) or not facts.get("little_endian", False):
        raise pickle.UnpicklingError("big-endian numbers")
    reader = _Reader(file, buffer)
    tree = reader.load()
    keys = plain()
    if not isinstance(keys, list) or set(keys) != set(reader.storages):
        raise pickle.UnpicklingError("storages that do not match the tensors")
    position = file.tell()
    for key in keys:
        storage = reader.storages[key]
        (count,) = struct.unpack_from("<q", buffer, position)
        storage.start = position + 8
        position = storage.start + count * storage.dtype.itemsize
        if count != storage.count or position > len(buffer):
            raise pickle.UnpicklingError("truncated")
    return tree


class _Safetensors(Mapping):
    """A safetensors file as a mapping of name to lazily read array."""

    def __init__(self, path: str | pathlib.Path):
        from safetensors import SafetensorError, safe_open

        try:
            self._file = safe_open(path, framework="numpy")
        except (SafetensorError, OSError) as error:
            raise _bad(path, " ".join(str(error).split())) from None
        self._names = list(self._file.keys())

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array, from the header alone."""
        return tuple(self._file.get_slice(name).get_shape())


def read_state_dict(path: str | pathlib.Path, weights: str) -> Mapping[str, Any]:
    """The named arrays of an official checkpoint, each read when it is asked for.

    Args:
      path: `.safetensors`, or a PyTorch file of arrays or of `{"model": arrays, ...}`.
      weights: which copy of a file that holds several, such as `model_ema`.

    Returns:
      name -> array-like.

    Raises:
      ValueError: the file is absent, damaged, refused, or holds no such copy; one line.
    """
    if pathlib.Path(path).suffix == ".safetensors":
        return _Safetensors(path)
    tree = load(path)
    if not isinstance(tree, Mapping):
        raise _bad(path, f"it holds a {type(tree).__name__}, not named arrays")
    if tree and all(isinstance(value, Tensor) for value in tree.values()):
        return tree
    held = [k for k, v in tree.items() if isinstance(v, Mapping) and _some_tensors(v)]
    if weights not in held:
        raise ValueError(
            f"weights: got {weights!r}, allowed {' | '.join(map(str, held)) or 'none'}"
        )
    return {name: value for name, value in tree[weights].items() if isinstance(value, Tensor)}


def _some_tensors(tree: Mapping) -> bool:
    return any(isinstance(value, Tensor) for value in tree.values())


def shapes(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """name -> shape, without reading an array."""
    if isinstance(state, _Safetensors):
        return {name: state.shape(name) for name in state}
    return {name: tuple(array.shape) for name, array in state.items()}
