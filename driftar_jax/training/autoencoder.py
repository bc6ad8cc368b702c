"""The autoencoder as a task: pictures to latents of the scale that hosts train on, and back.

`L = |x - y| + (x - y)^2 + perceptual * P + kl * KL + S`, means over pixels and over latent numbers.
The groups of parameters are those of `kl.KLVAE`, so that a workdir is read as a converted one is.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from driftar_jax import model
from driftar_jax.config import wrong
from driftar_jax.data.pixels import to_unit_range
from driftar_jax.vae import kl, stored

_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class AutoencoderTask:
    """A KL autoencoder.

    Attributes:
      vae: the module.
      images: what the data decides.
      kl_weight: of the posterior's nats from a standard normal, per number of a token.
      perceptual_weight: of `perceptual_distance`; 0 is without.
      maps: `(params, [B, H, W, 3]) -> {name: [B, h, w, c]}`, a frozen network; None: none.
      maps_params: its parameters.
    """

    vae: kl.KLVAE
    images: model.ImageSpec
    kl_weight: float
    perceptual_weight: float = 0.0
    maps: Callable[[Any, jax.Array], dict[str, jax.Array]] | None = None
    # Arrays cannot be hashed or compared, and a task is; `maps` stands for them.
    maps_params: Any = dataclasses.field(default=None, compare=False, hash=False)
    freeze_step: None = None
    tracked: tuple[str, ...] = ()

    def init(self, key: jax.Array):
        """See `Task.init`; the groups are the encoder's and the decoder's parts."""
        return self.vae.init(key, jnp.zeros((1, *self.images.image_shape)))["params"]

    def trainable(self, frozen: bool) -> tuple[str, ...]:
        """See `Task.trainable`: all of it."""
        learn = ("encoder", "quant_conv", "post_quant_conv", "decoder")
        return (*learn, "encoder_shortcut", "decoder_shortcut") if self.vae.shortcut else learn

    def loss(self, params, batch, key, step, frozen):
        """See `Task.loss`: pixels' absolute and squared error, nats, scale, perceptual distance."""
        image = to_unit_range(batch["image"])
        moments = self.vae.apply({"params": params}, image, method="encode")
        noise = jax.random.normal(key, kl.mode(moments).shape, jnp.float32)
        latent = kl.sample(moments, noise)
        output = self.vae.apply({"params": params}, latent, method="decode")
        absolute, square = jnp.abs(output - image).mean(), jnp.square(output - image).mean()
        nats = token_kl(moments)
        scale = scale_loss(latent * kl.SCALE)
        loss = absolute + square + self.kl_weight * nats + scale
        metrics = {
            "absolute": absolute,
            # The peak is 2, pixels being in [-1, 1].
            "psnr": 10 * jnp.log10(4.0 / square),
            "kl": nats,
            "scale": scale,
            "posterior_std": (kl.std(moments) * kl.SCALE).mean(),
        }
        if self.maps is None:
            return loss, metrics
        features = self.maps(self.maps_params, output), self.maps(self.maps_params, image)
        perceptual = perceptual_distance(*features)
        return loss + self.perceptual_weight * perceptual, metrics | {"perceptual": perceptual}


def token_kl(moments: jax.Array) -> jax.Array:
    """Return the mean nats of a token's number from a standard normal; `moments [B, h, w, 2c]` of a
    latent.
    """
    std = kl.std(moments) * kl.SCALE
    mean = kl.mode(moments) * kl.SCALE
    return 0.5 * jnp.mean(mean**2 + std**2 - 1.0 - 2.0 * jnp.log(std))


def scale_loss(tokens: jax.Array) -> jax.Array:
    """Return 0 where every channel of `tokens [B, h, w, c]` has mean 0 and standard deviation 1.

    Hosts and heads take that scale for granted. It costs nothing to have: an autoencoder may scale
    its latents as it likes.
    """
    mean = tokens.mean(axis=(0, 1, 2), keepdims=True)
    std = jnp.sqrt(jnp.square(tokens - mean).mean(axis=(0, 1, 2), keepdims=True) + _EPS)
    return jnp.mean(mean**2 + (std - 1.0) ** 2)


def perceptual_distance(decoded: dict[str, jax.Array], image: dict[str, jax.Array]) -> jax.Array:
    """Return the mean squared difference of unit vectors at every place, summed over the maps.

    Source: LPIPS (arXiv 1801.03924) without learnt weights of channels.
    """
    return sum(
        jnp.square(_unit(decoded[name]) - _unit(image[name])).sum(-1).mean() for name in decoded
    )


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + _EPS)


def build(
    config: Any, images: model.ImageSpec, space: tuple[Callable, Any] | None
) -> AutoencoderTask:
    """Build the task of a checked config; `space` is `AutoencoderTask.maps` and its parameters.

    Raises:
      ValueError: the pictures are grey; one line.
    """
    maps, params = (None, None) if space is None else space
    vae = stored.trained(config.autoencoder, jnp.dtype(config.autoencoder.dtype))
    if images.image_shape[-1] != vae.image_channels:
        allowed = f"images of {vae.image_channels} channels for task autoencoder"
        raise wrong("data.name", config.data.name, allowed)
    return AutoencoderTask(
        vae,
        images,
        kl_weight=config.autoencoder.kl,
        perceptual_weight=config.autoencoder.perceptual,
        maps=maps,
        maps_params=params,
    )
