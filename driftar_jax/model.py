"""Builds the modules of a run from its config: the one place where names become modules."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from driftar_jax.config import GROUPS
from driftar_jax.data.captions import TextSpec
from driftar_jax.drift.decoders import TokenDecoder
from driftar_jax.drift.grid import GridDecoder
from driftar_jax.drift.prior import Prior
from driftar_jax.heads.diffusion import DiffusionHead
from driftar_jax.heads.draft import DraftHead
from driftar_jax.heads.flow import VelocityNet
from driftar_jax.heads.flow_token import FlowTokenHead
from driftar_jax.hosts.mar import MAR
from driftar_jax.hosts.nextstep import NextStep
from driftar_jax.hosts.transdiff import TransDiff
from driftar_jax.published import stored as published
from driftar_jax.published.model import sampled_parts


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """What the data decides: `image_shape (H, W, C)`, the classes, the patch size, the captions."""

    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    patch_size: int
    text: TextSpec | None = None

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
    host: MAR | TransDiff | NextStep
    head: DiffusionHead | VelocityNet | FlowTokenHead | None = None
    prior: Prior | None = None
    decoder: TokenDecoder | GridDecoder | None = None
    draft: DraftHead | None = None


def build(config: Any, images: ImageSpec) -> Parts:
    """Modules for a checked config of task `host` or `drift`, or of a published model."""
    if config.task == published.TASK:
        host, prior, decoder = sampled_parts(published.module(config))
        return Parts(images, host, prior=prior, decoder=decoder)
    if config.host.name == "transdiff":
        return _transdiff(config, images)
    dtype = jnp.dtype(config.host.dtype)
    if config.host.name == "nextstep":
        host = _nextstep(config, images)
        if config.task == "host":
            head = FlowTokenHead(images.token_dim, config.head.width, config.head.depth, dtype)
            return Parts(images, host, head=head)
        return _drift_tokens(config, images, host)
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
        remat=config.host.get("remat", "none"),
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
    return _drift_tokens(config, images, host)


def _drift_tokens(config: Any, images: ImageSpec, host: MAR | NextStep) -> Parts:
    """Drift-AR on a host that makes single tokens."""
    dtype = jnp.dtype(config.host.dtype)
    return Parts(
        images,
        host,
        prior=_prior(config, images),
        decoder=TokenDecoder(
            token_dim=images.token_dim,
            width=config.drift.width,
            depth=config.drift.depth,
            standardised=config.drift.standardised,
            # Not in configs of older runs.
            guidance=config.drift.get("guidance_max", 1.0) > 1,
            entropy_adaln=config.drift.get("entropy_adaln", True),
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


def _prior(config: Any, images: ImageSpec) -> Prior:
    return Prior(
        token_dim=images.token_dim,
        sigma_max=config.prior.sigma_max,
        tau=config.prior.tau,
        scale=config.prior.scale,
        constant=config.prior.constant,
    )


def _nextstep(config: Any, images: ImageSpec) -> NextStep:
    return NextStep(
        vocab_size=images.text.vocab_size,
        placeholder=images.text.placeholder,
        token_dim=images.token_dim,
        width=config.host.width,
        depth=config.host.depth,
        num_heads=config.host.num_heads,
        num_kv_heads=config.host.num_kv_heads,
        head_dim=config.host.width // config.host.num_heads,
        mlp_width=config.host.mlp_width,
        norm_eps=config.host.norm_eps,
        rope_theta=config.host.rope_theta,
        remat=config.host.get("remat", "none"),
        dtype=jnp.dtype(config.host.dtype),
    )


def transdiff_host(config: Any, images: ImageSpec) -> TransDiff:
    """TransDiff's backbone; one content row stands for `row_patch` squared tokens."""
    groups, square = GROUPS[config.host.form], config.host.row_patch**2
    return TransDiff(
        num_rows=groups * images.num_tokens // square,
        groups=groups,
        reference_dim=images.token_dim * (square if groups > 1 else 1),
        num_classes=images.num_classes,
        width=config.host.width,
        depth=config.host.depth,
        num_heads=config.host.num_heads,
        buffer_size=config.host.buffer_size,
        attention_dropout=config.host.attention_dropout,
        projection_dropout=config.host.projection_dropout,
        remat=config.host.get("remat", "none"),
        dtype=jnp.dtype(config.host.dtype),
    )


def _transdiff(config: Any, images: ImageSpec) -> Parts:
    host, dtype = transdiff_host(config, images), jnp.dtype(config.host.dtype)
    if config.task == "drift":
        decoder = GridDecoder(
            token_dim=images.token_dim,
            width=config.drift.width,
            depth=config.drift.depth,
            num_heads=config.drift.num_heads,
            standardised=config.drift.standardised,
            guidance=config.drift.guidance_max > 1,
            dtype=dtype,
        )
        return Parts(images, host, prior=_prior(config, images), decoder=decoder)
    head = VelocityNet(
        token_dim=images.token_dim,
        num_tokens=images.num_tokens,
        width=config.host.width,
        depth=config.head.depth,
        num_heads=config.host.num_heads,
        attention_dropout=config.host.attention_dropout,
        projection_dropout=config.host.projection_dropout,
        remat=config.host.get("remat", "none"),
        dtype=dtype,
    )
    return Parts(images, host, head=head)
