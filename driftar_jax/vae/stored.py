"""An autoencoder on disk: the workdir that `convert` writes and everything else reads."""

import dataclasses
import hashlib
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from driftar_jax import seeds
from driftar_jax.config import (
    Field,
    blocks,
    check_stored,
    choice,
    flag,
    of_tasks,
    place,
    real,
    whole,
    wrong,
)
from driftar_jax.storage.checkpoints import Checkpoints, read_config
from driftar_jax.vae.f8 import F8VAE
from driftar_jax.vae.kl import KLVAE

TASK = "vae"
# Of a manifest: the fingerprint of the run that was exported, whose latents sets are made of.
FINGERPRINT = "fingerprint"
# What `convert` calls the family of each.
KINDS = {"vae-kl16": KLVAE, "vae-f8": F8VAE}

# What a config of task `autoencoder` has beside what every run has.
FIELDS = of_tasks(
    ("autoencoder",),
    {
        "autoencoder.channels": Field(
            int,
            lambda v: v > 0 and v % 32 == 0,
            "a multiple of 32 (of the groups of its norms)",
            "Channels of the first level.",
        ),
        "autoencoder.multipliers": Field(
            str,
            lambda v: re.fullmatch(r"[1-9]\d?(,[1-9]\d?){0,5}", v) is not None,
            "widths of the levels over channels as in 1,1,2,2,4",
            "Widths of the levels over channels; each but the last halves the size.",
        ),
        "autoencoder.blocks": blocks(1, "Residual blocks of a level; the decoder has one more."),
        "autoencoder.latent_channels": whole(1, "Numbers of a token."),
        "autoencoder.fold": whole(
            1,
            "Side of the squares of pixels that become channels before the first convolution.",
        ),
        "autoencoder.shortcut": flag(
            "Whether a linear way, at first a cosine transform, leads around all levels."
        ),
        "autoencoder.kl": real(0, math.inf, "Weight of the nats of a token's number."),
        "autoencoder.perceptual": real(
            0, math.inf, "Weight of the distance in the maps of features_from."
        ),
        "autoencoder.features_from": place("Workdir of task mae; '' while perceptual is 0."),
        "autoencoder.dtype": choice(("float32", "bfloat16"), "Type of the convolutions."),
    },
)


def config_of(vae: KLVAE | F8VAE) -> dict:
    """Return what `config.json` holds of an autoencoder."""
    fields = {f.name: getattr(vae, f.name) for f in dataclasses.fields(vae)}
    for name in ("parent", "name", "dtype"):
        fields.pop(name)
    (kind,) = (kind for kind, module_class in KINDS.items() if type(vae) is module_class)
    return {"task": TASK, "kind": kind, "vae": fields}


def module(config: dict, dtype: jnp.dtype = jnp.float32, kind: str = "vae-kl16") -> KLVAE | F8VAE:
    """Build the module of such a config.

    Raises:
      ValueError: it is the config of something else, or of an autoencoder of another kind.
    """
    if config.get("task") == "autoencoder" and kind == "vae-kl16":
        check_stored(config)
        return trained(config["autoencoder"], dtype)
    if config.get("task") != TASK:
        raise ValueError(f"task: got {config.get('task')!r}, allowed {TASK!r} (an autoencoder)")
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in config["vae"].items()}
    # Configs without a kind are older than the second one.
    if config.get("kind", "vae-kl16") != kind:
        raise ValueError(f"kind: got {config['kind']!r}, allowed {kind!r}")
    return KINDS[kind](**fields, dtype=dtype)


def check(flat: Mapping[str, Any]) -> None:
    """Check fields of a flat config of task `autoencoder` against each other.

    Raises:
      ValueError: the levels do not divide the image, or the distance in features lacks its network
        or its weight; one line.
    """
    factor = flat["autoencoder.fold"] * 2 ** flat["autoencoder.multipliers"].count(",")
    if flat["data.image_size"] % factor:
        raise wrong("data.image_size", flat["data.image_size"], f"a multiple of {factor}")
    weighs = flat["autoencoder.perceptual"] > 0
    if weighs != bool(flat["autoencoder.features_from"]):
        allowed = "the workdir of task mae" if weighs else "'' while autoencoder.perceptual is 0"
        raise wrong("autoencoder.features_from", flat["autoencoder.features_from"], allowed)


def trained(section: Mapping[str, Any], dtype: jnp.dtype = jnp.float32) -> KLVAE:
    """Build the module of the section `autoencoder` of a checked config."""
    multipliers = tuple(int(m) for m in section["multipliers"].split(","))
    return KLVAE(
        channels=section["channels"],
        multipliers=multipliers,
        num_res_blocks=section["blocks"],
        latent_channels=section["latent_channels"],
        attention_levels=(len(multipliers) - 1,),
        fold=section["fold"],
        shortcut=section["shortcut"],
        dtype=dtype,
    )


def load(
    workdir: str | pathlib.Path, dtype: jnp.dtype = jnp.float32, kind: str = "vae-kl16"
) -> tuple[KLVAE | F8VAE, dict]:
    """Load the autoencoder of a workdir and its parameters.

    Args:
      workdir: folder written by `convert --family=KIND`, or by `train` of task `autoencoder`.
      dtype: type of the convolutions.
      kind: a key of `KINDS`.

    Raises:
      ValueError: it is no such folder, or the arrays do not fit its config; one line.
    """
    vae = module(read_config(workdir), dtype, kind)
    checkpoints = Checkpoints(workdir, create=False)
    step = checkpoints.latest_step()
    if step is None:
        raise ValueError(f"workdir: got {str(workdir)!r}, allowed one with a finished checkpoint")
    params = checkpoints.restore(step, widen=True, ema=abstract(vae))["ema"]
    checkpoints.close()
    return vae, params


def fingerprint(params: dict) -> str:
    """Return the text that tells autoencoders apart, by the arrays that every latent passes
    through.
    """
    digest = hashlib.sha256()
    # A few kilobytes in place of hundreds of megabytes: training any part of an autoencoder moves
    # these as well.
    for leaf in jax.tree.leaves([params["quant_conv"], params["post_quant_conv"]]):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def fingerprints(workdir: str | pathlib.Path, params: dict) -> set[str]:
    """Return `fingerprint` of read parameters, and of those that an export rounded, if it did."""
    checkpoints = Checkpoints(workdir, create=False)
    manifest = checkpoints.restore(checkpoints.latest_step())["manifest"]
    checkpoints.close()
    return {fingerprint(params), manifest.get(FINGERPRINT, "")}


def abstract(vae: KLVAE | F8VAE) -> dict:
    """Return the parameter tree of `ShapeDtypeStruct`, without running anything."""
    side = vae.factor * getattr(vae, "patch", 1)
    images = jax.ShapeDtypeStruct((1, side, side, vae.image_channels), jnp.float32)
    return jax.eval_shape(vae.init, seeds.key(0), images)["params"]
