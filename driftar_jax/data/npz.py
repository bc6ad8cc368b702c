"""Arrays of an `.npz` whose headers are judged before anything is allocated for them."""

import math
import os
import zipfile
from collections.abc import Sequence

import numpy as np

# Room for the header of an array, and how much smaller than its numbers a member may be.
HEADER = 2**16
_PROPORTION = 16
_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read(path: str | os.PathLike, names: Sequence[str]) -> list[np.ndarray]:
    """Read arrays of numbers by name.

    Memory stays near their own size; nothing is unpickled.

    Raises:
      ValueError, OSError, KeyError, zipfile.BadZipFile and others: the file is damaged, or declares
        more than it holds.
    """
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        return [_member(archive, archive.getinfo(f"{name}.npy")) for name in names]


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    if info.file_size > _PROPORTION * info.compress_size + HEADER:
        raise ValueError(f"{info.filename} declares {info.file_size} bytes, out of proportion")
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version not in _READERS:
            raise ValueError(f"{info.filename} is of format {version}")
        shape, fortran, dtype = _READERS[version](member)
        if dtype.kind not in "fiub":
            raise ValueError(f"{info.filename} is of type {dtype}")
        size = dtype.itemsize * math.prod(shape)
        if not 0 <= size <= info.file_size:
            raise ValueError(f"{info.filename} declares {list(shape)}, more than it holds")
        raw = member.read(size)
    if len(raw) != size:
        raise ValueError(f"{info.filename} ends early")
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")
