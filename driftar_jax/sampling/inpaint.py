"""Filling in: an image and a mask, of which all but the masked part stands."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from driftar_jax import seeds
from driftar_jax.config import wrong
from driftar_jax.data import images
from driftar_jax.data.pixels import patchify, to_unit_range
from driftar_jax.sampling import batches
from driftar_jax.sampling.generator import Generator, Samples
from driftar_jax.sampling.settings import Settings
from driftar_jax.types import Hole
from driftar_jax.vae import stored

_GREY = 128


@seeds.fixed()
def fill(
    loaded: Generator,
    image: np.ndarray,
    mask: np.ndarray,
    labels: Any,
    seed: int = 0,
    *,
    batch_size: int | None = None,
    settings: Settings | None = None,
    **changes,
) -> Samples:
    """Generate one image per label, equal to `image` outside of `mask`.

    A token of which the mask touches a pixel is generated, all others are known from the start.
    With an autoencoder the hole is grey when the image is encoded, so that nothing of what it held
    is seen; its latents at the border know of the grey.

    Args:
      loaded: a checkpoint of a host that reveals tokens in any order (MAR).
      image: uint8 `[H, W, C]`, of the size that the checkpoint makes.
      mask: bool `[H, W]`, True where the image is generated.
      labels: `[n]` classes, -1 for none.
      seed: as for `Generator.sample`.
      batch_size: images per call; None: 256.
      settings: checked; None: those of the config with `changes`.
      **changes: fields of `Settings`; AR steps beyond one per unknown token are left out.

    Returns:
      `Samples`.

    Raises:
      ValueError: another host, another size, an empty mask, drafts, or a bad setting.
    """
    check(loaded)
    seed = seeds.check_seed(seed)
    settings = loaded.checked(**changes) if settings is None else settings
    condition = loaded.conditions(labels, seed, settings)
    if settings.gamma:
        raise wrong("gamma", settings.gamma, "0 together with a mask")
    if settings.draft_steps:
        raise wrong("draft_steps", settings.draft_steps, "0 together with a mask")
    hole = _hole(loaded, image, mask)
    # Each step reveals a token at least; with a small hole there are not enough for all steps.
    settings = settings.changed(ar_steps=min(settings.ar_steps, hole.unknown))
    new_images, counts = batches.sample_images(
        loaded.model,
        settings,
        loaded.params,
        condition,
        seed,
        batch_size=256 if batch_size is None else batch_size,
        to_pixels=loaded.to_pixels,
        hole=hole,
    )
    # Tokens that the mask touches were made whole; outside of it the pixels are the image's own.
    return Samples(np.where(mask[None, :, :, None], new_images, image[None]), counts)


def check(generator: Generator) -> None:
    """Raise ValueError where the host does not reveal tokens in any order."""
    family = generator.model.family
    if family.order != "any":
        allowed = f"none: {family.name} does not reveal tokens in any order, mar does"
        raise wrong("mask", "a mask", allowed)


def _hole(loaded: Generator, image: np.ndarray, mask: np.ndarray) -> Hole:
    """What is known of the tokens of `image`."""
    wanted = pixel_shape(loaded)
    height, width, _ = wanted
    if image.shape != wanted:
        raise wrong("image", "x".join(map(str, image.shape)), "x".join(map(str, wanted)))
    if mask.shape != wanted[:2]:
        raise wrong("mask", "x".join(map(str, mask.shape)), f"{height}x{width}, as the image")
    for name, array, kind in (("image", image, np.uint8), ("mask", mask, np.bool_)):
        if array.dtype != kind:
            raise wrong(name, f"an array of {array.dtype}", np.dtype(kind).name)
    if not mask.any():
        allowed = "one with a white part, which is generated (black or transparent stands)"
        raise wrong("mask", "no pixel", allowed)
    grid = grids(loaded, np.where(mask[:, :, None], _GREY, image).astype(np.uint8)[None])
    known = known_tokens(loaded, mask)
    tokens = patchify(grid, loaded.model.images.patch_size)[0]
    return Hole(tokens, jnp.asarray(known), int((~known).sum()))


def known_tokens(loaded: Generator, mask: np.ndarray) -> np.ndarray:
    """Say which tokens a mask `[H, W]` leaves alone, `[N]` bool."""
    spec, (height, width) = loaded.model.images, mask.shape
    # Pixels of a token per side: those of its patch, times what an autoencoder makes smaller.
    side = spec.patch_size * height // spec.image_shape[0]
    tiles = mask.reshape(height // side, side, width // side, side)
    return ~tiles.any(axis=(1, 3)).reshape(-1)


def grids(loaded: Generator, images: np.ndarray) -> jax.Array:
    """Return what a checkpoint's tokens are patches of: uint8 `[n, H, W, C]` -> float32 `[n, h, w,
    c]`.
    """
    pictures = jnp.asarray(images)
    return loaded.to_pixels.grid(pictures) if _decodes(loaded) else to_unit_range(pictures)


def _decodes(loaded: Generator) -> bool:
    return isinstance(loaded.to_pixels, stored.ToPixels)


def pixel_shape(loaded: Generator) -> tuple[int, int, int]:
    """Return `(H, W, C)` of the images that a checkpoint makes."""
    height, width, channels = loaded.model.images.image_shape
    if not _decodes(loaded):
        return height, width, channels
    factor = loaded.to_pixels.vae.factor
    return height * factor, width * factor, 3


def read(image: str, mask: str, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Read `image [H, W, channels]` uint8 and `mask [H, W]` bool of two files.

    White is generated; black and what is transparent in the mask stands.

    Raises:
      ValueError: a file is missing or no picture.
    """
    arrays = []
    # What is transparent in a mask is not drawn on, so it stands.
    for name, path, count, behind in (("image", image, channels, 255), ("mask", mask, 1, 0)):
        kept = dict(size=None, center_crop=False, background=behind)
        try:
            arrays.append(images.decode(path, channels=count, **kept))
        except images.BadImage as error:
            raise wrong(name, path, f"a picture ({error})") from None
    return arrays[0], arrays[1][..., 0] >= _GREY
