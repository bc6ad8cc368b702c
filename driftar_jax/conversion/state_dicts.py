"""Reads PyTorch checkpoints without PyTorch: the files around the pickles, and their arrays.

Formats: zip files (`torch.save` since 1.6) and the older stream of pickles. Tensors are views of
the mapped file: nothing is read until an array is asked for.
"""

import dataclasses
import math
import mmap
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

from driftar_jax.conversion import formats, shards
from driftar_jax.conversion.pickles import Program, Reader, Refused
from driftar_jax.conversion.tensors import Tensor

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
# Most bytes of a zip file's directory; a checkpoint of 800 arrays has about 0.3 MB.
_DIRECTORY = 2**23


def load(path: str | pathlib.Path) -> Any:
    """Read the object in a `.pth`, `.pt` or `.ckpt` file; its tensors are `Tensor`.

    Args:
      path: the file.

    Returns:
      Dictionaries, lists, numbers, strings, `Namespace`, `Inert` and `Tensor`, nested as in the
      file.

    Raises:
      ValueError: truncated, damaged or of another kind, or it names something that is not allowed;
        one line, and nothing of the file has been run; or it cannot be opened.
    """
    if (meaning := formats.of_file(pathlib.Path(path))) is not None:
        raise _bad(path, meaning)
    with _open(path) as file:
        try:
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise _bad(path, "an empty file") from None
        except OSError:
            raise _bad(path, "no regular file") from None
        try:
            if buffer[:4] == b"PK\x03\x04":
                return _load_zip(file, buffer)
            return _load_stream(buffer)
        except Refused as refused:
            raise ValueError(
                f"source: got {str(path)!r}, which asks for {refused} to be called, allowed "
                "checkpoints of tensors, numbers and strings"
            ) from None
        # A damaged pickle or zip can raise nearly anything, and each means the same to a user.
        except Exception as error:
            told = isinstance(error, pickle.UnpicklingError | zipfile.BadZipFile)
            reason = (
                " ".join(str(error).split()) if told else "no file of torch.save, or a damaged one"
            )
            raise _bad(path, formats.of_name(pathlib.Path(path)) or reason) from None


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
    _check_directory(buffer)
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
    members = {info.filename: info for info in infos}
    # Two members of one name: readers disagree on which of them counts, and one could be checked
    # while the other is read.
    if len(members) != len(infos):
        raise pickle.UnpicklingError("a member that stands there twice")
    for info in infos:
        # Stored members can be mapped where they lie; a compressed one could also unpack to any
        # size.
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise pickle.UnpicklingError(f"{info.filename[-80:]} is compressed, which no member is")
    if sum(info.file_size for info in infos) > len(buffer):
        raise pickle.UnpicklingError("members larger than the file")
    roots = [name for name in members if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(roots) != 1:
        raise pickle.UnpicklingError("a zip file that is no checkpoint")
    folder = roots[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in members:
        raise pickle.UnpicklingError("a TorchScript program: give the state dict it was made of")
    if f"{folder}byteorder" in members:
        start, size = _place(buffer, members[f"{folder}byteorder"])
        if buffer[start : start + min(size, 16)] != b"little":
            raise pickle.UnpicklingError("big-endian numbers")
    start, size = _place(buffer, members[roots[0]])
    reader = Reader(Program(buffer, start, start + size), buffer)
    tree = reader.load()
    for key, storage in reader.storages.items():
        info = members.get(f"{folder}data/{key}")
        size = storage.count * storage.dtype.itemsize
        if info is None or info.file_size < size:
            raise pickle.UnpicklingError(f"storage {key[:40]} is missing or short")
        # Only now is it known where the numbers lie; no tensor was read before.
        storage.start, _ = _place(buffer, info)
    return tree


def _check_directory(buffer) -> None:
    """Refuse a directory out of proportion: `zipfile` makes an object of each of its entries."""
    end = buffer.rfind(b"PK\5\6", max(0, len(buffer) - 2**16 - 22))
    if end < 0 or end + 22 > len(buffer):
        raise pickle.UnpicklingError("a zip file without its end: truncated")
    (size,) = struct.unpack_from("<I", buffer, end + 12)
    if buffer[max(0, end - 20) : end - 16] == b"PK\6\7":
        (place,) = struct.unpack_from("<Q", buffer, end - 12)
        if buffer[place : place + 4] == b"PK\6\6" and place + 56 <= len(buffer):
            (size,) = struct.unpack_from("<Q", buffer, place + 40)
    if size > _DIRECTORY:
        raise pickle.UnpicklingError(f"a directory of {size} bytes")


def _place(buffer, info: zipfile.ZipInfo) -> tuple[int, int]:
    """Where a member's bytes begin, and how many they are.

    The local header repeats the lengths of name and extra, and may differ.
    """
    name, extra = struct.unpack_from("<HH", buffer, info.header_offset + 26)
    start = info.header_offset + 30 + name + extra
    if start + info.file_size > len(buffer):
        raise pickle.UnpicklingError("truncated")
    return start, info.file_size


def _load_stream(buffer) -> Any:
    """Magic number, protocol, facts of the machine, the object, storage keys, then the numbers."""
    program = Program(buffer, 0, len(buffer))

    def plain():
        return Reader(program, buffer).load()

    if plain() != _MAGIC or plain() != _PROTOCOL:
        raise pickle.UnpicklingError("no checkpoint")
    facts = plain()
    if not isinstance(facts, dict) or not facts.get("little_endian", False):
        raise pickle.UnpicklingError("big-endian numbers")
    reader = Reader(program, buffer)
    tree = reader.load()
    keys = plain()
    if not isinstance(keys, list) or set(keys) != set(reader.storages):
        raise pickle.UnpicklingError("storages that do not match the tensors")
    position = program.at
    for key in keys:
        storage = reader.storages[key]
        (count,) = struct.unpack_from("<q", buffer, position)
        storage.start = position + 8
        position = storage.start + count * storage.dtype.itemsize
        if count != storage.count or position > len(buffer):
            raise pickle.UnpicklingError("truncated")
    return tree


@dataclasses.dataclass(frozen=True)
class State:
    """Hold the named arrays of a file.

    Attributes:
      arrays: name -> what is read when it is turned into a NumPy array; has `shape` and `dtype`.
      weights: the copy they are of, "" where the file holds one alone.
    """

    arrays: dict[str, Any]
    weights: str


def read_state_dict(path: str | pathlib.Path, weights: str | None, default: str = "") -> State:
    """Open the named arrays of an official checkpoint, each read when it is asked for.

    Args:
      path: `.safetensors`, or a PyTorch file of arrays or of `{"model": arrays, ...}`.
      weights: which copy of a file that holds several, such as `model_ema`; None for `default`, or
        the only one that the file holds.
      default: the copy that is meant where none is named.

    Raises:
      ValueError: the file is absent, damaged, refused, or holds no such copy; one line.
    """
    path = pathlib.Path(path)
    if formats.is_safetensors(path) and formats.of_file(path) is None:
        return State(shards.read_file(path), "")
    tree = load(path)
    if not isinstance(tree, Mapping):
        raise _bad(path, f"it holds a {type(tree).__name__}, not named arrays")
    copies = {str(k): v for k, v in tree.items() if isinstance(v, Mapping) and _tensors(v)}
    copy_name = weights if weights is not None else default
    if copy_name in copies:
        chosen = copy_name
    elif tensors := _tensors(tree):
        return State(_in_proportion(path, tensors), "")
    elif weights is None and len(copies) == 1:
        chosen = next(iter(copies))
    else:
        allowed = " | ".join(copies) or f"none (it holds {_kinds(tree)})"
        raise ValueError(f"weights: got {copy_name!r}, allowed {allowed}")
    return State(_in_proportion(path, _tensors(copies[chosen])), chosen)


def _tensors(tree: Mapping) -> dict[str, Tensor]:
    return {str(name): value for name, value in tree.items() if isinstance(value, Tensor)}


def _kinds(tree: Mapping) -> str:
    """What lies at the top of a file without arrays, for its owner to recognise."""
    kinds = [f"{str(name)[:40]}: {type(value).__name__}" for name, value in list(tree.items())[:4]]
    return ", ".join(kinds) or "nothing"


def _in_proportion(path: pathlib.Path, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """The arrays; ValueError where they share numbers to become far larger than their file."""
    size = sum(a.dtype.itemsize * math.prod(a.shape) for a in arrays.values())
    if size > 2 * path.stat().st_size + 2**24:
        raise _bad(path, f"arrays of {size} bytes in all, more than twice the file")
    return arrays


def shapes(arrays: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return name -> shape, without reading an array."""
    return {name: tuple(array.shape) for name, array in arrays.items()}
