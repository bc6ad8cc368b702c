"""Builds the modules of a run from its config: the one place where names become modules."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from driftar_jax.drift.decoders import TokenDecoder
from driftar_jax.drift.prior import Prior
from driftar_jax.heads.diffusion import DiffusionHead
from driftar_jax.hosts.mar import MAR
from driftar_jax.speculative.draft import DraftHead


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """What the data decides: `image_shape (H, W, C)`, the classes and the patch size."""

    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    patch_size: int

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.image_shape[0] // self.patch_size, self.image_shape[1] // self.patch_size

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def token_dim(self) -> int:
        return self.image_shape[2] * self.patch_size**2


@dataclasses.dataclass(frozen=True)
class Parts:
    """The modules of one run; `head` for task `host`, the last three for task `drift`."""

    images: ImageSpec
    host: MAR
    head: DiffusionHead | None = None
    prior: Prior | None = None
    decoder: TokenDecoder | None = None
    draft: DraftHead | None = None


def build(config: Any, images: ImageSpec) -> Parts:
    """Modules for a checked config of task `host` or `drift`."""
    dtype = jnp.dtype(config.host.dtype)
    host = MAR(
        num_tokens=images.num_tokens,
        token_dim=images.token_dim,
        num_classes=images.num_classes,
        width=config.host.width,
        encoder_depth=config.host.encoder_depth,
        decoder_depth=config.host.decoder_depth,
        num_heads=config.host.num_heads,
        buffer_size=config.host.buffer_size,
        attention_dropout=config.host.attention_dropout,
        projection_dropout=config.host.projection_dropout,
        dtype=dtype,
    )
    if config.task == "host":
        head = DiffusionHead(
            token_dim=images.token_dim,
            width=config.head.width,
            depth=config.head.depth,
            dtype=dtype,
        )
        return Parts(images, host, head=head)
    return Parts(
        images,
        host,
        prior=Prior(
            token_dim=images.token_dim,
            sigma_max=config.prior.sigma_max,
            tau=config.prior.tau,
            scale=config.prior.scale,
            constant=config.prior.constant,
        ),
        decoder=TokenDecoder(
            token_dim=images.token_dim,
            width=config.drift.width,
            depth=config.drift.depth,
            standardised=config.drift.standardised,
            guidance=config.drift.get("guidance_max", 1.0) > 1,  # not in configs of older runs
            dtype=dtype,
        ),
        draft=DraftHead(
            token_dim=images.token_dim,
            features=config.host.width,
            width=config.draft.width,
            depth=config.draft.depth,
            num_heads=config.draft.num_heads,
            dtype=dtype,
        ),
    )
