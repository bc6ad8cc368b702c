"""From a batch to clean tokens: patches of pixels, or a fresh draw of latents."""

import jax
import jax.numpy as jnp

from driftar_jax.data.pixels import patchify, to_unit_range
from driftar_jax.vae import kl


def tokenise(
    batch: dict[str, jax.Array], key: jax.Array, *, patch_size: int, mirror: bool
) -> jax.Array:
    """Return tokens of a training batch.

    Args:
      batch: `image` uint8 `[B, H, W, C]`, or `moments` float32 `[B, 2, h, w, 2c]` of the image and
        of its mirror image.
      key: typed key; read for moments alone: every visit of an image draws its latent anew.
      patch_size: side of a patch.
      mirror: with moments, take the mirror image's with probability 1/2. Pixels were mirrored when
        they were read.

    Returns:
      `[B, N, C]` float32.
    """
    if "image" in batch:
        return patchify(to_unit_range(batch["image"]), patch_size)
    moments = batch["moments"]
    # Further keys than those that a loss splits off the same key.
    key_mirror, key_noise = jax.random.split(jax.random.fold_in(key, 64))
    chosen = moments[:, 0]
    if mirror:
        mirrored = jax.random.bernoulli(key_mirror, jnp.float32(0.5), moments.shape[:1])
        chosen = jnp.where(mirrored[:, None, None, None], moments[:, 1], chosen)
    noise = jax.random.normal(key_noise, kl.mode(chosen).shape, dtype=jnp.float32)
    return patchify(kl.sample(chosen, noise) * kl.SCALE, patch_size)
