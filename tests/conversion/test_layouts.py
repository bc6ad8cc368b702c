"""Checkpoints as trainers, hubs and download pages leave them: read, or named with what to do."""

import itertools
import json
import struct
import tracemalloc
import zipfile
import zlib

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from torch_files import Built, Global, StorageRef, Stub, dump, tensor, write_stream, write_zip

from driftar_jax.conversion import checkpoint, formats, mar, pickles, rules, shards, state_dicts

FIELDS = dict(
    num_tokens=4,
    token_dim=2,
    num_classes=3,
    width=4,
    encoder_depth=1,
    decoder_depth=2,
    num_heads=2,
    buffer_size=2,
    mlp_ratio=4.0,
    head_width=4,
    head_depth=1,
)
ONE = np.ones(2, np.float32)


@pytest.fixture(scope="module")
def official():
    shapes = rules.shapes_of(mar.abstract_params(*mar.modules(FIELDS)))
    empty = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
    rng = np.random.default_rng(0)
    names, _ = rules.to_official(empty, mar.RULES)
    return {n: rng.standard_normal(a.shape).astype(np.float32) for n, a in names.items()}


def _forward(source, out, said=None, **changes):
    tell = (lambda line: None) if said is None else said.append
    asked = {"weights": None, "num_heads": 2, "tell": tell, **changes}
    return checkpoint.forward("mar", str(source), str(out), **asked)


PREFIXES = ["module.", "_orig_mod.", "model.", "ema.", "net.", "ema_model.online."]
PREFIXES += ["".join(pair) for pair in itertools.permutations(PREFIXES[:4], 2)]
PREFIXES += ["model.module._orig_mod."]


@pytest.mark.parametrize("prefix", ["", *PREFIXES])
def test_what_stands_before_every_name_is_taken_off(official, prefix):
    known, found = rules.unwrap([prefix + name for name in official], mar.RULES)
    assert known == {prefix + name: name for name in official} and found == prefix


def test_marks_of_compiled_parts_go_wherever_they_are(official):
    names = [n.replace("encoder_blocks.0.", "encoder_blocks.0._orig_mod.") for n in official]
    assert sorted(rules.unwrap(names, mar.RULES)[0].values()) == sorted(official)
    with pytest.raises(ValueError, match="^checkpoint: got two names that differ in _orig_mod"):
        rules.unwrap(["a.b", "a._orig_mod.b"], mar.RULES)


def test_a_prefix_is_reported_and_the_values_arrive(tmp_path, official):
    save_file({f"module.ema.{n}": a for n, a in official.items()}, tmp_path / "a.safetensors")
    said = []
    assert _forward(tmp_path / "a.safetensors", tmp_path / "w", said).complete
    assert said[0] == "prefix: module.ema. of a trainer is taken off the names"
    facts = json.loads((tmp_path / "w" / "report.json").read_text())
    assert facts["prefix"] == "module.ema."
    checkpoint.back("mar", str(tmp_path / "w"), str(tmp_path / "b.safetensors"), "model_ema", str)
    back = shards.read_file(tmp_path / "b.safetensors")
    for name, array in official.items():
        np.testing.assert_array_equal(back[name], array)


def test_other_names_are_shown_with_those_expected(tmp_path):
    for names in (["a.b", "c"], ["model.x.weight"], ["0"]):
        save_file({name: ONE for name in names}, tmp_path / "a.safetensors")
        with pytest.raises(ValueError) as error:
            _forward(tmp_path / "a.safetensors", tmp_path / "w")
        line = f"checkpoint: got names such as {', '.join(names)}, allowed such as class_emb.weight"
        assert str(error.value).startswith(line)


# --- values beside the weights -----------------------------------------------------------------

NUMBER = Stub(
    "numpy.core.multiarray", "scalar", Stub("numpy", "dtype", "f8", False, True), "12345678"
)
BESIDE = {
    "numpy scalar": NUMBER,
    "numpy 2 scalar": Stub("numpy._core.multiarray", "scalar", Global("numpy", "dtype"), "x"),
    "numpy array": Stub("numpy.core.multiarray", "_reconstruct", Global("numpy", "ndarray"), (0,)),
    "path": Stub("pathlib", "PosixPath", "runs", "mar"),
    "new path": Stub("pathlib._local", "PosixPath", "runs"),
    "device": Stub("torch", "device", "cuda", 0),
    "dtype": Global("torch", "bfloat16"),
    "set": Stub("__builtin__", "set", [1, 2]),
    "frozenset": Stub("builtins", "frozenset", [1, 2]),
    "slice": Stub("builtins", "slice", 0, 1, None),
    "complex": Stub("builtins", "complex", 1.0, 2.0),
    "type": Global("builtins", "int"),
    "bytes": Stub("_codecs", "encode", "abc", "latin1"),
    "date": Stub("datetime", "datetime", "x"),
    "uuid": Built("uuid", "UUID", {"int": 5}),
    "decimal": Stub("decimal", "Decimal", "1.5"),
    "default": Stub("collections", "defaultdict", Global("__builtin__", "dict")),
    "counter": Stub("collections", "Counter", {"a": 1}),
    "deque": Stub("collections", "deque", [1], 5),
    "omegaconf": Built("omegaconf.dictconfig", "DictConfig", {"_content": {"lr": 1}}),
    "easydict": Built("easydict", "EasyDict", {"lr": 1}),
    "configdict": Built("ml_collections.config_dict.config_dict", "ConfigDict", {"_fields": {}}),
    "simple namespace": Built("types", "SimpleNamespace", {"lr": 1}),
    "enum": Stub("transformers.trainer_utils", "IntervalStrategy", "steps"),
    "own class": Built("__main__", "Config", {"depth": 3}),
    "nested class": Built("train", "Config.Model", {"depth": 3}),
    "old object": Stub(
        "copy_reg", "_reconstructor", Global("a", "B"), Global("builtins", "object"), None
    ),
    "scaler": Built("torch.cuda.amp.grad_scaler", "GradScaler", {"_scale": 1.0}),
    "scheduler": Built("torch.optim.lr_scheduler", "CosineAnnealingLR", {"T_max": 5}),
    "generator": Stub("torch._C", "Generator"),
    "sharded": Built("torch.distributed._shard.sharded_tensor.api", "ShardedTensor", {}),
}


@pytest.mark.parametrize("write", [write_zip, write_stream], ids=["zip", "stream"])
@pytest.mark.parametrize("value", BESIDE.values(), ids=BESIDE)
def test_values_beside_the_weights_become_inert(tmp_path, write, value):
    key = Global("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    tree = {"model": {"w": tensor("0", ONE)}, "extra": [value, {"x": value}], "callbacks": {key: 1}}
    read = state_dicts.load(write(tmp_path / "a.pth", tree, {"0": ONE}))
    inert = read["extra"][0]
    assert isinstance(inert, pickles.Inert) or inert == {}
    assert not callable(inert)
    np.testing.assert_array_equal(read["model"]["w"], ONE)


def test_items_of_inert_objects_go_nowhere(tmp_path):
    """A list's, a dictionary's and a set's kind, filled after they were made."""
    made = dump(Stub("a", "B"))[:-1]
    program = b"\x80\x04(" + made[2:] + b"K\x01K\x02s" + b"K\x03a" + b"(K\x04K\x05u" + b"(K\x06e"
    program += b"(K\x07\x90" + b"}b" + b"l."
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("archive/data.pkl", program)
    (inert,) = state_dicts.load(tmp_path / "a.pth")
    assert repr(inert) == "<a.B>"


def test_what_is_asked_for_may_lie_beside_anything(tmp_path):
    flat = {"w": tensor("0", ONE), "step": 100, "args": Stub("torch", "device", "cpu")}
    read = state_dicts.read_state_dict(write_zip(tmp_path / "a.pth", flat, {"0": ONE}), "model_ema")
    assert list(read.arrays) == ["w"] and read.weights == ""
    ordered = Stub("collections", "OrderedDict", [["w", tensor("0", ONE)]])
    only = write_zip(tmp_path / "b.pth", {"state_dict": ordered, "epoch": 1}, {"0": ONE})
    assert state_dicts.read_state_dict(only, None, "model_ema").weights == "state_dict"
    with pytest.raises(ValueError, match=r"^weights: got 'model', allowed state_dict$"):
        state_dicts.read_state_dict(only, "model")
    none = write_zip(tmp_path / "c.pth", {"epoch": 1, "net": Stub("a", "B")}, {})
    with pytest.raises(ValueError, match=r"allowed none \(it holds epoch: int, net: Inert\)"):
        state_dicts.read_state_dict(none, None, "model_ema")


def test_tensors_of_float8_are_read(tmp_path):
    array = np.asarray([1, -2, 0.5], ml_dtypes.float8_e4m3fn)
    made = Stub(
        "torch._utils",
        "_rebuild_tensor_v3",
        StorageRef("Untyped", "0", 3),
        *(0, (3,), (1,), False, {}, Global("torch", "float8_e4m3fn")),
    )
    read = state_dicts.load(write_zip(tmp_path / "a.pth", {"w": made}, {"0": array}))
    np.testing.assert_array_equal(np.asarray(read["w"], np.float32), [1, -2, 0.5])


def test_float8_is_read_with_a_word_and_whole_numbers_are_refused(tmp_path, official):
    coarse = {n: a.astype(ml_dtypes.float8_e5m2) for n, a in official.items()}
    save_file(coarse, tmp_path / "a.safetensors")
    said = []
    _forward(tmp_path / "a.safetensors", tmp_path / "w", said)
    assert any(line.startswith("warning: ") and "float8" in line for line in said)
    for kind in (np.int8, np.uint8, np.int32, np.bool_):
        save_file({n: a.astype(kind) for n, a in official.items()}, tmp_path / "b.safetensors")
        with pytest.raises(ValueError, match=f"got numbers of type {np.dtype(kind)}, allowed flo"):
            _forward(tmp_path / "b.safetensors", tmp_path / "v")


# --- other files and folders -------------------------------------------------------------------

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 812000000\n"
FILES = {
    "Git LFS pointer": POINTER.encode(),
    "a web page": b"\n<!DOCTYPE html><html><title>Error</title></html>",
    "web page": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "the raw file": b'{"error":"Repository not found"}',
    "unpack it": b"\x1f\x8b\x08\0" + bytes(60),
    "an array of NumPy": b"\x93NUMPY\1\0" + bytes(60),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(60),
    "GGUF": b"GGUF\3\0\0\0" + bytes(60),
    "another runtime": b"\x1c\0\0\0TFL3" + bytes(60),
    "a text that begins 'Entry not found'": b"Entry not found",
    "a text that begins '# xet version 0": b"# xet version 0\nfilesize = 812000000\n",
    "a text that begins 'Invalid username": b"Invalid username or password.\n",
}
ENDINGS = {
    **{"m.onnx": "another runtime", "m.ckpt.index": "TensorFlow", "m.keras": "Keras"},
    **{"m.ckpt.data-00000-of-00001": "TensorFlow", "m.pth.part": "not finished"},
    **{"m.npz": "arrays of NumPy", "m.msgpack": "Flax weights", "m.zip": "unpack it"},
    **{"m.pth": "no file of torch.save, or a damaged one"},
}


@pytest.mark.parametrize("name", ENDINGS)
def test_files_that_nobody_can_read_are_named_by_their_ending(tmp_path, name):
    for data in (b"\x08\x07\x12" + bytes(200), b"\x82\xa6params\x80" + bytes(9)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"^source: got .*{ENDINGS[name]}"):
            state_dicts.read_state_dict(tmp_path / name, None)


def test_what_is_no_regular_file_is_named():
    with pytest.raises(ValueError, match="^source: got '/dev/null', .*no regular file"):
        state_dicts.read_state_dict("/dev/null", None)


@pytest.mark.parametrize("ending", [".pth", ".safetensors", ".ckpt", ""])
@pytest.mark.parametrize("words", FILES)
def test_files_that_are_none_are_named(tmp_path, words, ending):
    (tmp_path / f"a{ending}").write_bytes(FILES[words])
    with pytest.raises(ValueError, match="^source: got .*, allowed") as error:
        state_dicts.read_state_dict(tmp_path / f"a{ending}", None)
    assert words in str(error.value) and "\n" not in str(error.value)


LATEST = "latest_checkpointed_iteration.txt"
FOLDERS = {
    "Git LFS pointer": {"model.safetensors": POINTER},
    "diffusers": {"model_index.json": "{}", "unet/diffusion_pytorch_model.safetensors": ""},
    "library diffusers": {"diffusion_pytorch_model.safetensors": "", "config.json": "{}"},
    "zero_to_fp32.py": {"latest": "", "global_step5/mp_rank_00_model_states.pt": ""},
    "DeepSpeed": {"bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt": ""},
    "dcp_to_torch": {".metadata": "", "__0_0.distcp": ""},
    "(DCP, FSDP)": {"pytorch_model_fsdp_0/__0_0.distcp": ""},
    "transformers": {"pytorch_model.bin.index.json": "{}"},
    "Flax weights": {"flax_model.msgpack": ""},
    "a workdir of this project": {"checkpoints/5/manifest": "", "config.json": "{}"},
    "give one of them (checkpoint-last.pth)": {"checkpoint-last.pth": ""},
    "give one of them (pytorch_model_fsdp.bin)": {"pytorch_model_fsdp.bin": ""},
    "of DeepSpeed": {"global_step5/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt": ""},
    "Megatron": {"iter_5/mp_rank_00/model_optim_rng.pt": "", LATEST: "5"},
    "LoRA": {"adapter_config.json": "{}", "adapter_model.safetensors": ""},
    "an Orbax checkpoint of another program": {"_CHECKPOINT_METADATA": "{}", "d/0": ""},
    "a cache of the hub": {"blobs/0": "", "snapshots/0/model.safetensors": ""},
    "a clone without weights": {".git/config": "", "README.md": ""},
    "another runtime": {"model.onnx": "", "README.md": ""},
    "no model.safetensors.index.json": {"notes.txt": ""},
}


@pytest.mark.parametrize("words", FOLDERS)
def test_folders_that_are_none_are_named(tmp_path, words):
    for name, text in FOLDERS[words].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="^source: got ") as error:
        _forward(tmp_path, tmp_path / "w")
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("encoder.down_blocks.0.resnets.0.conv1.weight", "library diffusers"),
        ("class_emb.weight_scale", "scaled float8 of another program"),
        ("class_emb.qweight", "made coarse"),
        ("class_emb.lora_A.weight", "LoRA"),
    ],
)
def test_names_of_another_program_are_named(tmp_path, official, name, words):
    save_file({**official, name: ONE}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=f"^source: got .*{words}"):
        _forward(tmp_path / "a.safetensors", tmp_path / "w")


def test_files_are_known_by_what_they_hold(tmp_path):
    """A pickle called .safetensors, and the other way round."""
    save_file({"w": ONE}, tmp_path / "a.pth")
    assert list(state_dicts.read_state_dict(tmp_path / "a.pth", None).arrays) == ["w"]
    path = write_zip(tmp_path / "b.safetensors", {"w": tensor("0", ONE)}, {"0": ONE})
    assert list(state_dicts.read_state_dict(path, None).arrays) == ["w"]
    # The number before the header of a safetensors file may look like the sign of a web page.
    for length in (0x3C, 0x8B1F):
        header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.ljust(length)
        body = struct.pack("<Q", length) + header + ONE.tobytes()
        (tmp_path / "c.safetensors").write_bytes(body)
        assert formats.of_file(tmp_path / "c.safetensors") is None
        np.testing.assert_array_equal(shards.read_file(tmp_path / "c.safetensors")["w"], ONE)


# --- out of proportion -------------------------------------------------------------------------


def _refused(path, words, weights=None):
    """Refused with these words, and with memory below twice the file and 8 MB."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=words) as error:
            state_dicts.read_state_dict(path, weights)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(error.value).startswith("source: got ") and "\n" not in str(error.value)
    assert peak < 2 * path.stat().st_size + 2**23, peak


@pytest.mark.parametrize("which", ["data.pkl", "data/0", "version", "unasked"])
def test_no_member_of_a_zip_is_compressed(tmp_path, which):
    program = dump({"w": tensor("0", ONE)})
    members = {
        "data.pkl": program,
        "data/0": ONE.tobytes(),
        "version": b"3\n",
        "unasked": bytes(2**22),
    }
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        for name, body in members.items():
            kind = zipfile.ZIP_DEFLATED if name == which else zipfile.ZIP_STORED
            archive.writestr(f"archive/{name}", body, kind)
    _refused(tmp_path / "a.pth", f"archive/{which} is compressed")


def test_members_that_overlap_or_stand_twice_are_refused(tmp_path):
    path = write_zip(tmp_path / "a.pth", {"w": tensor("0", ONE)}, {"0": ONE})
    whole = path.read_bytes()
    at = whole.index(b"PK\1\2")
    for place in (at + 20, at + 24):  # both sizes of the first member
        whole = whole[:place] + struct.pack("<I", 2**20) + whole[place + 4 :]
    path.write_bytes(whole)
    _refused(path, "members larger than the file")
    with pytest.warns(UserWarning), zipfile.ZipFile(path, "w") as archive:
        for _ in range(2):
            archive.writestr("archive/data.pkl", dump({}))
    _refused(path, "stands there twice")


def test_a_directory_out_of_proportion_is_refused(tmp_path):
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 9, 9, 2**24, 30, 0)
    (tmp_path / "a.pth").write_bytes(b"PK\3\4" + bytes(26) + end)
    _refused(tmp_path / "a.pth", "a directory of 16777216 bytes")


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02" + b"]" * 3_000_000 + b".",
        b"\x80\x04" + b"\x8f" * 3_000_000 + b".",
        b"\x80\x04\x95" + struct.pack("<Q", 3_000_000) + b"}" * 3_000_000 + b".",
        b"\x80\x02" + b"(" * 3_000_000 + b".",
    ],
    ids=["lists", "sets", "in a frame", "marks"],
)
def test_programs_out_of_proportion_are_refused(tmp_path, program, monkeypatch):
    monkeypatch.setattr(pickles, "_MOST_STEPS", 2**16)  # the real limit, in a test's time
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("archive/data.pkl", program)
    _refused(tmp_path / "a.pth", "more beside the tensors than a checkpoint can have")


def test_tensors_out_of_proportion_are_refused(tmp_path):
    wide = tensor("0", ONE, shape=(10**6, 10**6), strides=(0, 0))
    _refused(write_zip(tmp_path / "a.pth", {"w": wide}, {"0": ONE}), "larger than its storage")
    big = np.zeros(2**16, np.float32)
    many = {str(i): tensor("0", big) for i in range(400)}
    _refused(write_zip(tmp_path / "a.pth", many, {"0": big}), "more than twice the file")
    for shape in ((True, 2), (2.0,), (-2, -1)):
        bad = tensor("0", ONE, shape=shape, strides=(1,) * len(shape))
        _refused(write_zip(tmp_path / "a.pth", {"w": bad}, {"0": ONE}), "a tensor that is none")


def _shard(header, body=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def _entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


SHARDS = {
    "a gap": ({"a": _entry([1], 0, 4), "b": _entry([1], 8, 12)}, 12, "a gap or an overlap"),
    "a late start": ({"a": _entry([1], 4, 8)}, 8, "a gap or an overlap"),
    "an overlap": ({"a": _entry([2], 0, 8), "b": _entry([2], 4, 12)}, 12, "a gap or an overlap"),
    "one place": ({"a": _entry([1], 0, 4), "b": _entry([1], 0, 4)}, 4, "a gap or an overlap"),
    "bytes behind": ({"a": _entry([1], 0, 4)}, 40, "36 bytes that belong to no array"),
    "cut": ({"a": _entry([9], 0, 36)}, 20, "truncated: 16 bytes"),
    "a broken shape": ({"a": _entry([1.0], 0, 4)}, 4, "a damaged entry for a"),
    "a true shape": ({"a": _entry([True], 0, 4)}, 4, "a damaged entry for a"),
    "a negative shape": ({"a": _entry([-1, -1], 0, 4)}, 4, "a damaged entry for a"),
    "another size": ({"a": _entry([2], 0, 4)}, 4, "a damaged entry for a"),
    "text": ({"a": "F32"}, 4, "a damaged entry for a"),
    "another type": ({"a": _entry([4], 0, 4, "F8_E8M0")}, 4, "of type F8_E8M0 in a, known are F64"),
    "notes": ({"__metadata__": {"a": 1}}, 0, "a damaged entry for __metadata__"),
    "twice": (
        b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":1}',
        0,
        "a damaged header",
    ),
    "nested": (b"[" * 10**5, 0, "a damaged header"),
    "nested objects": (b'{"a":' * 10**4 + b"1" + b"}" * 10**4, 0, "a damaged header"),
    "many lists": (b'{"a":[' + b"[]," * 1_100_000 + b"0]}", 0, "a damaged header"),
    "a list": (b"[1]", 0, "a damaged header"),
}


@pytest.mark.parametrize("case", SHARDS)
def test_shards_are_tiled_by_whole_entries(tmp_path, case):
    header, body, words = SHARDS[case]
    (tmp_path / "a.safetensors").write_bytes(_shard(header, bytes(body)))
    _refused(tmp_path / "a.safetensors", words)


def test_headers_without_end_are_refused(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(_shard(b"{}", length=2**62))
    _refused(tmp_path / "a.safetensors", "truncated or no safetensors file")


def test_empty_arrays_tile_as_well(tmp_path):
    arrays = {"a": np.zeros((0, 3), np.float32), "b": ONE, "c": np.zeros(0, np.float32)}
    save_file(arrays, tmp_path / "a.safetensors")
    read = shards.read_file(tmp_path / "a.safetensors")
    assert {n: np.asarray(a).shape for n, a in read.items()} == {"a": (0, 3), "b": (2,), "c": (0,)}


def test_compressed_text_in_a_stream_is_no_checkpoint(tmp_path):
    (tmp_path / "a.pth").write_bytes(zlib.compress(bytes(2**22)))
    _refused(tmp_path / "a.pth", "allowed a complete PyTorch")
