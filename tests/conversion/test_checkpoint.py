"""Official file -> workdir -> official file, and what must be refused on the way."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from torch_files import tensor, write_zip

import driftar_jax
from driftar_jax import config
from driftar_jax.conversion import checkpoint, mar, rules
from driftar_jax.conversion import vae as vae_conversion
from driftar_jax.vae import kl, stored

FIELDS = dict(
    num_tokens=9,
    token_dim=2,
    num_classes=5,
    width=12,
    encoder_depth=1,
    decoder_depth=2,
    num_heads=3,
    buffer_size=4,
    mlp_ratio=4.0,
    head_width=16,
    head_depth=2,
)


def _random(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}


@pytest.fixture(scope="module")
def official():
    """Random official arrays of a small MAR."""
    abstract = mar.abstract_params(*mar.modules(FIELDS))
    return _random(_official_shapes(abstract, mar.RULES))


def _official_shapes(abstract, rule_list):
    empty = jax.tree.map(lambda a: np.broadcast_to(np.float32(0), a.shape), abstract)
    names, report = rules.to_official(rules.flatten(empty), rule_list)
    report.check()
    return {name: array.shape for name, array in names.items()}


def _pth(path, **copies):
    """A file with copies of the weights, as the official trainer writes it."""
    storages, tree = {}, {"epoch": 3}
    for copy, arrays in copies.items():
        tree[copy] = {}
        for name, array in arrays.items():
            key = str(len(storages))
            storages[key] = array
            tree[copy][name] = tensor(key, array)
    return str(write_zip(path, tree, storages))


def _forward(source, out, **kwargs):
    kwargs = {"weights": "model_ema", "num_heads": 3, "tell": lambda line: None, **kwargs}
    return checkpoint.forward("mar", source, str(out), **kwargs)


def test_there_and_back_bit_by_bit(tmp_path, official, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    other = {name: array + 1 for name, array in official.items()}
    source = _pth(tmp_path / "a.pth", model=other, model_ema=official)
    lines = []
    report = _forward(source, tmp_path / "w", tell=lines.append)
    assert f"0/{len(official)} [" in capsys.readouterr().err  # a bar over the arrays
    assert report.complete and len(report.mapped) == len(official)
    assert all(any(line.startswith(f"{name} ") for line in lines) for name in official)
    facts = json.loads((tmp_path / "w" / "report.json").read_text())
    assert facts["parameters"] == sum(a.size for a in official.values())
    assert facts["source"] == "a.pth" and len(facts["mapped"]) == len(official)

    file = str(tmp_path / "back.safetensors")
    checkpoint.back("mar", str(tmp_path / "w"), file, "model_ema", tell=lines.append)
    written = load_file(file)
    assert written.keys() == official.keys()
    for name, array in official.items():
        np.testing.assert_array_equal(written[name], array, err_msg=name)

    _forward(file, tmp_path / "again")
    _forward(source, tmp_path / "other", weights="model")
    again, last = driftar_jax.load(tmp_path / "again"), driftar_jax.load(tmp_path / "other")
    np.testing.assert_array_equal(
        last.params["host"]["class_emb"], again.params["host"]["class_emb"] + 1
    )


@pytest.mark.slow  # the command converts in the fast ones
def test_the_workdir_samples(tmp_path, official):
    small = {name: 0.1 * array for name, array in official.items()}
    _forward(_pth(tmp_path / "a.pth", model_ema=small), tmp_path / "w")
    loaded = driftar_jax.load(tmp_path / "w")
    config.check(loaded.config)
    assert loaded.model.images.num_tokens == 9 and loaded.model.images.num_classes == 5
    z = loaded.model.host.apply(
        {"params": loaded.params["host"]},
        jnp.zeros((1, 9, 2)),
        jnp.zeros((1, 9), bool),
        jnp.array([4]),
    ).z
    assert np.isfinite(z).all()


def test_config_of_each_released_size_is_one_this_project_accepts():
    for size in mar.PRESETS.values():
        fields = {**FIELDS, "num_tokens": 256, "token_dim": 16, "num_classes": 1000, **size}
        made = ml_collections.ConfigDict(mar.config_of(fields))
        assert made.sample.ar_steps == 64 and made.sample.guidance > 2
        assert mar.fields_of(made.to_dict(), rules.manifest_of(fields)) == fields


def test_bfloat16_file(tmp_path, official):
    import ml_dtypes

    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in official.items()}
    save_file(half, tmp_path / "a.safetensors")
    _forward(str(tmp_path / "a.safetensors"), tmp_path / "w")
    got = driftar_jax.load(tmp_path / "w").params["host"]["class_emb"]
    want = half["class_emb.weight"].astype(np.float32)
    np.testing.assert_array_equal(got, want)


def test_not_a_number_is_named_and_kept(tmp_path, official):
    spoilt = dict(official)
    spoilt["decoder_embed.bias"] = np.full_like(official["decoder_embed.bias"], np.nan)
    lines = []
    report = _forward(_pth(tmp_path / "a.pth", model_ema=spoilt), tmp_path / "w", tell=lines.append)
    assert report.not_finite == ["decoder_embed.bias"]
    assert "warning: decoder_embed.bias holds NaN or infinity" in lines


def _without(arrays, name):
    return {n: a for n, a in arrays.items() if n != name}


MISFITS = {
    "missing: host/decoder_norm/bias": lambda a: _without(a, "decoder_norm.bias"),
    "unused: extra.weight": lambda a: {**a, "extra.weight": np.ones(2, np.float32)},
    "wrong shape: z_proj.bias": lambda a: {**a, "z_proj.bias": np.ones(5, np.float32)},
    "unused: encoder_blocks.01.norm1.bias": lambda a: {
        **a,
        "encoder_blocks.01.norm1.bias": np.ones(12, np.float32),
    },
    "class_emb.weight: got": lambda a: _without(a, "class_emb.weight"),
}


@pytest.mark.parametrize("words", MISFITS)
def test_misfits_are_named_and_leave_nothing(tmp_path, official, words):
    source = _pth(tmp_path / "a.pth", model_ema=MISFITS[words](official))
    with pytest.raises(ValueError) as error:
        _forward(source, tmp_path / "w")
    assert words in str(error.value) and "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_an_interrupted_write_leaves_nothing(tmp_path, official, monkeypatch):
    source = _pth(tmp_path / "a.pth", model_ema=official)

    def full_disk(path, value):
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint.jsons, "write_json", full_disk)
    with pytest.raises(OSError, match="no space"):
        _forward(source, tmp_path / "w")
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_a_disk_without_room_is_refused_before_anything_is_read(tmp_path, official, monkeypatch):
    source = _pth(tmp_path / "a.pth", model_ema=official)
    usage = checkpoint.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        ValueError, match="^out: got 0 MiB free on the disk of .*, allowed at least"
    ):
        _forward(source, tmp_path / "deep" / "w")
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_a_disk_that_fills_up_leaves_nothing(tmp_path, official):
    """A real limit on the size of files, in a process of its own."""
    source, out = _pth(tmp_path / "a.pth", model_ema=official), tmp_path / "w"
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "from driftar_jax.conversion import checkpoint\n"
        "try: checkpoint.forward('mar', sys.argv[1], sys.argv[2], 'model_ema', 3)\n"
        "except OSError as error: print(str(error).splitlines()[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, source, str(out)], capture_output=True, text=True, timeout=100
    )
    assert "allowed a disk with room" in done.stdout or "File too large" in done.stdout, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_the_other_family_is_refused(tmp_path, official):
    source = _pth(tmp_path / "a.pth", model=official)
    with pytest.raises(
        ValueError, match="^checkpoint: got names such as .*, allowed such as encoder"
    ):
        checkpoint.forward("vae-kl16", source, str(tmp_path / "v"), "model", tell=lambda line: None)
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_taken_places_and_other_kinds_are_refused(tmp_path, official):
    source = _pth(tmp_path / "a.pth", model_ema=official)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="^out: got"):
        _forward(source, tmp_path / "taken")
    with pytest.raises(ValueError, match="^num_heads: got none, allowed a divisor of width 12"):
        _forward(source, tmp_path / "w", num_heads=None)
    with pytest.raises(ValueError, match="^num_heads: got 5"):
        _forward(source, tmp_path / "w", num_heads=5)
    with pytest.raises(ValueError, match="^weights: got 'ema'"):
        _forward(source, tmp_path / "w", weights="ema")
    (tmp_path / "empty").mkdir()
    _forward(source, tmp_path / "empty")
    for out in ("x.pth", "a.safetensors"):
        (tmp_path / "a.safetensors").touch()
        with pytest.raises(ValueError, match="^out: got"):
            checkpoint.back("mar", str(tmp_path / "empty"), str(tmp_path / out), "model_ema")
    with pytest.raises(ValueError, match="^task: got 'host', allowed 'vae'"):
        checkpoint.back(
            "vae-kl16", str(tmp_path / "empty"), str(tmp_path / "b.safetensors"), "model_ema"
        )


def test_autoencoder_there_and_back(tmp_path):
    vae = kl.KLVAE(32, (1, 2), 1, latent_channels=3, attention_levels=(1,))
    official = _random(_official_shapes(stored.abstract(vae), vae_conversion.RULES))
    source = _pth(tmp_path / "kl16.ckpt", model=official)
    quiet = dict(tell=lambda line: None)
    checkpoint.forward("vae-kl16", source, str(tmp_path / "v"), "model", **quiet)
    loaded, params = stored.load(tmp_path / "v")
    assert loaded == vae
    assert rules.shapes_of(params) == rules.shapes_of(stored.abstract(vae))
    checkpoint.back(
        "vae-kl16", str(tmp_path / "v"), str(tmp_path / "b.safetensors"), "model_ema", **quiet
    )
    written = load_file(tmp_path / "b.safetensors")
    assert written.keys() == official.keys()
    for name, array in official.items():
        np.testing.assert_array_equal(written[name], array, err_msg=name)
    with pytest.raises(
        ValueError, match="^checkpoint: got names such as decoder.*, allowed such as class_emb"
    ):
        _forward(_pth(tmp_path / "other.pth", model_ema=official), tmp_path / "w")


def test_the_command(tmp_path, official):
    """As a user types it: a report of every name, and one line and status 2 for a mistake."""

    def run(*flags):
        command = [sys.executable, "-m", "driftar_jax.convert", *flags]
        return subprocess.run(command, capture_output=True, text=True, timeout=100)

    source, out = _pth(tmp_path / "a.pth", model_ema=official), str(tmp_path / "w")
    made = run("--family=mar", f"--source={source}", f"--out={out}", "--num_heads=3")
    assert made.returncode == 0, made.stderr
    assert len(made.stdout.splitlines()) == len(official) + 2
    file = str(tmp_path / "b.safetensors")
    made = run("--family=mar", "--back", f"--source={out}", f"--out={file}")
    assert made.returncode == 0 and load_file(file).keys() == official.keys()
    refused = run("--family=maar", f"--source={source}", "--out=x")
    assert refused.returncode == 2
    line = f"driftar_jax: family: got 'maar', allowed {' | '.join(checkpoint.FAMILIES)}"
    assert refused.stderr.splitlines() == [line]
