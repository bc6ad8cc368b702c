"""TransDiff checkpoints: names, sizes, and which modules they describe.

Our tree holds the backbone under `host` and the velocity network under `head`; the official state
dict holds both, the network under `diffdecoder.net`.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from driftar_jax import config
from driftar_jax.conversion import rules as r
from driftar_jax.heads.flow import VelocityNet
from driftar_jax.hosts.transdiff import PRESETS, TransDiff

# Of the 1-step form these are also the names of Drift-AR's encoder.
BACKBONE = [
    r.Rule("class_emb.weight", "host/class_emb"),
    r.Rule("fake_latent", "host/fake_latent"),
    r.Rule("mask_token", "host/mask_token", r.LEADING),
    r.Rule("encoder_pos_embed_learned", "host/encoder_pos_embed", r.LEADING),
    r.Rule("diffusion_pos_embed_learned", "host/diffusion_pos_embed", r.LEADING),
    *r.linear("z_proj", "host/z_proj"),
    *r.norm("z_proj_ln", "host/z_proj_ln"),
    *r.norm("encoder_norm", "host/encoder_norm"),
    *r.block("encoder_blocks.{i}", "host/encoder_blocks_{i}"),
]


def _head() -> list[r.Rule]:
    net = "diffdecoder.net"
    return [
        r.Rule(f"{net}.diffusion_pos_embed_learned", "head/position", r.LEADING),
        *r.linear(f"{net}.time_embed.time_embedder.linear_1", "head/time_1"),
        *r.linear(f"{net}.time_embed.time_embedder.linear_2", "head/time_2"),
        *r.linear(f"{net}.time_embed.time_proj", "head/time_proj"),
        *r.linear(f"{net}.cond_embed", "head/cond_embed"),
        *r.linear(f"{net}.input_proj", "head/input_proj"),
        *r.modulated_block(f"{net}.res_blocks.{{i}}", "head/blocks_{i}"),
        r.Rule(f"{net}.final_layer.scale_shift_table", "head/final_table", r.LEADING),
        *r.linear(f"{net}.final_layer.linear", "head/final_linear"),
    ]


RULES = [*BACKBONE, *_head()]


def sizes(shapes: Mapping[str, tuple[int, ...]], num_heads: int | None = None) -> dict:
    """Fields of the modules that a state dict describes.

    Args:
      shapes: official name -> shape.
      num_heads: attention heads, which no shape shows; None takes them from the released size of
        the same width and depths.

    Returns:
      Dictionary with the fields of `TransDiff`, and `token_dim`, `num_tokens`, `head_depth` of
      its head.

    Raises:
      ValueError: a name that the sizes are read from is missing, or the heads are not known.
    """

    def shape(name: str, ndim: int) -> tuple[int, ...]:
        if name not in shapes or len(shapes[name]) != ndim:
            got = shapes.get(name)
            raise ValueError(
                f"{name}: got {got}, allowed a TransDiff checkpoint's {ndim}-axis array"
            )
        return shapes[name]

    def depth(stack: str) -> int:
        return len({n.removeprefix(stack).split(".")[0] for n in shapes if n.startswith(stack)})

    num_tokens = shape("diffdecoder.net.diffusion_pos_embed_learned", 3)[1]
    num_classes, width = shape("class_emb.weight", 2)
    num_rows = shape("diffusion_pos_embed_learned", 3)[1]
    group_rows = shape("mask_token", 3)[1]
    found = dict(
        num_rows=num_rows,
        # One mask row is the 1-step form, which repeats it.
        groups=1 if group_rows == 1 else num_rows // group_rows,
        reference_dim=shape("z_proj.weight", 2)[1],
        num_classes=num_classes,
        width=width,
        depth=depth("encoder_blocks."),
        buffer_size=shape("encoder_pos_embed_learned", 3)[1] - num_rows,
        mlp_ratio=shape("encoder_blocks.0.mlp.fc1.weight", 2)[0] / width,
        token_dim=shape("diffdecoder.net.input_proj.weight", 2)[1],
        num_tokens=num_tokens,
        head_depth=depth("diffdecoder.net.res_blocks."),
    )
    if num_heads is None:
        alike = ("width", "depth", "head_depth")
        same = [p for p in PRESETS.values() if all(p[k] == found[k] for k in alike)]
        if not same:
            raise ValueError(
                f"num_heads: got none, allowed a divisor of width {width} "
                "(known for the released sizes only)"
            )
        num_heads = same[0]["num_heads"]
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"num_heads: got {num_heads}, allowed a divisor of width {width}")
    return {**found, "num_heads": num_heads}


_OF_HEAD = ("token_dim", "num_tokens", "head_depth")


def modules(fields: Mapping, **overrides) -> tuple[TransDiff, VelocityNet]:
    """Backbone and head of `sizes`; `overrides` are further fields of `TransDiff`."""
    host = {k: v for k, v in fields.items() if k not in _OF_HEAD}
    net = VelocityNet(
        token_dim=fields["token_dim"],
        num_tokens=fields["num_tokens"],
        width=fields["width"],
        depth=fields["head_depth"],
        num_heads=fields["num_heads"],
        mlp_ratio=fields["mlp_ratio"],
    )
    return TransDiff(**{**host, **overrides}), net


def abstract_params(host: TransDiff, net: VelocityNet) -> dict:
    """`{"host": ..., "head": ...}` of `ShapeDtypeStruct`, without running anything."""
    one = jax.ShapeDtypeStruct((1,), jnp.int32)
    x = jax.ShapeDtypeStruct((1, net.num_tokens, net.token_dim), jnp.float32)
    z = jax.ShapeDtypeStruct((1, host.group_rows, host.width), jnp.float32)
    key = jax.random.key(0)
    backbone = jax.eval_shape(host.init, key, one)
    head = jax.eval_shape(net.init, key, x, one, z)
    return nn.unbox({"host": backbone["params"], "head": head["params"]})
