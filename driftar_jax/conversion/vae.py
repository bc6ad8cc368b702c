"""KL-16 autoencoder checkpoints: names, sizes, and the module they describe."""

import re
from collections.abc import Mapping

from driftar_jax.conversion import rules as r
from driftar_jax.vae.kl import KLVAE


def _pointwise(official: str, ours: str) -> list[r.Rule]:
    return r.conv(official, ours, r.POINTWISE)


def _res_block(official: str, ours: str) -> list[r.Rule]:
    return [
        *r.norm(f"{official}.norm1", f"{ours}/norm1"),
        *r.conv(f"{official}.conv1", f"{ours}/conv1"),
        *r.norm(f"{official}.norm2", f"{ours}/norm2"),
        *r.conv(f"{official}.conv2", f"{ours}/conv2"),
        *_pointwise(f"{official}.nin_shortcut", f"{ours}/nin_shortcut"),
    ]


def _attention(official: str, ours: str) -> list[r.Rule]:
    rules = r.norm(f"{official}.norm", f"{ours}/norm")
    for name in ("q", "k", "v", "proj_out"):
        rules += _pointwise(f"{official}.{name}", f"{ours}/{name}")
    return rules


def _shared(side: str) -> list[r.Rule]:
    return [
        *r.conv(f"{side}.conv_in", f"{side}/conv_in"),
        *_res_block(f"{side}.mid.block_1", f"{side}/mid/block_1"),
        *_attention(f"{side}.mid.attn_1", f"{side}/mid/attn_1"),
        *_res_block(f"{side}.mid.block_2", f"{side}/mid/block_2"),
        *r.norm(f"{side}.norm_out", f"{side}/norm_out"),
        *r.conv(f"{side}.conv_out", f"{side}/conv_out"),
    ]


RULES = [
    *_shared("encoder"),
    *_res_block("encoder.down.{i}.block.{j}", "encoder/down_{i}_block_{j}"),
    *_attention("encoder.down.{i}.attn.{j}", "encoder/down_{i}_attn_{j}"),
    *r.conv("encoder.down.{i}.downsample.conv", "encoder/down_{i}_downsample"),
    *_shared("decoder"),
    *_res_block("decoder.up.{i}.block.{j}", "decoder/up_{i}_block_{j}"),
    *r.conv("decoder.up.{i}.upsample.conv", "decoder/up_{i}_upsample"),
    *_pointwise("quant_conv", "quant_conv"),
    *_pointwise("post_quant_conv", "post_quant_conv"),
]


def sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict:
    """Return fields of `KLVAE` that a state dict describes.

    Args:
      shapes: official name -> shape.

    Raises:
      ValueError: a name that the sizes are read from is missing.
    """
    for name in ("encoder.conv_in.weight", "decoder.conv_out.weight", "post_quant_conv.weight"):
        if len(shapes.get(name, ())) != 4:
            raise ValueError(
                f"{name}: got {shapes.get(name)}, allowed a KL autoencoder's 4-axis array"
            )
    channels = shapes["encoder.conv_in.weight"][0]
    widths, blocks, attention = {}, set(), set()
    for name, shape in shapes.items():
        if match := re.fullmatch(r"encoder\.down\.(\d+)\.block\.(\d+)\.conv1\.weight", name):
            widths[int(match[1])] = shape[0]
            blocks.add(int(match[2]))
        if match := re.match(r"encoder\.down\.(\d+)\.attn\.", name):
            attention.add(int(match[1]))
    return dict(
        channels=channels,
        multipliers=tuple(widths[level] // channels for level in sorted(widths)),
        num_res_blocks=len(blocks),
        latent_channels=shapes["post_quant_conv.weight"][0],
        image_channels=shapes["decoder.conv_out.weight"][0],
        attention_levels=tuple(sorted(attention)),
    )


def module(shapes: Mapping[str, tuple[int, ...]]) -> KLVAE:
    """Build the module that a state dict describes; raises as `sizes`."""
    return KLVAE(**sizes(shapes))
