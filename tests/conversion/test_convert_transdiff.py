"""TransDiff's official file -> workdir -> official file, in each of its forms."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import driftar_jax
from driftar_jax.conversion import checkpoint, mar, rules, transdiff
from driftar_jax.hosts.transdiff import PRESETS

ONE_STEP = dict(
    num_rows=16,
    groups=1,
    reference_dim=3,
    num_classes=5,
    width=12,
    depth=2,
    num_heads=2,
    buffer_size=4,
    mlp_ratio=4.0,
    token_dim=3,
    num_tokens=16,
    head_depth=1,
)
FORMS = {
    "one_step": ONE_STEP,
    "mrar": dict(ONE_STEP, groups=4, reference_dim=12),
    "512": dict(ONE_STEP, num_tokens=64),
}
QUIET = dict(weights="model_ema", tell=lambda line: None)


def _official(fields):
    """Random official arrays of a small model."""
    rng = np.random.default_rng(0)
    abstract = transdiff.abstract_params(*transdiff.modules(fields))
    ours = jax.tree.map(lambda a: rng.standard_normal(a.shape).astype(np.float32), abstract)
    arrays, report = rules.to_official(rules.flatten(ours), transdiff.RULES)
    report.check()
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _save(path, arrays):
    save_file(arrays, path)
    return str(path)


@pytest.mark.parametrize("form", FORMS)
def test_there_and_back_bit_by_bit(tmp_path, form):
    fields, official = FORMS[form], _official(FORMS[form])
    assert transdiff.sizes(rules.shapes_of(official), 2) == fields
    source, workdir = _save(tmp_path / "a.safetensors", official), tmp_path / "w"
    report = checkpoint.forward("transdiff", source, str(workdir), num_heads=2, **QUIET)
    assert report.complete and len(report.mapped) == len(official)
    facts = json.loads((workdir / "report.json").read_text())
    assert facts["parameters"] == sum(a.size for a in official.values())

    back = tmp_path / "back.safetensors"
    checkpoint.back("transdiff", str(workdir), str(back), **QUIET)
    written = load_file(back)
    assert written.keys() == official.keys()
    for name, array in official.items():
        np.testing.assert_array_equal(written[name], array, err_msg=name)

    loaded = driftar_jax.load(workdir)
    host, head = transdiff.modules(fields)
    assert loaded.model.host == host and loaded.model.head == head
    loaded.settings().check(loaded.model)
    want = jax.tree.map(np.shape, transdiff.abstract_params(host, head))
    assert jax.tree.map(np.shape, loaded.params) == want


def _without(arrays, name):
    return {n: a for n, a in arrays.items() if n != name}


MISFITS = {
    "missing: head/final_table": lambda a: _without(
        a, "diffdecoder.net.final_layer.scale_shift_table"
    ),
    "unused: extra.weight": lambda a: {**a, "extra.weight": np.ones(2, np.float32)},
    "wrong shape: z_proj.bias": lambda a: {**a, "z_proj.bias": np.ones(5, np.float32)},
    "groups: got 2, allowed 1 | 4": lambda a: {**a, "mask_token": np.ones((1, 8, 12), np.float32)},
    "z_proj.weight: got 6 inputs, allowed 3": lambda a: {
        **a,
        "z_proj.weight": np.ones((12, 6), np.float32),
    },
    "num_rows: got 16 of 1 groups, allowed as many as the 20 tokens": lambda a: {
        **a,
        "diffdecoder.net.diffusion_pos_embed_learned": np.ones((1, 20, 12), np.float32),
    },
    "class_emb.weight: got None, allowed a TransDiff": lambda a: _without(a, "class_emb.weight"),
}


@pytest.mark.parametrize("words", MISFITS)
def test_misfits_are_named_and_leave_nothing(tmp_path, words):
    source = _save(tmp_path / "a.safetensors", MISFITS[words](_official(ONE_STEP)))
    with pytest.raises(ValueError) as error:
        checkpoint.forward("transdiff", source, str(tmp_path / "w"), num_heads=2, **QUIET)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_heads_must_be_known(tmp_path):
    source = _save(tmp_path / "a.safetensors", _official(ONE_STEP))
    for heads, words in ((None, "num_heads: got none"), (5, "num_heads: got 5")):
        with pytest.raises(ValueError, match=words):
            checkpoint.forward("transdiff", source, str(tmp_path / "w"), num_heads=heads, **QUIET)


def test_other_families_are_refused(tmp_path):
    fields = dict(FIELDS_OF_MAR)
    abstract = mar.abstract_params(*mar.modules(fields))
    ours = jax.tree.map(lambda a: np.zeros(a.shape, np.float32), abstract)
    arrays, _ = rules.to_official(rules.flatten(ours), mar.RULES)
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    source = _save(tmp_path / "mar.safetensors", arrays)
    with pytest.raises(ValueError, match="^diffdecoder.net.diffusion_pos_embed_learned: got None"):
        checkpoint.forward("transdiff", source, str(tmp_path / "w"), num_heads=2, **QUIET)
    source = _save(tmp_path / "a.safetensors", _official(ONE_STEP))
    with pytest.raises(ValueError, match="allowed a MAR checkpoint"):
        checkpoint.forward("mar", source, str(tmp_path / "w"), num_heads=2, **QUIET)


FIELDS_OF_MAR = dict(
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


@pytest.mark.parametrize("name", PRESETS)
def test_config_of_each_released_size_is_one_this_project_accepts(name):
    fields = {**PRESETS[name], "mlp_ratio": 4.0}
    made = transdiff.config_of(fields)
    assert made["sample"]["guidance"] > 1.2 and made["sample"]["nfe"] == 100
    assert transdiff.fields_of(made, rules.manifest_of(fields)) == fields
    assert transdiff.title(fields).startswith(f"TransDiff {name} ")
