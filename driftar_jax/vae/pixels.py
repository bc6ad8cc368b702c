"""From sampled latents to images: the last step of a host that works in an autoencoder's space."""

import dataclasses
import functools
import pathlib

import jax

from driftar_jax.config import wrong
from driftar_jax.data.pixels import to_uint8, to_unit_range
from driftar_jax.sharding import make_mesh, replicated
from driftar_jax.storage.checkpoints import read_config
from driftar_jax.vae import kl, stored
from driftar_jax.vae.f8 import F8VAE

# Latents decoded at once: at 256x256 each takes about 150 MB of activations.
TILE = 4


@dataclasses.dataclass(frozen=True)
class ToPixels:
    """Turns token grids into images; holds the autoencoder, which decodes `tile` at a time."""

    vae: kl.KLVAE | F8VAE
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
def _decode(vae: kl.KLVAE | F8VAE, tile: int, params: dict, grid: jax.Array) -> jax.Array:
    return to_uint8(kl.decode(vae, params, vae.from_latents(grid), tile=tile))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(vae: kl.KLVAE | F8VAE, tile: int, params: dict, images: jax.Array) -> jax.Array:
    return vae.to_latents(kl.mode(kl.encode(vae, params, to_unit_range(images), tile=tile)))


def load(workdir: str | pathlib.Path, channels: int, fingerprint: str | None = None) -> ToPixels:
    """Load the autoencoder that a host of `channels` latent channels needs.

    Args:
      workdir: folder written by `convert --family=vae-kl16`.
      channels: of the latents.
      fingerprint: of the autoencoder that the training set was encoded with, where it is known.

    Raises:
      ValueError: no folder of an autoencoder, or one of other latents; one line.
    """
    try:
        have = stored.module(read_config(workdir)).latent_channels
        if have != channels:
            raise ValueError(f"it has {have} latent channels, not {channels}")
        vae, params = stored.load(workdir)
        if fingerprint and fingerprint not in stored.fingerprints(workdir, params):
            raise ValueError("the training set was encoded with another one")
        return ToPixels(vae, jax.device_put(params, replicated(make_mesh())))
    except ValueError as error:
        allowed = f"a folder written by convert --family=vae-kl16 that fits the host ({error})"
        raise wrong("vae", str(workdir), allowed) from error
