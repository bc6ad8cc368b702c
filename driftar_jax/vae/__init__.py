"""Autoencoders: one table of kinds, by the family of `convert` that writes each."""

import importlib
from typing import Protocol

import jax

# File of this folder, and the class in it.
KINDS = {"vae-kl16": ("kl", "KLVAE"), "vae-f8": ("f8", "F8VAE")}


class Autoencoder(Protocol):
    """A kind of autoencoder, as a host on its latents asks it; a module of flax.

    Attributes:
      factor: how much smaller a latent is than its image, per side.
      image_channels, latent_channels: channels of each.
    """

    factor: int
    image_channels: int
    latent_channels: int

    def encode(self, images: jax.Array) -> jax.Array:
        """Map `[B, H, W, C]` in [-1, 1] -> moments `[B, h, w, 2c]` float32 of the posterior."""

    def decode(self, z: jax.Array) -> jax.Array:
        """Map `z [B, h, w, c]` of `from_latents` -> images `[B, H, W, C]` float32, not clipped."""

    def from_latents(self, latents: jax.Array) -> jax.Array:
        """Map latents as tokens hold them `[..., c]` -> what `decode` takes."""

    def to_latents(self, z: jax.Array) -> jax.Array:
        """Return the inverse of `from_latents`."""


def class_of(kind: str) -> type[Autoencoder]:
    """Return the module's class of a kind; only its own file is imported."""
    file, name = KINDS[kind]
    return getattr(importlib.import_module(f"driftar_jax.vae.{file}"), name)
