"""Full-size modules against the recorded parameter lists: every name, every shape, the total."""

import json
import math

import cases
import jax
import numpy as np
import pytest

from driftar_jax.conversion import drift_ar as drift_ar_conversion
from driftar_jax.conversion import mar as mar_conversion
from driftar_jax.conversion import nextstep as nextstep_conversion
from driftar_jax.conversion import nextstep_vae as nextstep_vae_conversion
from driftar_jax.conversion import rules
from driftar_jax.conversion import transdiff as transdiff_conversion
from driftar_jax.conversion import vae as vae_conversion
from driftar_jax.hosts import nextstep
from driftar_jax.hosts.mar import PRESETS
from driftar_jax.hosts.nextstep_stored import abstract_params, modules, unstacked
from driftar_jax.hosts.transdiff import PRESETS as TRANSDIFF
from driftar_jax.published import stored as published_stored
from driftar_jax.published.model import PRESETS as PUBLISHED
from driftar_jax.vae import kl, stored
from driftar_jax.vae.f8 import F8VAE

FOLDER = cases.ROOT / "manifests"


def manifest(name: str) -> dict:
    path = FOLDER / f"{name}.json"
    if not path.exists():
        pytest.skip(f"{FOLDER} has no {name}.json")
    return json.loads(path.read_text())


def sizes(family, presets, quick):
    """All of them, those that are not `quick` among the slow tests."""
    return [
        pytest.param(name, id=f"{family}-{name}", marks=() if name in quick else pytest.mark.slow)
        for name in sorted(presets)
    ]


def official_shapes(abstract, rule_list) -> dict[str, tuple[int, ...]]:
    """Official name -> shape of abstract parameters; arrays of one number, seen many times."""
    empty = jax.tree.map(lambda a: np.broadcast_to(np.float32(0), a.shape), abstract)
    official, report = rules.to_official(rules.flatten(empty), rule_list)
    assert not report.unused
    return {name: array.shape for name, array in official.items()}


def agree(got: dict[str, tuple[int, ...]], recorded: dict) -> None:
    want = {name: tuple(shape) for name, shape, _ in recorded["state_dict"]}
    assert got == want
    assert len(got) == recorded["entries"]
    assert sum(math.prod(shape) for shape in got.values()) == recorded["parameters"]


@pytest.mark.parametrize("size", sizes("mar", PRESETS, ("base",)))
def test_mar_sizes(size):
    recorded = manifest(f"mar_{size}")
    made = recorded["constructor"]
    grid = made["img_size"] // made["vae_stride"] // made["patch_size"]
    fields = dict(
        PRESETS[size],
        num_tokens=grid**2,
        token_dim=made["vae_embed_dim"] * made["patch_size"] ** 2,
        num_classes=made["class_num"],
        buffer_size=made["buffer_size"],
    )
    assert (fields["head_depth"], fields["head_width"]) == (made["diffloss_d"], made["diffloss_w"])
    host, head = mar_conversion.modules(fields)
    got = official_shapes(mar_conversion.abstract_params(host, head), mar_conversion.RULES)
    agree(got, recorded)
    # The shapes alone tell the size again, heads included.
    assert mar_conversion.sizes(got) == {**fields, "mlp_ratio": 4.0}


@pytest.mark.parametrize(
    "phi",
    [
        pytest.param(False, id="as_recorded", marks=pytest.mark.slow),
        pytest.param(True, id="with_phi"),
    ],
)
@pytest.mark.parametrize("size", sizes("drift_ar", PUBLISHED, ("base",)))
def test_drift_ar_sizes(size, phi):
    """Before phi is attached, and after: then a copy of the last encoder block but one is more."""
    recorded = manifest(f"drift_ar_{size}")
    made = recorded["constructor"]
    fields = dict(
        PUBLISHED[size],
        num_tokens=(made["img_size"] // 16 // made["patch_size"]) ** 2,
        token_dim=made["vae_embed_dim"] * made["patch_size"] ** 2,
        num_classes=made["class_num"],
        buffer_size=made["buffer_size"],
        phi=phi,
    )
    assert fields["draft_depth"] == made["draft_depth"]
    model = drift_ar_conversion.module(fields)
    abstract = published_stored.abstract(model, phi)
    got = official_shapes(abstract, drift_ar_conversion.RULES)
    attached = {name: s for name, s in got.items() if name.startswith("feature_encoder.")}
    agree({name: s for name, s in got.items() if name not in attached}, recorded)
    source = f"encoder_blocks.{fields['depth'] - 2}."
    copied = {n.replace("feature_encoder.block.", source): s for n, s in attached.items()}
    block = {n: s for n, s in got.items() if n.startswith(source)}
    assert copied == (block if phi else {})
    # The shapes alone tell the size again, heads included.
    assert drift_ar_conversion.sizes(got) == {**fields, "mlp_ratio": 4.0}


@pytest.mark.parametrize("size", sizes("transdiff", TRANSDIFF, ("base_mrar", "large_512")))
def test_transdiff_sizes(size):
    recorded = manifest(f"transdiff_{size}")
    made, fields = recorded["constructor"], TRANSDIFF[size]
    assert fields["num_classes"] == made["class_num"]
    assert fields["buffer_size"] == made["buffer_size"]
    assert fields["num_tokens"] == (made["img_size"] // 16) ** 2
    assert fields["token_dim"] == made["vae_embed_dim"]
    assert fields["reference_dim"] == made["vae_embed_dim"] * made["patch_size"] ** 2
    host, net = transdiff_conversion.modules({**fields, "mlp_ratio": 4.0})
    abstract = transdiff_conversion.abstract_params(host, net)
    got = official_shapes(abstract, transdiff_conversion.RULES)
    agree(got, recorded)
    # The shapes alone tell size, form and resolution again.
    assert transdiff_conversion.sizes(got) == {**fields, "mlp_ratio": 4.0}


@pytest.mark.parametrize("name", ["vae_kl16"])
def test_vae_size(name):
    recorded = manifest(name)
    vae = kl.KLVAE()
    got = official_shapes(stored.abstract(vae), vae_conversion.RULES)
    agree(got, recorded)
    assert vae_conversion.module(got) == vae


@pytest.mark.parametrize("size", ["14b"], ids=["nextstep-14b"])
def test_nextstep_size(size):
    """Assumed sizes of the recording, but for what our preset fixes."""
    recorded = manifest(f"nextstep_1_{size}")
    made = recorded["constructor"]
    settings = {**made, "image_placeholder_id": made["vocab_size"] - 1}
    shapes = {name: tuple(shape) for name, shape, _ in recorded["state_dict"]}
    fields = nextstep_conversion.sizes(shapes, settings)
    preset = nextstep.PRESETS[size]
    assert {name: fields[name] for name in preset} == preset
    abstract = abstract_params(*modules(fields))
    got = official_shapes(unstacked(abstract), nextstep_conversion.RULES)
    # Held in the state dict, and no parameter: the recorded total is without it.
    got[nextstep_conversion.BUFFER] = nextstep_conversion.buffer(fields["width"]).shape
    assert recorded["buffers"] == [nextstep_conversion.BUFFER]
    buffers = math.prod(got[nextstep_conversion.BUFFER])
    agree(got, {**recorded, "parameters": recorded["parameters"] + buffers})


@pytest.mark.parametrize("name", ["nextstep_vae_f8ch16"])
def test_nextstep_vae_size(name):
    recorded = manifest(name)
    made = F8VAE(normalise=True, patch=2, scale=1.0, shift=0.0, deterministic=True)
    got = official_shapes(stored.abstract(made), nextstep_vae_conversion.RULES)
    agree(got, recorded)
    settings = {
        **recorded["constructor"],
        "encoder_norm": made.normalise,
        "psz": made.patch,
        "scaling_factor": made.scale,
        "shift_factor": made.shift,
        "deterministic": made.deterministic,
    }
    assert nextstep_vae_conversion.module(got, settings) == made
