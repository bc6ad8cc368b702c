"""The reader of PyTorch files: hand-made files of both formats, damaged and hostile ones."""

import os
import pathlib
import pickle
import sys
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from torch_files import KINDS, WRITERS, Built, Global, Stub, dump, tensor, write_zip

from driftar_jax.conversion import pickles, state_dicts

each_format = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


def _arrays():
    rng = np.random.default_rng(0)
    return {k: (3 * rng.standard_normal((2, 3))).astype(t) for k, t in KINDS.items()}


@each_format
def test_every_type_is_read_back(tmp_path, write):
    arrays = _arrays()
    tree = {"model": {f"{k}.weight": tensor(k, a, k) for k, a in arrays.items()}, "epoch": 4}
    read = state_dicts.load(write(tmp_path / "a.pth", tree, arrays))
    assert read["epoch"] == 4
    for kind, array in arrays.items():
        got = np.asarray(read["model"][f"{kind}.weight"])
        assert got.dtype == array.dtype
        np.testing.assert_array_equal(got, array)


@each_format
def test_strides_offsets_and_shared_storages(tmp_path, write):
    base = np.arange(12, dtype=np.float32)
    tree = {
        "columns": tensor("0", base, offset=1, shape=(3, 2), strides=(1, 4)),
        "rows": tensor("0", base, shape=(3, 4), strides=(4, 1)),
        "scalar": tensor("0", base, offset=5, shape=(), strides=()),
        "none": tensor("0", base, shape=(0, 4), strides=(4, 1)),
    }
    read = state_dicts.load(write(tmp_path / "a.pth", tree, {"0": base}))
    np.testing.assert_array_equal(read["columns"], [[1, 5], [2, 6], [3, 7]])
    np.testing.assert_array_equal(read["rows"], base.reshape(3, 4))
    assert np.asarray(read["scalar"]) == 5 and np.asarray(read["none"]).shape == (0, 4)


@each_format
def test_namespaces_ordered_dicts_and_parameters(tmp_path, write):
    one = np.ones(2, np.float32)
    args = types.SimpleNamespace(lr=0.1, name="x")
    namespace = Built("argparse", "Namespace", vars(args))
    ordered = Stub("collections", "OrderedDict", [["a", tensor("0", one)]])
    parameter = Stub("torch._utils", "_rebuild_parameter", tensor("0", one), True, {})
    tree = {"args": namespace, "model": ordered, "p": parameter}
    read = state_dicts.load(write(tmp_path / "a.pth", tree, {"0": one}))
    assert dict(read["args"]) == {"lr": 0.1, "name": "x"}
    np.testing.assert_array_equal(read["model"]["a"], one)
    np.testing.assert_array_equal(read["p"], one)


HOSTILE = {
    "system": Stub("os", "system", "touch {}"),
    "eval": Stub("builtins", "eval", "open({!r}, 'w')"),
    "getattr": Stub("builtins", "getattr", "", "join"),
    "import": Stub("importlib", "import_module", "this"),
    "torch": Stub("torch.hub", "load", "x"),
    "dotted": Stub("collections", "OrderedDict.fromkeys", "ab"),
}


@each_format
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused_and_run_nothing(tmp_path, write, kind):
    mark = tmp_path / "ran"
    stub = HOSTILE[kind]
    stub = Stub(stub.module, stub.name, *[a.format(str(mark)) for a in stub.args])
    path = write(tmp_path / "evil.pth", {"model": stub}, {})
    loaded = set(sys.modules)
    with pytest.raises(ValueError, match="^source: got .* which asks for .* to be called") as error:
        state_dicts.load(path)
    assert f"{stub.module}.{stub.name}" in str(error.value) and "\n" not in str(error.value)
    assert not mark.exists() and set(sys.modules) == loaded


@pytest.mark.parametrize(
    "state",
    [{"function": os.getcwd.__name__}, (None, {"function": 1})],
    ids=["dictionary", "slots"],
)
@pytest.mark.parametrize(
    "target",
    [("torch._utils", "_rebuild_tensor_v2"), ("torch", "FloatStorage"), ("argparse", "Namespace")],
)
def test_what_a_file_may_call_cannot_be_changed(tmp_path, target, state):
    before = dict(vars(pickles.ALLOWED[target]))
    code = dump(Global(*target))[:-1] + dump(state)[2:-1] + pickle.BUILD + pickle.STOP
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("archive/data.pkl", code)
    with pytest.raises(ValueError, match="^source: got"):
        state_dicts.load(tmp_path / "a.pth")
    assert dict(vars(pickles.ALLOWED[target])) == before


@each_format
def test_no_truncation_goes_unnoticed(tmp_path, write):
    arrays = _arrays()
    tree = {"model": {k: tensor(k, a, k) for k, a in arrays.items()}}
    whole = write(tmp_path / "a.pth", tree, arrays).read_bytes()
    for length in [0, 1, 3, len(whole) // 3, len(whole) // 2, len(whole) - 7, len(whole) - 1]:
        cut = tmp_path / "cut.pth"
        cut.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="^source: got") as error:
            state_dicts.load(cut)
        assert "\n" not in str(error.value)


@each_format
def test_damaged_bytes_never_raise_anything_else(tmp_path, write):
    arrays = {"0": np.arange(6, dtype=np.float32)}
    whole = write(tmp_path / "a.pth", {"w": tensor("0", arrays["0"])}, arrays).read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(300):
        spoilt = bytearray(whole)
        for at in rng.integers(len(spoilt), size=2):
            spoilt[at] = rng.integers(256)
        path = tmp_path / "spoilt.pth"
        path.write_bytes(bytes(spoilt))
        try:
            read = state_dicts.load(path)
        except ValueError as error:
            assert str(error).startswith("source: got") and "\n" not in str(error)
        else:
            if isinstance(read, dict):
                for value in read.values():
                    np.asarray(value)


def test_tensors_outside_their_storage_are_refused(tmp_path):
    base = np.arange(6, dtype=np.float32)
    for wrong in [
        tensor("0", base, offset=1),
        tensor("0", base, shape=(2, 3), strides=(4, 1)),
        tensor("0", base, shape=(2,), strides=(-1,)),
        tensor("0", base, shape=(2, 2), strides=(1,)),
        tensor("0", base, shape=("a",), strides=(1,)),
        tensor("0", base, view=(("0", 0, 3),)),
    ]:
        with pytest.raises(ValueError, match="^source: got"):
            state_dicts.load(write_zip(tmp_path / "a.pth", {"w": wrong}, {"0": base}))


def test_compressed_storages_are_refused(tmp_path):
    base = np.zeros(600, np.float32)
    stored = {"0": base}
    path = write_zip(tmp_path / "a.pth", {"w": tensor("0", base)}, stored, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="is compressed"):
        state_dicts.load(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "notes.pth"
    path.write_text("hello\n" * 50)
    with pytest.raises(ValueError, match="^source: got"):
        state_dicts.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match="no checkpoint"):
        state_dicts.load(path)
    with pytest.raises(ValueError, match="^source: got .*No such file"):
        state_dicts.load(tmp_path / "absent.pth")
    with pytest.raises(ValueError, match="^source: got"):
        state_dicts.read_state_dict(tmp_path / "absent.safetensors", "model")


def test_reading_holds_one_array_at_a_time(tmp_path):
    """Names and shapes cost nothing; an array is a copy, and its pages of the file are let go."""
    count = 1 << 22
    big = {str(i): np.full(count, i, np.float32) for i in range(4)}
    path = write_zip(tmp_path / "a.pth", {n: tensor(n, a) for n, a in big.items()}, big)
    read = state_dicts.load(path)
    assert read["0"].shape == (count,)
    before = _mapped_bytes()
    for name, array in big.items():
        got = np.asarray(read[name])
        assert got.flags.owndata
        np.testing.assert_array_equal(got[::4096], array[::4096])
    assert _mapped_bytes() - before < 2 * big["0"].nbytes


def _mapped_bytes():
    """Pages of files that this process holds."""
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        pytest.skip("no /proc on this system")
    (line,) = (x for x in status.read_text().splitlines() if x.startswith("RssFile"))
    return 1024 * int(line.split()[1])


def test_state_dict_picks_the_copy_asked_for(tmp_path):
    a, b = np.zeros(2, np.float32), np.ones(2, np.float32)
    tree = {
        "model": {"w": tensor("0", a)},
        "model_ema": {"w": tensor("1", b)},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]},
        "epoch": 3,
    }
    path = write_zip(tmp_path / "a.pth", tree, {"0": a, "1": b})
    np.testing.assert_array_equal(state_dicts.read_state_dict(path, "model_ema").arrays["w"], b)
    np.testing.assert_array_equal(state_dicts.read_state_dict(path, "model").arrays["w"], a)
    with pytest.raises(ValueError, match=r"^weights: got 'ema', allowed model \| model_ema"):
        state_dicts.read_state_dict(path, "ema")
    bare = write_zip(tmp_path / "b.pth", {"w": tensor("0", a)}, {"0": a})
    assert state_dicts.shapes(state_dicts.read_state_dict(bare, "model_ema").arrays) == {"w": (2,)}
    listed = write_zip(tmp_path / "c.pth", [1, 2], {})
    with pytest.raises(ValueError, match="not named arrays"):
        state_dicts.read_state_dict(listed, "model")


def test_safetensors(tmp_path):
    arrays = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "half": np.arange(3).astype(ml_dtypes.bfloat16),
    }
    path = tmp_path / "a.safetensors"
    save_file(arrays, path)
    state = state_dicts.read_state_dict(path, "model_ema").arrays
    assert state_dicts.shapes(state) == {"w": (2, 3), "half": (3,)}
    for name, array in arrays.items():
        np.testing.assert_array_equal(state[name], array)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="^source: got"):
        state_dicts.read_state_dict(path, "model_ema")
