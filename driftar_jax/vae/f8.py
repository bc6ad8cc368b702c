"""The f8 autoencoder of NextStep-1: images to latents at an eighth of the size, and back.

Source: `models/modeling_flux_vae.py` of stepfun-ai/NextStep-1 at 6e49bae, a Flux autoencoder
without quantisation convolutions whose encoder normalises every patch of its means. With the
released settings a clean token is therefore a vector of mean 0 and standard deviation 1.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from driftar_jax.vae import kl

_EPS = 1e-6


class F8VAE(nn.Module):
    """Encode and decode pictures. What a release decides has no default: its `config.json` says it.

    Attributes:
      normalise: whether the encoder normalises its means.
      patch: p, side of the patches that are normalised together; 1 takes single positions.
      scale, shift: latents are `(z - shift) * scale` of the posterior's z.
      deterministic: latents are the means; else draws of the posterior.
      channels, multipliers, num_res_blocks, latent_channels, image_channels, dtype: as in
        `kl.KLVAE`.
    """

    normalise: bool
    patch: int
    scale: float
    shift: float
    deterministic: bool
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    latent_channels: int = 16
    image_channels: int = 3
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        """Make encoder and decoder; raises ValueError where `patch` is below 1."""
        if self.patch < 1:
            raise ValueError(f"patch: got {self.patch}, allowed a whole number of at least 1")
        shared = (self.channels, self.multipliers, self.num_res_blocks)
        # No attention on the levels, only in the middle: the difference between the two encoders.
        self.encoder = kl.Encoder(*shared, self.latent_channels, (), self.dtype)
        self.decoder = kl.Decoder(*shared, self.image_channels, self.dtype)

    @property
    def factor(self) -> int:
        """Say how much smaller a latent is than its image, per side."""
        return 2 ** (len(self.multipliers) - 1)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Reconstruction from the mode of the posterior; `[B, H, W, 3]` -> the same."""
        return self.decode(kl.mode(self.encode(images)))

    def encode(self, images: jax.Array) -> jax.Array:
        """Return parameters of the posterior.

        Args:
          images: `[B, H, W, 3]` floating in [-1, 1]; H and W multiples of `factor * patch`.

        Returns:
          Moments `[B, h, w, 2 * latent_channels]` float32: means, normalised where `normalise` is
          set, then log variances as they are.

        Raises:
          ValueError: the size of the images does not divide.
        """
        step = self.factor * (self.patch if self.normalise else 1)
        if images.shape[1] % step or images.shape[2] % step:
            raise ValueError(f"images: got shape {images.shape}, allowed sides that {step} divides")
        moments = self.encoder(images).astype(jnp.float32)
        if not self.normalise:
            return moments
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        # The means alone: the log variances belong to the posterior before it was normalised.
        return jnp.concatenate([normalise_patches(mean, self.patch), log_variance], axis=-1)

    def decode(self, z: jax.Array) -> jax.Array:
        """Map `z [B, h, w, latent_channels]` of `from_latents` -> images `[B, H, W, 3]` float32.

        The image is nominally in [-1, 1]; nothing is clipped.
        """
        return self.decoder(z).astype(jnp.float32)

    def latents(self, moments: jax.Array, noise: jax.Array) -> jax.Array:
        """Map moments `[..., 2c]` and standard normal `[..., c]` -> latents `[..., c]` float32.

        A deterministic autoencoder takes the noise and does not read it.
        """
        return self.to_latents(
            kl.mode(moments) if self.deterministic else kl.sample(moments, noise)
        )

    def to_latents(self, z: jax.Array) -> jax.Array:
        """Return the inverse of `from_latents`."""
        return (z - self.shift) * self.scale

    def from_latents(self, latents: jax.Array) -> jax.Array:
        """Map latents `[..., c]` -> what `decode` takes."""
        return latents.astype(jnp.float32) / self.scale + self.shift


def normalise_patches(x: jax.Array, patch: int) -> jax.Array:
    """Return `[B, h, w, c]` with mean 0 and standard deviation 1 in every `patch x patch`."""
    batch, height, width, channels = x.shape
    # With the released settings a patch is a token of the host, so that each token is normalised.
    folded = x.reshape(batch, height // patch, patch, width // patch, patch, channels)
    axes = (2, 4, 5)
    folded = folded - jnp.mean(folded, axis=axes, keepdims=True)
    variance = jnp.mean(folded**2, axis=axes, keepdims=True)
    return (folded * jax.lax.rsqrt(variance + _EPS)).reshape(x.shape)
