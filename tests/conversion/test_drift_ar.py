"""Drift-AR's official file -> workdir -> official file, with and without phi's block."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from driftar_jax.conversion import checkpoint, drift_ar, rules
from driftar_jax.published import model, stored

FIELDS = dict(
    num_tokens=9,
    token_dim=2,
    num_classes=5,
    width=12,
    depth=3,
    num_heads=3,
    buffer_size=4,
    decoder_depth=2,
    draft_depth=1,
    mlp_ratio=4.0,
)
QUIET = dict(weights="model_ema", tell=lambda line: None)


def _official(phi):
    """Random official arrays of a small model."""
    rng = np.random.default_rng(0)
    abstract = stored.abstract(drift_ar.module(FIELDS), phi)
    ours = jax.tree.map(lambda a: rng.standard_normal(a.shape).astype(np.float32), abstract)
    arrays, report = rules.to_official(rules.flatten(ours), drift_ar.RULES)
    report.check()
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _save(path, arrays):
    save_file(arrays, path)
    return str(path)


@pytest.mark.parametrize("phi", [pytest.param(False, marks=pytest.mark.slow), True])
def test_there_and_back_bit_by_bit(tmp_path, phi):
    official = _official(phi)
    assert drift_ar.sizes(rules.shapes_of(official), 3) == {**FIELDS, "phi": phi}
    source, workdir = _save(tmp_path / "a.safetensors", official), tmp_path / "w"
    report = checkpoint.forward("drift_ar", source, str(workdir), num_heads=3, **QUIET)
    assert report.complete and len(report.mapped) == len(official)
    facts = json.loads((workdir / "report.json").read_text())
    assert facts["parameters"] == sum(a.size for a in official.values())

    back = tmp_path / "back.safetensors"
    checkpoint.back("drift_ar", str(workdir), str(back), **QUIET)
    written = load_file(back)
    assert written.keys() == official.keys()
    for name, array in official.items():
        np.testing.assert_array_equal(written[name], array, err_msg=name)

    made, params = stored.load(workdir)
    assert made == drift_ar.module(FIELDS)
    assert ("feature_block" in params) == phi
    attached = model.with_features(params)["feature_block"]["fc1"]["kernel"]
    copied = params["host"][f"encoder_blocks_{FIELDS['depth'] - 2}"]["fc1"]["kernel"]
    np.testing.assert_array_equal(attached, copied)


def test_misfits_are_named_and_leave_nothing(tmp_path):
    official = _official(False)
    misfits = {
        "missing: draft/norm/bias": {
            n: a for n, a in official.items() if n != "draft_model.norm.bias"
        },
        "unused: drift_decoder.net.extra": {**official, "drift_decoder.net.extra": np.ones(2)},
        "drift_decoder.net.pos_embed: got None": {
            n: a for n, a in official.items() if not n.startswith("drift_decoder.")
        },
        "draft_depth: got 0": {n: a for n, a in official.items() if ".blocks." not in n},
        "num_heads: got none, allowed a divisor of width 12": official,
    }
    for words, arrays in misfits.items():
        source = _save(tmp_path / "a.safetensors", arrays)
        heads = None if words.startswith("num_heads") else 3
        with pytest.raises(ValueError) as error:
            checkpoint.forward("drift_ar", source, str(tmp_path / "w"), num_heads=heads, **QUIET)
        assert words in str(error.value) and "\n" not in str(error.value)
        assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_other_kinds_are_refused(tmp_path):
    source = _save(tmp_path / "a.safetensors", _official(False))
    checkpoint.forward("drift_ar", source, str(tmp_path / "w"), num_heads=3, **QUIET)
    with pytest.raises(ValueError, match="^diffloss.*: got None, allowed a MAR"):
        checkpoint.forward("mar", source, str(tmp_path / "m"), num_heads=3, **QUIET)
    with pytest.raises(ValueError, match="^task: got 'published', allowed 'vae'"):
        checkpoint.back("vae-kl16", str(tmp_path / "w"), str(tmp_path / "b.safetensors"), **QUIET)
    with pytest.raises(ValueError, match="^task: got 'vae', allowed 'published'"):
        stored.module({"task": "vae"})
