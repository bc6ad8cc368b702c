"""Tensors of a PyTorch file: views of its bytes, read when an array is asked for.

A file says what it likes of storages, shapes and strides; what does not fit together is refused
before a number is read.
"""

import dataclasses
import math
import mmap
import pickle
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {
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
    "Untyped": np.uint8,
}
_FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
# A tensor may show a number many times up to this size; beyond, it is as large as its storage.
_BROADCAST = 2**20


@dataclasses.dataclass(frozen=True)
class StorageType:
    """Stands for a storage class such as `torch.FloatStorage`."""

    dtype: np.dtype

    def __setstate__(self, state):
        raise pickle.UnpicklingError("a type with state")


@dataclasses.dataclass
class Storage:
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

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype

    def __setstate__(self, state):
        raise pickle.UnpicklingError("a tensor with state")

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        size = self.dtype.itemsize
        # From the storage's place in the file: several tensors may be views of one storage.
        start = self.storage.start + self.offset * size
        count = 0 if 0 in self.shape else 1 + _reach(self.shape, self.strides)
        flat = np.frombuffer(self.storage.buffer, self.dtype, count, start)
        strides = tuple(s * size for s in self.strides)
        view = np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)
        # A copy: the view would keep the file mapped, and strided reads of it page by page are
        # slow.
        array = np.array(view, dtype or self.dtype, order="C")
        # What has been copied need not stay in memory a second time as pages of the file.
        if count:
            first = start - start % mmap.PAGESIZE
            self.storage.buffer.madvise(mmap.MADV_DONTNEED, first, start + count * size - first)
        return array


def _reach(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Index of the last element, from the first."""
    return sum((n - 1) * s for n, s in zip(shape, strides, strict=True))


def rebuild_tensor(storage, offset, size, stride, *unused) -> Tensor:
    """Return a tensor, a view of its storage.

    Raises:
      pickle.UnpicklingError: the view does not fit the storage.
    """
    del unused
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError("a tensor that is none")
    return _tensor(storage, offset, size, stride, storage.dtype)


def rebuild_tensor_of(storage, offset, size, stride, grad, hooks, dtype, *unused) -> Tensor:
    """Return a tensor whose storage says nothing of its numbers, such as float8."""
    del grad, hooks, unused
    name = getattr(dtype, "name", "")
    name = name.removeprefix("torch.") if isinstance(name, str) else ""
    if name not in _FLOAT8 or not isinstance(storage, Storage):
        raise pickle.UnpicklingError(f"a tensor of {name or 'an unknown type'}")
    return _tensor(storage, offset, size, stride, np.dtype(getattr(ml_dtypes, name)))


def _tensor(storage: Storage, offset, size, stride, dtype: np.dtype) -> Tensor:
    shape, strides = tuple(size), tuple(stride)
    whole = all(type(n) is int and n >= 0 for n in (offset, *shape, *strides))
    if not whole or len(shape) != len(strides):
        raise pickle.UnpicklingError("a tensor that is none")
    held = storage.count * storage.dtype.itemsize // dtype.itemsize
    # Strides may be anything in a hostile file: what counts is the last element that they reach.
    larger = 0 not in shape and offset + _reach(shape, strides) >= held
    if larger or math.prod(shape) > max(held, _BROADCAST):
        raise pickle.UnpicklingError("a tensor larger than its storage")
    return Tensor(storage, offset, shape, strides, dtype)


def rebuild_parameter(data, *unused):
    """Return the tensor of a parameter, which is all that is read of it."""
    del unused
    return data
