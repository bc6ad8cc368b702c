"""Configs of the released sizes are ones this project accepts, and say what was published."""

import importlib

import ml_collections
import pytest

from driftar_jax import config
from driftar_jax.conversion import mar, transdiff
from driftar_jax.hosts.mar import PRESETS
from driftar_jax.hosts.nextstep import PRESETS as NEXTSTEP
from driftar_jax.hosts.transdiff import PRESETS as TRANSDIFF


def _get(kind, size, *variant):
    return importlib.import_module(f"configs.{kind}_{size}").get_config(*variant)


@pytest.mark.parametrize("size", PRESETS)
@pytest.mark.parametrize("kind", ["mar", "drift_mar"])
@pytest.mark.parametrize("variant", [(), ("tiny",)], ids=["full", "tiny"])
def test_config_is_accepted(kind, size, variant):
    made = _get(kind, size, *variant)
    config.check(made)
    assert made.task == ("host" if kind == "mar" else "drift")
    with pytest.raises(ValueError, match="^config size: got 'small', allowed tiny"):
        _get(kind, size, "small")


@pytest.mark.parametrize("size", PRESETS)
def test_sizes_and_evaluation_are_the_published_ones(size):
    made, preset = _get("mar", size), PRESETS[size]
    for name in ("width", "encoder_depth", "decoder_depth", "num_heads"):
        assert made.host[name] == preset[name]
    assert (made.head.width, made.head.depth) == (preset["head_width"], preset["head_depth"])
    assert made.sample.guidance == mar.GUIDANCE[made.host.width]
    published = dict(ar_steps=256, nfe=100, guidance_schedule="linear", temperature=1.0)
    assert {name: made.sample[name] for name in published} == published


def test_a_converted_checkpoint_has_the_same_recipe():
    made = _get("mar", "base")
    fields = {"num_tokens": 256, "token_dim": 16, "num_classes": 1000, "buffer_size": 64}
    fields |= {"mlp_ratio": 4.0, **PRESETS["base"]}
    converted = ml_collections.ConfigDict(mar.config_of(fields))
    for section in ("host", "head", "mask", "optim", "train", "mesh"):
        assert converted[section].to_dict() == made[section].to_dict(), section


@pytest.mark.parametrize("name", TRANSDIFF)
def test_transdiff_is_the_released_one(name):
    """Sizes, recipe and scales, in the config as in a converted checkpoint's workdir."""
    made = _get("transdiff", *name.split("_"))
    config.check(made)
    converted = ml_collections.ConfigDict(
        transdiff.config_of({**TRANSDIFF[name], "mlp_ratio": 4.0})
    )
    assert made.keys() == converted.keys()
    for section in set(made) - {"task", "seed", "init_from", "data"}:
        assert converted[section].to_dict() == made[section].to_dict(), section


@pytest.mark.parametrize("size", ["base", "large", "huge"])
def test_transdiff_variants(size):
    config.check(_get("transdiff", size, "tiny"))
    with pytest.raises(ValueError, match=r"^config size: got 'small', allowed tiny \| mrar"):
        _get("transdiff", size, "small")


@pytest.mark.parametrize("kind", ["nextstep", "drift_nextstep"])
def test_nextstep_is_the_released_one(kind):
    """Sizes of the released config; the sum of parameters is in test_scale."""
    made = _get(kind, "14b")
    config.check(made)
    config.check(_get(kind, "14b", "tiny"))
    preset = NEXTSTEP["14b"]
    for name in ("width", "depth", "num_heads", "num_kv_heads", "mlp_width"):
        assert made.host[name] == preset[name]
    head = made.head if kind == "nextstep" else made.drift
    assert (head.width, head.depth) == (preset["head_width"], preset["head_depth"])
    with pytest.raises(ValueError, match="^config size: got 'small', allowed tiny, or no word"):
        _get(kind, "14b", "small")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"host.form": "two"}, r"^host.form: got 'two', allowed one_step \| mrar"),
        ({"host.row_patch": 3}, "^host.row_patch: got 3, allowed a divisor of the grid's side 16"),
        ({"sample.ar_steps": 1}, "^sample.ar_steps: got 1, allowed 4"),
        ({"sample.nfe": 1}, "^sample.nfe: got 1, allowed a whole number of at least 2"),
        ({"bank.size": 3}, "^bank.size: got 3, allowed at least 4 images in a row"),
        ({"host.num_heads": 7}, "^host.num_heads: got 7"),
    ],
)
def test_bad_transdiff_settings_are_refused(changes, message):
    made = _get("transdiff", "base", "mrar")
    made.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        config.check(made)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample.nfe_schedule": "exp"}, "^sample.nfe_schedule: got 'exp', allowed constant"),
        ({"sample.nfe_last": 0}, "^sample.nfe_last: got 0, allowed a whole number"),
        (
            {"sample.nfe_schedule": "cosine", "sample.nfe_last": 101},
            "^sample.nfe_last: got 101, allowed 1 to sample.nfe 100",
        ),
    ],
)
def test_bad_annealing_is_refused(changes, message):
    made = _get("mar", "base")
    made.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        config.check(made)
