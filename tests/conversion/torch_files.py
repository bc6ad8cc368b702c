"""Writes PyTorch files by hand, of both formats, without PyTorch."""

import io
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C


class Stub:
    """Pickles as a call of a global of another module, which need not exist here."""

    def __init__(self, module, name, *args):
        self.module, self.name, self.args = module, name, args


class Global:
    def __init__(self, module, name):
        self.module, self.name = module, name


class Built:
    """Pickles as an object made without arguments and then given a state."""

    def __init__(self, module, name, state):
        self.module, self.name, self.state = module, name, state


class StorageRef:
    def __init__(self, kind, key, count, view=()):
        self.pid = ("storage", Global("torch", f"{kind}Storage"), key, "cpu", count, *view)


class _Writer(pickle._Pickler):
    """Writes what `torch.save` writes, for the few kinds of objects above."""

    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, StorageRef) else None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Stub):
            self.save(Global(obj.module, obj.name))
            self.save(obj.args)
            self.write(pickle.REDUCE)
        elif isinstance(obj, Built):
            self.save(Global(obj.module, obj.name))
            self.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
            self.save(obj.state)
            self.write(pickle.BUILD)
        else:
            super().save(obj, save_persistent_id)


KINDS = {
    "Float": np.float32,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Double": np.float64,
    "Long": np.int64,
    "Bool": np.bool_,
}


def tensor(key, array, kind="Float", offset=0, shape=None, strides=None, view=()):
    shape = array.shape if shape is None else shape
    if strides is None:
        strides = tuple(s // array.itemsize for s in array.strides)
    ref = StorageRef(kind, key, array.size, view)
    return Stub("torch._utils", "_rebuild_tensor_v2", ref, offset, shape, strides, False, {})


def dump(obj):
    stream = io.BytesIO()
    _Writer(stream, 2).dump(obj)
    return stream.getvalue()


def write_zip(path, obj, storages, compress=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compress) as archive:
        archive.writestr("archive/data.pkl", dump(obj))
        archive.writestr("archive/byteorder", "little")
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
    return path


def write_stream(path, obj, storages):
    facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    parts = [dump(MAGIC), dump(1001), dump(facts), dump(obj), dump(list(storages))]
    for array in storages.values():
        parts += [struct.pack("<q", array.size), array.tobytes()]
    path.write_bytes(b"".join(parts))
    return path


WRITERS = {"zip": write_zip, "stream": write_stream}
