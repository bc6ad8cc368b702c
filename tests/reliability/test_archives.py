"""Spoiled and hostile weight files: read, or refused in one line; nothing of them is run."""

import pickle
import zipfile

import numpy as np
import pytest
import torch_files
from damage import CHANGES, refused_in_one_line, spoiled, watched
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from driftar_jax.conversion import state_dicts

pytestmark = pytest.mark.timeout(120)
LARGEST = 2**20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("archives")


@pytest.fixture(scope="module")
def whole(folder):
    """A sound file of each format, as bytes."""
    arrays = {"0": np.arange(6, dtype=np.float32), "1": np.arange(3, dtype=np.float32)}
    tree = {
        "model": {"a.weight": torch_files.tensor("0", arrays["0"].reshape(2, 3))},
        "model_ema": {"b": torch_files.tensor("1", arrays["1"])},
        "args": torch_files.Built("argparse", "Namespace", {"lr": 0.1, "name": "x"}),
        "epoch": 3,
    }
    files = {
        kind: write(folder / f"whole.{kind}", tree, arrays).read_bytes()
        for kind, write in torch_files.WRITERS.items()
    }
    save_file({"a.weight": arrays["0"].reshape(2, 3)}, folder / "whole.safetensors")
    files["safetensors"] = (folder / "whole.safetensors").read_bytes()
    return files


def _read(path):
    with watched(path.parent), refused_in_one_line(also=("source: got", "weights: got")):
        state = state_dicts.read_state_dict(path, "model").arrays
        for name, shape in state_dicts.shapes(state).items():
            if np.prod(shape, dtype=float) <= LARGEST:
                np.asarray(state[name])


@pytest.mark.parametrize("kind", ["zip", "stream", "safetensors"])
@given(changes=CHANGES)
@settings(max_examples=250)
def test_spoiled_files(folder, whole, kind, changes):
    path = folder / ("spoiled.safetensors" if kind == "safetensors" else "spoiled.pth")
    path.write_bytes(spoiled(whole[kind], changes))
    _read(path)


_NAMES = st.sampled_from(
    [
        b"os\nsystem\n",
        b"posix\nsystem\n",
        b"builtins\neval\n",
        b"builtins\nexec\n",
        b"builtins\n__import__\n",
        b"subprocess\nPopen\n",
        b"torch\nload\n",
        b"numpy\nload\n",
        b"collections\nOrderedDict\n",
        b"torch\nFloatStorage\n",
        b"torch\nSize\n",
        b"torch._utils\n_rebuild_tensor_v2\n",
        b"argparse\nNamespace\n",
    ]
)
_PIECES = st.one_of(
    _NAMES.map(lambda name: b"c" + name),
    st.sampled_from(
        [b"(", b")", b"]", b"}", b"R", b"b", b"o", b"t", b"\x85", b"\x86", b"\x81", b"\x92"]
        + [b"Q", b"2", b"0", b"N", b"u", b"s", b"a", b"e", b"\x93", b"\x94", b"q\x00", b"h\x00"]
    ),
    st.integers(0, 2**32 - 1).map(lambda n: b"r" + n.to_bytes(4, "little")),
    st.integers(0, 2**32 - 1).map(lambda n: b"j" + n.to_bytes(4, "little")),
    st.integers(0, 2**40).map(lambda n: b"\x8e" + n.to_bytes(8, "little")),
    st.text("touch ran", max_size=8).map(lambda t: b"V" + t.encode() + b"\n"),
    st.integers(-5, 2**40).map(lambda n: b"I" + str(n).encode() + b"\n"),
)


@pytest.mark.parametrize("kind", ["zip", "stream"])
@given(pieces=st.lists(_PIECES, min_size=1, max_size=12))
@settings(max_examples=200)
def test_programs_of_pickle_opcodes(folder, kind, pieces):
    """Random programs, with the names that an attacker would call among their words."""
    program = b"\x80\x02" + b"".join(pieces) + b"."
    path = folder / "program.pth"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", program)
    else:
        facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
        head = [torch_files.dump(x) for x in (torch_files.MAGIC, 1001, facts)]
        path.write_bytes(b"".join([*head, program, pickle.dumps([], 2)]))
    _read(path)
    assert not (folder / "ran").exists()
