"""The KL-16 autoencoder of MAR: images to latents at a sixteenth of the size, and back.

Source: `models/vae.py` of LTH14/mar at fe470ac (the LDM autoencoder). Images and latents are
channel-last; latents become tokens by `SCALE`. Parameters carry no logical axes: at 66 million the
autoencoder is replicated.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from driftar_jax.data.pixels import patchify, unpatchify

# Tokens are latents times this; chosen by MAR so that tokens have a standard deviation near 1.
SCALE = 0.2325
# Brightness, red against blue, green against both: orthonormal rows.
_COLOURS = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
# By how much a difference of colour counts as a higher frequency, in half waves of a square.
_OFFSETS = (0.0, 1.6, 2.6)
# A coefficient of frequency r is taken to be this wide for pixels in [-1, 1], over the square's
# side; training corrects it.
_WIDTH, _FALL = 0.8, 1.9


def _norm(name: str) -> nn.GroupNorm:
    return nn.GroupNorm(32, epsilon=1e-6, dtype=jnp.float32, use_fast_variance=False, name=name)


class ResBlock(nn.Module):
    """Group norm, swish, 3x3 convolution, twice; a 1x1 shortcut only where channels change."""

    channels: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[B, H, W, any]` -> `[B, H, W, channels]`."""
        h = x
        for i in (1, 2):
            h = nn.silu(_norm(f"norm{i}")(h))
            h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, name=f"conv{i}")(h)
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, dtype=self.dtype, name="nin_shortcut")(x)
        return x + h


class AttentionBlock(nn.Module):
    """One head over all positions, residual."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[B, H, W, C]` -> the same."""
        batch, height, width, channels = x.shape
        # All positions are one sequence: this attention knows no grid.
        h = _norm("norm")(x).reshape(batch, height * width, channels)
        q, k, v = (nn.Dense(channels, dtype=self.dtype, name=n)(h)[:, :, None] for n in "qkv")
        h = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
        return x + nn.Dense(channels, dtype=self.dtype, name="proj_out")(h)


class _Middle(nn.Module):
    channels: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        x = ResBlock(self.channels, self.dtype, name="block_1")(x)
        x = AttentionBlock(self.dtype, name="attn_1")(x)
        return ResBlock(self.channels, self.dtype, name="block_2")(x)


class Encoder(nn.Module):
    """Image to the two halves of the moments, before `quant_conv`; fields as in `KLVAE`."""

    channels: int
    multipliers: tuple[int, ...]
    num_res_blocks: int
    latent_channels: int
    attention_levels: tuple[int, ...]
    dtype: jnp.dtype
    out_init: nn.initializers.Initializer = nn.linear.default_kernel_init

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[B, H, W, 3]` -> `[B, H/f, W/f, 2 * latent_channels]`."""
        conv = lambda n, name: nn.Conv(n, (3, 3), dtype=self.dtype, name=name)  # noqa: E731
        x = conv(self.channels, "conv_in")(x)
        for level, multiplier in enumerate(self.multipliers):
            width = self.channels * multiplier
            for i in range(self.num_res_blocks):
                x = ResBlock(width, self.dtype, name=f"down_{level}_block_{i}")(x)
                if level in self.attention_levels:
                    x = AttentionBlock(self.dtype, name=f"down_{level}_attn_{i}")(x)
            if level + 1 < len(self.multipliers):
                # One row below and one column to the right, as the original pads.
                x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
                down = f"down_{level}_downsample"
                x = nn.Conv(width, (3, 3), 2, "VALID", dtype=self.dtype, name=down)(x)
        x = _Middle(x.shape[-1], self.dtype, name="mid")(x)
        return _out(2 * self.latent_channels, self)(nn.silu(_norm("norm_out")(x)))


class Decoder(nn.Module):
    """Latents after `post_quant_conv` to the image; fields as in `KLVAE`."""

    channels: int
    multipliers: tuple[int, ...]
    num_res_blocks: int
    image_channels: int
    dtype: jnp.dtype
    out_init: nn.initializers.Initializer = nn.linear.default_kernel_init

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[B, h, w, latent_channels]` -> `[B, h*f, w*f, 3]`; no output activation."""
        conv = lambda n, name: nn.Conv(n, (3, 3), dtype=self.dtype, name=name)  # noqa: E731
        width = self.channels * self.multipliers[-1]
        x = conv(width, "conv_in")(x)
        x = _Middle(width, self.dtype, name="mid")(x)
        for level in reversed(range(len(self.multipliers))):
            width = self.channels * self.multipliers[level]
            # One block more than the encoder has, as in the original.
            for i in range(self.num_res_blocks + 1):
                x = ResBlock(width, self.dtype, name=f"up_{level}_block_{i}")(x)
            if level:
                # Nearest-neighbour upsampling before a convolution, as released weights expect.
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
                x = conv(width, f"up_{level}_upsample")(x)
        return _out(self.image_channels, self)(nn.silu(_norm("norm_out")(x)))


def _out(features: int, of: "Encoder | Decoder") -> nn.Conv:
    """The last convolution of an encoder or decoder."""
    how = dict(dtype=of.dtype, kernel_init=of.out_init, name="conv_out")
    return nn.Conv(features, (3, 3), **how)


class KLVAE(nn.Module):
    """Encode and decode pictures; defaults are KL-16.

    Attributes:
      channels: of the first level; times each multiplier a multiple of 32.
      multipliers: width of each level over `channels`; every level but the last halves the size.
      num_res_blocks: per encoder level; the decoder has one more.
      latent_channels: channels of a latent.
      image_channels: channels of an image.
      attention_levels: encoder levels with attention after each block, whatever the image size.
      fold: side of the squares of pixels that become channels before the first convolution and
        pixels again after the last; the work falls with its square.
      shortcut: a linear way around all levels, from the pixels of a latent's square to its moments
        and back, which begins as a cosine transform: training has only the rest to learn (shortcuts
        as in arXiv 2410.10733, but learnt).
      dtype: type of the convolutions; norms stay float32.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    latent_channels: int = 16
    image_channels: int = 3
    attention_levels: tuple[int, ...] = (4,)
    fold: int = 1
    shortcut: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        """Make encoder, decoder, what lies about the latent, and the linear way of `shortcut`."""
        shared = (self.channels, self.multipliers, self.num_res_blocks)
        more = dict(dtype=self.dtype)
        if self.shortcut:
            more["out_init"] = nn.initializers.zeros
            there, back = cosine_maps(self.factor, self.image_channels, self.latent_channels)
            there = np.concatenate([there / SCALE, np.zeros_like(there)], axis=1)
            self.encoder_shortcut = _linear(there, self.dtype)
            self.decoder_shortcut = _linear(back * SCALE, self.dtype)
        self.encoder = Encoder(*shared, self.latent_channels, self.attention_levels, **more)
        self.decoder = Decoder(*shared, self.image_channels * self.fold**2, **more)
        self.quant_conv = nn.Dense(2 * self.latent_channels, dtype=self.dtype)
        self.post_quant_conv = nn.Dense(self.latent_channels, dtype=self.dtype)

    @property
    def factor(self) -> int:
        """Say how much smaller a latent is than its image, per side."""
        return self.fold * 2 ** (len(self.multipliers) - 1)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Reconstruction from the mode of the posterior; `[B, H, W, 3]` -> the same."""
        return self.decode(mode(self.encode(images)))

    def encode(self, images: jax.Array) -> jax.Array:
        """Return parameters of the posterior.

        Args:
          images: `[B, H, W, 3]` floating in [-1, 1]; H and W multiples of `factor`.

        Returns:
          Moments `[B, h, w, 2 * latent_channels]` float32: means, then log variances (unclamped).

        Raises:
          ValueError: the size of the images does not divide.
        """
        if images.shape[1] % self.factor or images.shape[2] % self.factor:
            raise ValueError(
                f"images: got shape {images.shape}, allowed sides that {self.factor} divides"
            )
        moments = self.quant_conv(self.encoder(_folded(images, self.fold)))
        if self.shortcut:
            moments = moments + self.encoder_shortcut(_folded(images, self.factor))
        return moments.astype(jnp.float32)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Map `[B, h, w, latent_channels]` (tokens divided by `SCALE`) -> `[B, H, W, 3]` float32.

        The image is nominally in [-1, 1]; nothing is clipped.
        """
        image = _unfolded(self.decoder(self.post_quant_conv(latents)), self.fold)
        if self.shortcut:
            image = image + _unfolded(self.decoder_shortcut(latents), self.factor)
        return image.astype(jnp.float32)

    def from_latents(self, latents: jax.Array) -> jax.Array:
        """Map latents as tokens hold them `[..., c]` -> what `decode` takes."""
        return latents / SCALE

    def to_latents(self, z: jax.Array) -> jax.Array:
        """Return the inverse of `from_latents`."""
        return SCALE * z


def _linear(kernel: np.ndarray, dtype: jnp.dtype) -> nn.Dense:
    """A linear layer that begins as `kernel [in, out]`."""
    begin = lambda key, shape, dtype=jnp.float32: jnp.asarray(kernel, dtype)  # noqa: E731
    return nn.Dense(kernel.shape[1], dtype=dtype, kernel_init=begin)


def cosine_maps(side: int, channels: int, numbers: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the linear maps from a square's pixels to its lowest coefficients, each about 1 wide,
    and back: where the shortcut of an autoencoder begins.

    A discrete cosine transform of brightness and of two differences of colour, as pictures have
    been packed for decades: of drawn pictures of 64x64, 16 numbers for 8x8 pixels give 25.5 dB
    back.

    Args:
      side: of the square.
      channels: of the image; colours are told apart for 3 alone.
      numbers: how many coefficients; where a square has fewer, the others stay 0.

    Returns:
      `[channels side side, numbers]` and `[numbers, channels side side]`, float64; pixels stand in
      the order of `data.pixels.patchify`. The second is the pseudo-inverse of the first.
    """
    wave = np.cos(np.pi * (np.arange(side) + 0.5) * np.arange(side)[:, None] / side)
    wave *= np.sqrt(np.where(np.arange(side) > 0, 2, 1) / side)[:, None]
    colours = _COLOURS if channels == 3 else np.eye(channels)
    offsets = np.array(_OFFSETS if channels == 3 else [0.0] * channels)
    basis = np.einsum("kc,ui,vj->kuvcij", colours, wave, wave).reshape(-1, channels * side**2)
    u, v = np.arange(side)[:, None], np.arange(side)
    frequency = (np.hypot(u, v) + offsets[:, None, None]).ravel()
    lowest = np.argsort(frequency, kind="stable")[:numbers]
    width = _WIDTH * side / (1 + _FALL * frequency[lowest])
    there = np.zeros((basis.shape[1], numbers))
    back = np.zeros((numbers, basis.shape[1]))
    there[:, : len(lowest)] = (basis[lowest] / width[:, None]).T
    back[: len(lowest)] = basis[lowest] * width[:, None]
    return there, back


def _folded(images: jax.Array, side: int) -> jax.Array:
    """`[B, s h, s w, c]` -> `[B, h, w, c s s]`."""
    batch, height, width, _ = images.shape
    return patchify(images, side).reshape(batch, height // side, width // side, -1)


def _unfolded(x: jax.Array, side: int) -> jax.Array:
    """The inverse of `_folded`."""
    batch, height, width, channels = x.shape
    tokens = x.reshape(batch, height * width, channels)
    return unpatchify(tokens, height * side, width * side, side)


def mode(moments: jax.Array) -> jax.Array:
    """Map `[..., 2c]` -> the mean `[..., c]` float32."""
    return jnp.split(moments.astype(jnp.float32), 2, axis=-1)[0]


def std(moments: jax.Array) -> jax.Array:
    """Map `[..., 2c]` -> deviation `[..., c]` float32; log variance clamped to [-30, 20]."""
    return jnp.exp(0.5 * _log_variance(moments))


def sample(moments: jax.Array, noise: jax.Array) -> jax.Array:
    """Map `[..., 2c]`, standard normal `[..., c]` -> a draw `[..., c]` float32 of the posterior."""
    return mode(moments) + std(moments) * noise


def kl(moments: jax.Array) -> jax.Array:
    """Map `[B, h, w, 2c]` -> `[B]` float32, nats from the standard normal, summed over a latent."""
    log_variance = _log_variance(moments)
    terms = mode(moments) ** 2 + jnp.exp(log_variance) - 1.0 - log_variance
    return 0.5 * jnp.sum(terms, axis=(1, 2, 3))


def _log_variance(moments: jax.Array) -> jax.Array:
    return jnp.clip(jnp.split(moments.astype(jnp.float32), 2, axis=-1)[1], -30.0, 20.0)


def encode(vae: KLVAE, params: dict, images: jax.Array, *, tile: int) -> jax.Array:
    """Run `vae.encode` over any batch, `tile` images at a time, so that memory does not grow with
    B.
    """
    return _tiled(lambda x: vae.apply({"params": params}, x, method="encode"), images, tile)


def decode(vae: KLVAE, params: dict, latents: jax.Array, *, tile: int) -> jax.Array:
    """Run `vae.decode` over any batch, `tile` latents at a time."""
    return _tiled(lambda x: vae.apply({"params": params}, x, method="decode"), latents, tile)


def _tiled(function, x: jax.Array, tile: int) -> jax.Array:
    if tile < 1:
        raise ValueError(f"tile: got {tile}, allowed at least 1")
    batch = x.shape[0]
    if batch <= tile:
        return function(x)
    tiles = -(-batch // tile)
    # One compilation serves every batch: the last tile is filled with zeros, whose images are cut
    # off.
    x = jnp.pad(x, [(0, tiles * tile - batch)] + [(0, 0)] * (x.ndim - 1))
    out = jax.lax.map(function, x.reshape(tiles, tile, *x.shape[1:]))
    return out.reshape(tiles * tile, *out.shape[2:])[:batch]
