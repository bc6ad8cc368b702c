"""The latent masked autoencoder whose encoder is a feature space of the drift.

Source: arXiv 2602.04770, appendix A.3: a ResNet with group norms, trained to fill masked 2x2
patches of latents or of small images. The sizes follow from the image: any side works.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from driftar_jax.config import Field, choice, former, of_tasks, real, whole, wrong

MASK_PATCH = 2

# What a config of task `mae` has beside what every run has.
FIELDS = of_tasks(
    ("mae",),
    {
        "mae.width": whole(1, "Channels of the first stage; they double with each."),
        "mae.blocks": Field(
            str,
            lambda v: re.fullmatch(r"[1-9]\d{0,2}(,[1-9]\d{0,2}){0,9}", v) is not None,
            "blocks of each stage as in 3,4,6,3",
            "Blocks of each stage; each after the first halves the resolution.",
        ),
        "mae.patch": whole(1, "Side of the patches that are masked as one."),
        "mae.mask_share": former(0.5, "Probability of a patch to be masked."),
        "mae.label_weight": former(0.1, "Largest weight of the classifier's loss."),
        "mae.label_from": real(
            0, 1, "Share of the run after which the label is learnt too.", open_high=True
        ),
        "mae.dtype": choice(("float32", "bfloat16"), "Type of the network's activations."),
    },
)
_MOST_GROUPS = 32


def _conv(features: int, size: int = 3, stride: int = 1, *, bias: bool = False, dtype, name=None):
    return nn.Conv(features, (size, size), strides=stride, use_bias=bias, dtype=dtype, name=name)


def _norm(features: int, name: str | None = None) -> nn.GroupNorm:
    """Float32 group norm with the most groups, up to 32, that divide the channels."""
    # Widths of small models need not be multiples of 32; 1 always divides.
    groups = next(g for g in range(min(_MOST_GROUPS, features), 0, -1) if features % g == 0)
    return nn.GroupNorm(num_groups=groups, dtype=jnp.float32, name=name)


class BasicBlock(nn.Module):
    """conv, norm, ReLU, conv, norm, plus the input (projected where shapes differ), ReLU."""

    features: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[B, H, W, c]` -> `[B, ceil(H / stride), ceil(W / stride), features]`."""
        h = _conv(self.features, stride=self.stride, dtype=self.dtype, name="conv_0")(x)
        h = nn.relu(_norm(self.features, "norm_0")(h))
        h = _conv(self.features, dtype=self.dtype, name="conv_1")(h)
        h = _norm(self.features, "norm_1")(h)
        if x.shape != h.shape:
            x = _conv(self.features, 1, self.stride, dtype=self.dtype, name="skip")(x)
            x = _norm(self.features, "skip_norm")(x)
        return nn.relu(x + h)


class Encoder(nn.Module):
    """Maps at every scale: side H, then H/2, H/4, ... with width C, 2C, 4C, ...

    Attributes:
      width: C.
      blocks: basic blocks of each stage.
      dtype: type of the convolutions.
    """

    width: int
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """Map `[B, H, W, channels]` -> maps `[B, h, w, c]` float32 by name.

        `conv1`; `layerK`, what stage K hands on; `layerK_blkI`, every second block before that.
        """
        h = _conv(self.width, dtype=self.dtype, name="conv1")(x.astype(self.dtype))
        h = nn.relu(_norm(self.width, "conv1_norm")(h))
        maps = {"conv1": h}
        for stage, count in enumerate(self.blocks):
            features = self.width * 2**stage
            for i in range(count):
                # Latents are small already: the first stage keeps their size, unlike a ResNet for
                # images.
                stride = 2 if stage and not i else 1
                name = f"layer{stage + 1}_blk{i + 1}"
                h = BasicBlock(features, stride, self.dtype, name=name)(h)
                if i % 2:
                    maps[name] = h
            # A block ends in a ReLU of a sum, whose scale grows with depth; the norm gives what a
            # stage hands on a scale of its own.
            h = _norm(features, f"layer{stage + 1}_norm")(h)
            maps[f"layer{stage + 1}"] = h
        return {name: m.astype(jnp.float32) for name, m in maps.items()}


class Decoder(nn.Module):
    """From the smallest map back to the image, with every stage as a skip; training only."""

    width: int
    stages: int
    channels: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: dict[str, jax.Array]) -> jax.Array:
        """Turn maps of `Encoder` -> `[B, H, W, channels]` float32."""

        def conv(h, features, name):
            h = _conv(features, dtype=self.dtype, name=name)(h)
            return nn.relu(_norm(features, f"{name}_norm")(h))

        h = maps[f"layer{self.stages}"]
        h = conv(h, h.shape[-1], "first")
        skips = [f"layer{stage}" for stage in range(self.stages - 1, 0, -1)] + ["conv1"]
        for name in skips:
            skip = maps[name]
            # To the size of the skip and not by a factor of 2: an odd side was rounded up on the
            # way down.
            h = jax.image.resize(h, (*skip.shape[:3], h.shape[-1]), "bilinear")
            h = jnp.concatenate([h, skip], axis=-1)
            h = _norm(h.shape[-1], f"{name}_norm")(h)
            h = conv(conv(h, skip.shape[-1], f"{name}_0"), skip.shape[-1], f"{name}_1")
        return _conv(self.channels, 1, bias=True, dtype=jnp.float32, name="output")(h)


class MAE(nn.Module):
    """Encoder, decoder and a linear classifier on the mean of the last map.

    Attributes:
      channels: of an image.
      num_classes: of the classifier.
      width: C, channels of the first stage.
      blocks: basic blocks of each stage, at least one stage.
      patch: pixels of a side that are moved into the channels first; divides the image's sides.
        1 for latents.
      dtype: type of the convolutions.
    """

    channels: int
    num_classes: int
    width: int
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    patch: int = 1
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        """Make encoder, decoder and classifier."""
        self.encoder = Encoder(self.width, self.blocks, self.dtype)
        channels = self.channels * self.patch**2
        self.decoder = Decoder(self.width, len(self.blocks), channels, self.dtype)
        self.logits = nn.Dense(self.num_classes)

    def __call__(self, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Fill an image and name its class.

        Args:
          image: `[B, H, W, channels]` floating, masked places 0.

        Returns:
          `[B, H, W, channels]` and logits `[B, num_classes]`, float32.
        """
        maps = self.maps(image)
        last = maps[f"layer{len(self.blocks)}"]
        return spread(self.decoder(maps), self.patch), self.logits(last.mean(axis=(1, 2)))

    def maps(self, image: jax.Array) -> dict[str, jax.Array]:
        """Return maps of an unmasked image; see `Encoder`."""
        return self.encoder(fold(image, self.patch))


def fold(image: jax.Array, patch: int) -> jax.Array:
    """Map `[B, p * h, p * w, c]` -> `[B, h, w, p * p * c]`: each patch's pixels in its channels."""
    batch, height, width, channels = image.shape
    image = image.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return jnp.moveaxis(image, 3, 2).reshape(batch, height // patch, width // patch, -1)


def spread(image: jax.Array, patch: int) -> jax.Array:
    """Map `[B, h, w, p * p * c]` -> `[B, p * h, p * w, c]`, the inverse of `fold`."""
    batch, height, width, channels = image.shape
    image = image.reshape(batch, height, width, patch, patch, channels // patch**2)
    return jnp.moveaxis(image, 2, 3).reshape(batch, height * patch, width * patch, -1)


def draw_mask(key: jax.Array, shape: tuple[int, int, int], share: float) -> jax.Array:
    """Return `[B, H, W]` bool, True where masked: 2x2 patches, each with probability `share`."""
    batch, height, width = shape
    cells = (batch, math.ceil(height / MASK_PATCH), math.ceil(width / MASK_PATCH))
    mask = jax.random.bernoulli(key, jnp.float32(share), cells)
    # Patches of a grid that covers odd sides too, cut off below.
    mask = jnp.repeat(jnp.repeat(mask, MASK_PATCH, axis=1), MASK_PATCH, axis=2)
    return mask[:, :height, :width]


def reconstruction_loss(decoded: jax.Array, image: jax.Array, mask: jax.Array) -> jax.Array:
    """Return `sum (xhat - x)^2 over masked places and channels / masked places` of each image.

    Args:
      decoded: `[B, H, W, c]` floating.
      image: like `decoded`.
      mask: `[B, H, W]` bool, True where the network could not see.

    Returns:
      `[B]` float32; 0 where nothing was masked.
    """
    hidden = mask.astype(jnp.float32)
    # Visible places are left out: copying the input must not count as filling it in.
    error = jnp.sum(jnp.square(decoded - image), axis=-1) * hidden
    return error.sum(axis=(1, 2)) / jnp.maximum(hidden.sum(axis=(1, 2)), 1.0)


def check(flat: Mapping[str, Any]) -> None:
    """Check fields of a flat config of task `mae` against each other.

    Raises:
      ValueError: the patches do not divide the image; one line.
    """
    size = flat["data.image_size"]
    if size % flat["mae.patch"]:
        raise wrong("mae.patch", flat["mae.patch"], f"a divisor of data.image_size {size}")


def build(config: Any, image_shape: tuple[int, int, int], num_classes: int) -> MAE:
    """Build the autoencoder of a checked config of task `mae`."""
    return MAE(
        channels=image_shape[2],
        num_classes=num_classes,
        width=config.mae.width,
        blocks=tuple(int(count) for count in config.mae.blocks.split(",")),
        patch=config.mae.patch,
        dtype=jnp.dtype(config.mae.dtype),
    )
