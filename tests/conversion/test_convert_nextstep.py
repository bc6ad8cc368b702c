"""A sharded NextStep-1 checkpoint -> workdir -> shards, and its autoencoder; what is refused."""

import json
import math
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from torch_files import tensor, write_zip

from driftar_jax.conversion import checkpoint, nextstep, nextstep_vae, rules, shards
from driftar_jax.hosts.nextstep_stored import abstract_params, modules, unstacked
from driftar_jax.storage import checkpoints
from driftar_jax.vae import stored
from driftar_jax.vae.f8 import F8VAE

FIELDS = dict(
    vocab_size=23,
    placeholder=21,
    token_dim=8,
    width=12,
    depth=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    mlp_width=14,
    norm_eps=1e-5,
    rope_theta=1e6,
    attention_bias=True,
    head_width=10,
    head_depth=2,
)
LLAMA = {
    "model_type": "nextstep",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 12,
    "intermediate_size": 14,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "boi": 19,
    "eoi": 20,
    "image_placeholder_id": 21,
    "pad_token_id_added": 18,
    "something_new": {"deep": [1]},
}
CONFIGS = {
    "1.0": {
        **LLAMA,
        "latent_size": 64,
        "latent_patch_size": 2,
        "latent_channels": 2,
        "fm_head_dim": 10,
        "fm_head_layers": 2,
    },
    "1.1": {
        **LLAMA,
        "image_size": 64,
        "patch_size": 2,
        "num_channels": 2,
        "genloss_width": 10,
        "genloss_depth": 2,
        "noise_strength": 0,
    },
}


def _official(fields=FIELDS, seed=0):
    """Random official arrays; the head's in float32, the rest in bfloat16."""
    abstract = unstacked(abstract_params(*modules(fields)))
    empty = jax.tree.map(lambda a: np.broadcast_to(np.float32(0), a.shape), abstract)
    names, report = rules.to_official(rules.flatten(empty), nextstep.RULES)
    report.check()
    rng = np.random.default_rng(seed)
    made = {}
    for name, array in names.items():
        dtype = np.float32 if name.startswith("image_head") else ml_dtypes.bfloat16
        made[name] = rng.standard_normal(array.shape, np.float32).astype(dtype)
    made[nextstep.BUFFER] = nextstep.buffer(fields["width"])
    return made


def _write(folder, arrays, config=CONFIGS["1.0"], count=3):
    """A folder of `count` shards as published."""
    folder.mkdir(parents=True)
    names = sorted(arrays)
    weight_map = {}
    for i in range(count):
        file = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
        part = {name: np.ascontiguousarray(arrays[name]) for name in names[i::count]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def _forward(source, out, tell=lambda line: None, family="nextstep"):
    return checkpoint.forward(family, str(source), str(out), "model", tell=tell)


@pytest.fixture(scope="module")
def official():
    return _official()


@pytest.mark.parametrize("version", CONFIGS)
def test_there_and_back_bit_by_bit(tmp_path, official, version):
    arrays = dict(official)
    if version == "1.1":  # a file without the table
        arrays.pop(nextstep.BUFFER)
    source = _write(tmp_path / "official", arrays, CONFIGS[version])
    lines = []
    report = _forward(source, tmp_path / "w", lines.append)
    assert report.complete and len(report.mapped) == len(official) - 1
    assert all(any(line.startswith(f"{name} ") for line in lines) for name in arrays)
    config = checkpoints.read_config(tmp_path / "w")
    assert config["host"] == FIELDS and config["marks"]["begin_image"] == 19
    assert (tmp_path / "w" / "tokenizer.json").read_text() == "{}"
    facts = json.loads((tmp_path / "w" / "report.json").read_text())
    want = sum(a.size for n, a in official.items() if n != nextstep.BUFFER)
    assert facts["parameters"] == want and len(facts["mapped"]) == len(report.mapped)

    checkpoint.back(
        "nextstep", str(tmp_path / "w"), str(tmp_path / "b"), "model_ema", tell=lambda line: None
    )
    assert json.loads((tmp_path / "b" / "config.json").read_text()) == CONFIGS[version]
    written = shards.Shards(tmp_path / "b")
    assert written.keys() == official.keys()
    for name, array in official.items():
        got = np.asarray(written[name])
        assert got.dtype == array.dtype, name
        np.testing.assert_array_equal(got, array, err_msg=name)
    # Layers are sealed as everything is.
    opened = checkpoints.Checkpoints(tmp_path / "w", create=False)
    assert opened.damage(0) is None
    (file,) = (tmp_path / "w" / "checkpoints" / "0" / "layer_001").glob("_METADATA")
    file.write_text(file.read_text() + " ")
    assert opened.damage(0) == "a damaged layer_001/_METADATA"
    opened.close()
    # Others read what we wrote, and what we wrote converts again.
    assert load_file(tmp_path / "b" / "model-00002-of-00004.safetensors")
    _forward(tmp_path / "b", tmp_path / "again")


def test_one_file_instead_of_shards(tmp_path, official):
    folder = _write(tmp_path / "official", official, count=1)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model-00001-of-00001.safetensors").rename(folder / "model.safetensors")
    (folder / "tokenizer.json").unlink()
    lines = []
    assert _forward(folder, tmp_path / "w", lines.append).complete
    assert any(line.startswith("warning: no tokenizer.json") for line in lines)


SHARD = "model-00002-of-00003.safetensors"


def _cut(folder, count):
    data = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(data[:count] if count > 0 else data[: len(data) + count])


def _reindex(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


DAMAGE = {
    "missing shard": (lambda f: (f / SHARD).unlink(), SHARD),
    "truncated numbers": (lambda f: _cut(f, -6), SHARD),
    "truncated header": (lambda f: _cut(f, 40), SHARD),
    "truncated length": (lambda f: _cut(f, 5), SHARD),
    "no index": (lambda f: (f / "model.safetensors.index.json").unlink(), "no model.safetensors"),
    "damaged index": (
        lambda f: (f / "model.safetensors.index.json").write_text("{"),
        "index.json",
    ),
    "a name too many": (lambda f: _reindex(f, lambda m: m.update(x=SHARD)), "looks for x"),
    "a name too few": (lambda f: _reindex(f, lambda m: m.pop("norm.weight")), "norm.weight"),
    "a path outside": (
        lambda f: _reindex(f, lambda m: m.update(x="../../secret")),
        "no weight_map of names to files beside it",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_folders_are_refused_and_leave_nothing(tmp_path, official, kind):
    folder = _write(tmp_path / "official", official)
    damage, words = DAMAGE[kind]
    damage(folder)
    with pytest.raises(ValueError, match="^source: got") as error:
        _forward(folder, tmp_path / "w")
    assert words in str(error.value) and "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["official"]


MISFITS = {
    "rms_norm_eps: got None": ({"rms_norm_eps": None}, {}),
    "rope_theta: got None": ({"rope_theta": None}, {}),
    "model_type: got 'qwen2'": ({"model_type": "qwen2"}, {}),
    "num_attention_heads: got 3": ({"num_attention_heads": 3}, {}),
    "hidden_size: got 16": ({"hidden_size": 16}, {}),
    "latent_patch_size: got 4": ({"latent_patch_size": 4}, {}),
    "image_placeholder_id: got 23": ({"image_placeholder_id": 23}, {}),
    "boi: got None": ({"boi": None}, {}),
    "unused: extra": ({}, {"extra": np.ones(2, np.float32)}),
    "missing: head/final_linear/bias": ({}, {"image_head.net.final_layer.linear.bias": None}),
    "gen_pos_embed: got other numbers": ({}, {nextstep.BUFFER: np.ones((1, 1024, 12), "f4")}),
    "embed_tokens.weight: got None": ({}, {"embed_tokens.weight": None}),
}


@pytest.mark.parametrize("words", MISFITS)
def test_misfits_are_named_and_leave_nothing(tmp_path, official, words):
    settings, arrays = MISFITS[words]
    changed = {n: a for n, a in (official | arrays).items() if a is not None}
    folder = _write(tmp_path / "official", changed, CONFIGS["1.0"] | settings)
    with pytest.raises(ValueError) as error:
        _forward(folder, tmp_path / "w")
    assert words in str(error.value) and "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["official"]


MEASURE = """
import pathlib, sys
from driftar_jax.conversion import checkpoint, nextstep, shards
import jax
jax.block_until_ready(jax.numpy.zeros(1))
def peak():
    (line,) = (x for x in open("/proc/self/status") if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
small, large, out = sys.argv[1:]
quiet = lambda line: None
checkpoint.forward("nextstep", small, out + "0", "model", tell=quiet)  # what every call needs
before = peak()
checkpoint.forward("nextstep", large, out + "1", "model", tell=quiet)
print(peak() - before)
"""


@pytest.mark.slow
def test_memory_stays_under_two_shards(tmp_path, official):
    """Twelve layers in three shards: to read all would hold three, and float32 copies six."""
    fields = FIELDS | dict(width=512, mlp_width=3072, depth=12, head_dim=128)
    wide = _official(fields)
    said = {
        "hidden_size": 512,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "head_dim": 128,
    }
    small = _write(tmp_path / "small", official)
    large = _write(tmp_path / "large", wide, CONFIGS["1.0"] | said)
    shard = max(p.stat().st_size for p in large.glob("*.safetensors"))
    assert 2 * shard < sum(a.nbytes for a in wide.values())
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, small, large, tmp_path / "w"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2 * shard, (int(done.stdout), shard)


VAE = F8VAE(True, 2, 1.0, 0.0, True, channels=32, multipliers=(1, 2), num_res_blocks=1)
VAE_CONFIG = {
    "encoder_norm": True,
    "psz": 2,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
    "deterministic": True,
    "ch_mult": [1, 2],
    "resolution": 256,
}


@pytest.fixture(scope="module")
def autoencoder():
    empty = jax.tree.map(lambda a: np.broadcast_to(np.float32(0), a.shape), stored.abstract(VAE))
    names, report = rules.to_official(rules.flatten(empty), nextstep_vae.RULES)
    report.check()
    rng = np.random.default_rng(0)
    return {n: rng.standard_normal(a.shape, np.float32) for n, a in names.items()}


def _write_vae(folder, arrays, config=VAE_CONFIG):
    folder.mkdir(exist_ok=True)
    keys = {name: str(i) for i, name in enumerate(arrays)}
    tree = {name: tensor(keys[name], array) for name, array in arrays.items()}
    write_zip(folder / "checkpoint.pt", tree, {keys[n]: a for n, a in arrays.items()})
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "checkpoint.pt"


def test_autoencoder_there_and_back(tmp_path, autoencoder):
    source = _write_vae(tmp_path / "vae", autoencoder)
    _forward(source, tmp_path / "w", family="vae-f8")
    loaded, params = stored.load(tmp_path / "w", kind="vae-f8")
    assert loaded == VAE
    assert rules.shapes_of(params) == rules.shapes_of(stored.abstract(VAE))
    with pytest.raises(ValueError, match="^kind: got 'vae-f8', allowed 'vae-kl16'"):
        stored.load(tmp_path / "w")
    file = str(tmp_path / "b.safetensors")
    checkpoint.back("vae-f8", str(tmp_path / "w"), file, "model_ema", tell=lambda line: None)
    written = load_file(file)
    assert written.keys() == autoencoder.keys()
    for name, array in autoencoder.items():
        np.testing.assert_array_equal(written[name], array, err_msg=name)


@pytest.mark.parametrize("name", ["psz", "scaling_factor", "deterministic", "encoder_norm"])
def test_autoencoder_settings_have_no_defaults(tmp_path, autoencoder, name):
    settings = {n: v for n, v in VAE_CONFIG.items() if n != name}
    source = _write_vae(tmp_path / "vae", autoencoder, settings)
    with pytest.raises(ValueError, match=f"^{name}: got None"):
        _forward(source, tmp_path / "w", family="vae-f8")
    assert not (tmp_path / "w").exists()


def test_released_parameter_count():
    """The sizes of the preset: 13,212,893,184 numbers in 48 layers."""
    from driftar_jax.hosts.nextstep import PRESETS

    fields = FIELDS | PRESETS["14b"] | dict(vocab_size=152064, token_dim=64)
    abstract = abstract_params(*modules(fields))
    layers = abstract["host"]["stack"]["layers"]
    assert sum(math.prod(a.shape) for a in jax.tree.leaves(layers)) == 13_212_893_184
