"""An autoencoder on disk: the workdir that `convert` and `train` write, and what is read of it: the
module, or the last step of a host that works on its latents (`ToPixels`).
"""

import dataclasses
import functools
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
from driftar_jax.data.pixels import to_uint8, to_unit_range
from driftar_jax.sharding import make_mesh, replicated
from driftar_jax.storage.checkpoints import Checkpoints, read_config
from driftar_jax.vae import KINDS, Autoencoder, class_of, kl
from driftar_jax.vae.kl import KLVAE

TASK = "vae"
# Of a manifest: the fingerprint of the run that was exported, whose latents sets are made of.
FINGERPRINT = "fingerprint"
# Latents decoded at once: at 256x256 each takes about 150 MB of activations.
TILE = 4

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


def config_of(vae: Autoencoder) -> dict:
    """Return what `config.json` holds of an autoencoder."""
    fields = {f.name: getattr(vae, f.name) for f in dataclasses.fields(vae)}
    for name in ("parent", "name", "dtype"):
        fields.pop(name)
    (kind,) = (kind for kind, (_, name) in KINDS.items() if type(vae).__name__ == name)
    return {"task": TASK, "kind": kind, "vae": fields}


def module(config: dict, dtype: jnp.dtype = jnp.float32, kind: str = "vae-kl16") -> Autoencoder:
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
    return class_of(kind)(**fields, dtype=dtype)


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
) -> tuple[Autoencoder, dict]:
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


def abstract(vae: Autoencoder) -> dict:
    """Return the parameter tree of `ShapeDtypeStruct`, without running anything."""
    side = vae.factor * getattr(vae, "patch", 1)
    images = jax.ShapeDtypeStruct((1, side, side, vae.image_channels), jnp.float32)
    return jax.eval_shape(vae.init, seeds.key(0), images)["params"]


@dataclasses.dataclass(frozen=True)
class ToPixels:
    """Turns token grids into images; holds the autoencoder, which decodes `tile` at a time."""

    vae: Autoencoder
    params: dict
    tile: int = TILE

    def __call__(self, grid: jax.Array) -> jax.Array:
        """Map `grid [B, h, w, c]` float32 tokens -> uint8 `[B, h*f, w*f, 3]`."""
        return _decode(self.vae, self.tile, self.params, grid)

    def lower(self, grid: jax.ShapeDtypeStruct) -> jax.stages.Lowered:
        """Lower the call for grids of this shape, to be compiled."""
        return _decode.lower(self.vae, self.tile, self.params, grid)

    def grid(self, images: jax.Array) -> jax.Array:
        """Map uint8 `[B, h*f, w*f, 3]` to `[B, h, w, c]` float32 tokens of the posterior's mode."""
        return _encode(self.vae, self.tile, self.params, images)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decode(vae: Autoencoder, tile: int, params: dict, grid: jax.Array) -> jax.Array:
    return to_uint8(kl.decode(vae, params, vae.from_latents(grid), tile=tile))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(vae: Autoencoder, tile: int, params: dict, images: jax.Array) -> jax.Array:
    return vae.to_latents(kl.mode(kl.encode(vae, params, to_unit_range(images), tile=tile)))


def to_pixels(workdir: str | pathlib.Path, channels: int, known: str | None = None) -> ToPixels:
    """Load the autoencoder that a host of `channels` latent channels needs.

    Args:
      workdir: folder written by `convert --family=vae-kl16`.
      channels: of the latents.
      known: `fingerprint` of the autoencoder that the training set was encoded with; None: any may
        be it.

    Raises:
      ValueError: no folder of an autoencoder, or one of other latents; one line.
    """
    try:
        have = module(read_config(workdir)).latent_channels
        if have != channels:
            raise ValueError(f"it has {have} latent channels, not {channels}")
        vae, params = load(workdir)
        if known and known not in fingerprints(workdir, params):
            raise ValueError("the training set was encoded with another one")
        return ToPixels(vae, jax.device_put(params, replicated(make_mesh())))
    except ValueError as error:
        allowed = f"a folder written by convert --family=vae-kl16 that fits the host ({error})"
        raise wrong("vae", str(workdir), allowed) from error
