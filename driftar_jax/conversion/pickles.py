"""Reads the pickles of PyTorch checkpoints without running anything that stands in them.

A pickle is a program. This reader lets it build dictionaries, lists, numbers, strings and tensors;
every other name becomes an `Inert` object that is never called, or, where only an attack asks for
it, has the file refused. Nothing is built that is out of proportion to the file.
"""

import collections
import dataclasses
import pickle
from typing import Any

import numpy as np

from driftar_jax.conversion import tensors

# Limits of the program in a file: its bytes and its instructions. A checkpoint of 800 arrays with
# the state of its optimizer has about 0.5 MB and 150,000.
_LONGEST, _MOST_STEPS = 2**25, 2**21
# Modules that nothing of a checkpoint comes from, and that attacks on its reader do.
_ATTACKS = """
    _io _pickle _posixsubprocess _socket __builtin__ asyncio bdb builtins cloudpickle ctypes dill
    ftplib http importlib inspect joblib marshal multiprocessing nt operator os pdb pickle pip
    pkgutil platform posix posixpath pty pydoc runpy shelve shutil signal smtplib socket ssl
    subprocess sys tempfile timeit torch.hub torch.jit torch.serialization
    torch.utils.cpp_extension types urllib webbrowser xmlrpc zipimport
""".split()
# Honest files name these too. They are not called either, but they are no reason to refuse a file.
_HARMLESS = """
    bool bytearray bytes complex dict float frozenset int list object range set slice str tuple type
""".split()
_HARMLESS_NAMES = {(m, n) for m in ("builtins", "__builtin__") for n in _HARMLESS}
_HARMLESS_NAMES |= {("types", "SimpleNamespace"), ("types", "NoneType")}


class Namespace(dict):
    """An `argparse.Namespace` of the file, as a dictionary that does nothing."""

    def __setstate__(self, state):
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a Namespace without a dictionary")
        self.update(state)


class Inert:
    """Stands for an object or a function of the file that is not needed; does nothing at all.

    Attributes:
      name: of the class or function, with its module.
      arguments: what it would have been called with, None for the name alone.
    """

    def __init__(self, name: str, arguments: tuple | None = None):
        self.name, self.arguments = name, arguments

    def __repr__(self):
        return f"<{self.name}>"

    def __setstate__(self, state):
        """Nothing: the state is the file's, and nobody asks for it."""

    def __setitem__(self, key, value):
        """Nothing, as for items of a dictionary's kind."""

    def extend(self, values):
        """Do nothing, as for items of a list's kind."""

    append = add = update = extend


@dataclasses.dataclass(frozen=True)
class _Callable:
    """The only things a file may call; immutable, so that it cannot bend them either."""

    function: Any

    def __call__(self, *args):
        return self.function(*args)

    def __setstate__(self, state):
        raise pickle.UnpicklingError("a function with state")


def _dictionary(*unused) -> dict:
    """A `defaultdict`, whose default is the file's; its items come after it."""
    del unused
    return {}


ALLOWED = {
    ("collections", "OrderedDict"): _Callable(collections.OrderedDict),
    ("collections", "defaultdict"): _Callable(_dictionary),
    ("torch._utils", "_rebuild_tensor"): _Callable(tensors.rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Callable(tensors.rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): _Callable(tensors.rebuild_tensor_of),
    ("torch._utils", "_rebuild_parameter"): _Callable(tensors.rebuild_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Callable(tensors.rebuild_parameter),
    ("torch", "Size"): _Callable(tuple),
    ("argparse", "Namespace"): Namespace,
    **{
        (module, f"{name}Storage"): tensors.StorageType(np.dtype(dtype))
        for name, dtype in tensors.DTYPES.items()
        for module in ("torch", "torch.storage")
    },
}


def _attacks(module: str, name: str) -> bool:
    """Whether a name is of those that only an attack asks for. Others are not called either."""
    if (module, name) in _HARMLESS_NAMES:
        return False
    parts = module.split(".")
    around = {".".join(parts[: i + 1]) for i in range(len(parts))}
    # A dotted name walks from an allowed module to whatever it imports: `collections` to `os`, say.
    part_of_allowed = "." in name and any(module == known for known, _ in ALLOWED)
    return part_of_allowed or not around.isdisjoint(_ATTACKS) or (module, name) == ("torch", "load")


class Program:
    """Read the bytes of a pickle forwards from a buffer, and no more of them than is sensible."""

    def __init__(self, buffer, start: int, end: int):
        self._buffer, self.at, self._end = buffer, start, end
        self._left, self._steps = _LONGEST, _MOST_STEPS

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes, or fewer where the file ends."""
        # A file may claim any length; no more is read than there is.
        return self._take(min(count, self._end - self.at))

    def readline(self) -> bytes:
        """Return the bytes up to and with the next newline, or to the end."""
        newline = self._buffer.find(b"\n", self.at, self._end)
        return self._take((newline + 1 if newline >= 0 else self._end) - self.at)

    def _take(self, count: int) -> bytes:
        self._left -= count
        self._steps -= count == 1  # every instruction begins with a byte of its own
        if self._left < 0 or self._steps < 0:
            raise pickle.UnpicklingError("more beside the tensors than a checkpoint can have")
        # Bytes and not a view: strings and numbers of the pickle outlive the mapping.
        data = self._buffer[self.at : self.at + count]
        self.at += count
        return data


# The C unpickler keeps its memo in an array: a file of nine bytes could have it take 32 GiB.
class Reader(pickle._Unpickler):
    """Unpickler of an allow-list. `storages` collects what the persistent ids name."""

    # A copy: what is changed below is changed for this class alone.
    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, stream, buffer):
        super().__init__(stream, encoding="utf-8")
        self._buffer = buffer
        self.storages: dict[str, tensors.Storage] = {}

    def find_class(self, module: str, name: str):
        """Return what stands for a class of the pickle; `Inert` for those that are not known.

        Raises:
          Refused: the name of something that could run code.
        """
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        if _attacks(module, name):
            raise Refused(f"{module}.{name}")
        # Unknown but not suspicious: optimizers and configs of trainers pickle classes of their own
        # beside the weights, and nobody wants to lose the weights for them.
        return Inert(f"{module}.{name}")

    def persistent_load(self, pid):
        """Return the storage that a reference names, the same for the same key.

        Raises:
          pickle.UnpicklingError: no reference to a storage, or one that contradicts an earlier one.
        """
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise pickle.UnpicklingError("an unknown kind of reference")
        _, kind, key, _, count = pid[:5]
        if not isinstance(kind, tensors.StorageType) or not isinstance(key, str):
            raise pickle.UnpicklingError("an unknown kind of storage")
        # A bool is an int by `isinstance`, and no size.
        if type(count) is not int or count < 0 or (len(pid) > 5 and pid[5] is not None):
            raise pickle.UnpicklingError("a storage of an unknown size or a view of another")
        # Several tensors may share a storage (tied weights); they must agree on what it is.
        known = self.storages.setdefault(key, tensors.Storage(kind.dtype, count, self._buffer))
        if (known.dtype, known.count) != (kind.dtype, count):
            raise pickle.UnpicklingError("one storage of two types")
        return known

    def _make(self, named, arguments) -> Any:
        """What a call of the file becomes."""
        if isinstance(named, Inert):
            return Inert(named.name, arguments if isinstance(arguments, tuple) else ())
        if isinstance(named, _Callable):
            return named(*arguments)
        # Without its arguments: what it holds comes as a state, which is looked at.
        if named is Namespace:
            return Namespace()
        raise pickle.UnpicklingError(f"a call of a {type(named).__name__}")

    def _reduce(self):
        arguments = self.stack.pop()
        self.stack[-1] = self._make(self.stack[-1], arguments)

    # Arguments by name are dropped: nothing that may be called here takes any.
    def _new_with_names(self):
        self.stack.pop()
        self._reduce()

    # The two ways of the oldest protocols to make an object: pickle's own would call a class
    # itself.
    def _instance(self):
        module, name = (self.readline()[:-1].decode("ascii") for _ in range(2))
        self.append(self._make(self.find_class(module, name), tuple(self.pop_mark())))

    def _object(self):
        named, *arguments = self.pop_mark()
        self.append(self._make(named, tuple(arguments)))

    def _set(self):
        self.append(Inert("builtins.set", ()))

    def _frozen_set(self):
        self.append(Inert("builtins.frozenset", tuple(self.pop_mark())))

    def _build(self):
        # Pickle's own way would call `__setstate__` of anything, or write into its attributes.
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, Inert):
            # What is built here has no state but that of a Namespace or an ordered dictionary.
            if isinstance(target, Namespace):
                target.__setstate__(state)
            elif not isinstance(target, dict):
                raise pickle.UnpicklingError(f"a {type(target).__name__} with state")

    def _frame(self):
        self.read(8)  # frames only say how to read ahead

    dispatch[pickle.FRAME[0]] = _frame
    dispatch[pickle.REDUCE[0]] = dispatch[pickle.NEWOBJ[0]] = _reduce
    dispatch[pickle.NEWOBJ_EX[0]] = _new_with_names
    dispatch[pickle.INST[0]] = _instance
    dispatch[pickle.OBJ[0]] = _object
    dispatch[pickle.EMPTY_SET[0]] = _set
    dispatch[pickle.FROZENSET[0]] = _frozen_set
    dispatch[pickle.BUILD[0]] = _build
    # Nothing that torch.save writes has them: numbers for names, and buffers made before they are
    # read.
    for _code in (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.BYTEARRAY8):
        del dispatch[_code[0]]


class Refused(Exception):
    """A name outside the allow-list."""
