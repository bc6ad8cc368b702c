"""The feature space of a whole-grid drift run, read from the checkpoint that it names."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from driftar_jax import seeds
from driftar_jax.config import wrong
from driftar_jax.data.pixels import unpatchify
from driftar_jax.features import maps as spaces
from driftar_jax.layers.blocks import TransformerBlock
from driftar_jax.sampling import load as loading
from driftar_jax.storage.checkpoints import read_config
from driftar_jax.training import masked

# What must agree, so that both networks see the same numbers.
_SAME = ("image_shape", "vae_fingerprint")


def load(settings: Any, manifest: dict) -> tuple[spaces.Features, Any]:
    """Load phi and its frozen parameters for a checked config of whole grids.

    Args:
      settings: `drift.features`, `drift.features_from`, `host` and `seed` are read.
      manifest: facts of the run's data.

    Returns:
      The feature map, and its parameters (None where it has none).

    Raises:
      ValueError: `drift.features_from` is no checkpoint of such a network, or of one for other
        images, latents or another host; one line.
    """
    kind, source = settings.drift.features, settings.drift.features_from
    if kind == "identity":
        return spaces.Identity(), None
    task = "mae" if kind == "mae" else "host or drift"
    try:
        params, facts, _ = loading.read_weights(source)
        config = ml_collections.ConfigDict(read_config(source))
    except ValueError as error:
        allowed = f"a workdir of task {task} ({error})"
        raise wrong("drift.features_from", source, allowed) from error
    if config.task not in task.split(" or "):
        allowed = f"a workdir of task {task} for features {kind}, not {config.task}"
        raise wrong("drift.features_from", source, allowed)
    for name in _SAME:
        if facts.get(name) != manifest.get(name):
            allowed = f"a network for {name} {manifest.get(name)}, not {facts.get(name)}"
            raise wrong("drift.features_from", source, allowed)
    if kind == "mae":
        return maps(config, loading.image_spec(manifest), params["mae"])
    return _penultimate(settings, config, source, facts, manifest, params["host"])


def perceptual(source: str, manifest: dict):
    """Load the maps of a frozen masked autoencoder, by which pictures are compared, and its
    parameters.

    Args:
      source: workdir of task `mae`, trained on pixels.
      manifest: facts of the run's data.

    Returns:
      `(params, [B, H, W, 3]) -> {name: [B, h, w, c]}`, and the parameters.

    Raises:
      ValueError: no such workdir, or one for other images; one line.
    """
    field = "autoencoder.features_from"
    try:
        params, facts, _ = loading.read_weights(source)
        config = ml_collections.ConfigDict(read_config(source))
    except ValueError as error:
        raise wrong(field, source, f"a workdir of task mae ({error})") from error
    if config.task != "mae":
        raise wrong(field, source, f"a workdir of task mae, not {config.task}")
    if facts["image_shape"] != manifest["image_shape"]:
        allowed = f"a network for images {manifest['image_shape']}, not {facts['image_shape']}"
        raise wrong(field, source, allowed)
    module = masked.module(config, loading.image_spec(facts))

    def see(params, images):
        return module.apply({"params": params}, images, method="maps")

    return see, {"encoder": params["mae"]["encoder"]}


def maps(config, images, params):
    """Load phi of a masked autoencoder and its parameters.

    Args:
      config: of task `mae`.
      images: what it was trained on.
      params: tree with the `encoder`; decoder and classifier are not needed.
    """
    to_grid = functools.partial(
        unpatchify,
        height=images.image_shape[0],
        width=images.image_shape[1],
        patch=images.patch_size,
    )
    module = masked.module(config, images)
    return spaces.Maps(module, to_grid), {"encoder": params["encoder"]}


def _penultimate(settings, config, source, facts, manifest, params):
    if config.host.name != settings.host.name:
        allowed = f"a checkpoint of host {settings.host.name}, not {config.host.name}"
        raise wrong("drift.features_from", source, allowed)
    if facts["patch_size"] != manifest["patch_size"]:
        allowed = f"one with patch_size {manifest['patch_size']}, not {facts['patch_size']}"
        raise wrong("drift.features_from", source, allowed)
    width, images = config.host.width, loading.image_spec(manifest)
    module = TransformerBlock(width, config.host.num_heads)

    def block(params, h):
        return module.apply({"params": params}, h)

    space = spaces.Penultimate(block, images.grid, width)
    # Of the run's own seed: a run that is resumed projects as it did before.
    key = seeds.key(settings.seed)
    projection = jax.jit(space.projection, static_argnums=1)(key, images.token_dim)
    name = f"encoder_blocks_{config.host.depth - 2}"
    return space, {"projection": jnp.asarray(projection), "block": params[name]}
