"""Drift-AR checkpoints: names, sizes, and the published model they describe.

The program adds `feature_encoder.*`, phi's block, when it attaches its features; a file from before
that is complete without. Nothing is invented: its workdir has no `feature_block` either.
"""

from collections.abc import Mapping

from driftar_jax.conversion import rules as r
from driftar_jax.conversion import transdiff
from driftar_jax.conversion.shapes import Shapes, attention_heads
from driftar_jax.published.model import PRESETS, DriftAR

_NET = "drift_decoder.net"
_DECODER = [
    r.Rule(f"{_NET}.level_embed", "decoder/level", r.LEADING),
    r.Rule(f"{_NET}.pos_embed", "decoder/position", r.LEADING),
    *r.linear(f"{_NET}.input_proj", "decoder/input"),
    *r.linear(f"{_NET}.cond_embed", "decoder/cond_z"),
    *r.linear(f"{_NET}.entropy_adaln.global_mlp.0", "decoder/global_in"),
    *r.linear(f"{_NET}.entropy_adaln.global_mlp.2", "decoder/global_out"),
    *r.linear(f"{_NET}.entropy_adaln.spatial_mlp.0", "decoder/spatial_in"),
    *r.linear(f"{_NET}.entropy_adaln.spatial_mlp.2", "decoder/spatial_out"),
    *r.modulated_block(f"{_NET}.res_blocks.{{i}}", "decoder/block_{i}"),
    *r.norm(f"{_NET}.final_layer.norm_final", "decoder/norm"),
    *r.linear(f"{_NET}.final_layer.linear", "decoder/output"),
]

_DRAFT = [
    *r.block("draft_model.blocks.{i}", "draft/block_{i}"),
    *r.norm("draft_model.norm", "draft/norm"),
    *r.linear("draft_model.out_proj", "draft/output"),
]

RULES = [
    *transdiff.BACKBONE,
    *_DECODER,
    *_DRAFT,
    *r.linear("enc_to_token_proj", "prior/mean"),
    *r.linear("token_to_enc_proj", "to_features"),
    *r.block("feature_encoder.block", "feature_block"),
]


def sizes(shapes: Mapping[str, tuple[int, ...]], num_heads: int | None = None) -> dict:
    """Return fields of the model that a state dict describes.

    Args:
      shapes: official name -> shape.
      num_heads: attention heads, which no shape shows; None takes them from the program's size of
        the same width and depths.

    Returns:
      Dictionary with fields of `DriftAR`, and `phi`: whether phi's block is there.

    Raises:
      ValueError: a name that the sizes are read from is missing, or the heads are not known.
    """
    shape = Shapes(shapes, "Drift-AR")
    num_classes, width = shape("class_emb.weight", 2)
    num_tokens = shape(f"{_NET}.pos_embed", 3)[1]
    fields = dict(
        num_tokens=num_tokens,
        token_dim=shape("enc_to_token_proj.weight", 2)[0],
        num_classes=num_classes,
        width=width,
        depth=shape.depth("encoder_blocks."),
        buffer_size=shape("encoder_pos_embed_learned", 3)[1] - num_tokens,
        decoder_depth=shape.depth(f"{_NET}.res_blocks."),
        draft_depth=shape.depth("draft_model.blocks."),
        mlp_ratio=shape("encoder_blocks.0.mlp.fc1.weight", 2)[0] / width,
    )
    alike = ("width", "depth", "decoder_depth", "draft_depth")
    num_heads = attention_heads(num_heads, fields, PRESETS.values(), alike, "published")
    phi = shape.depth("feature_encoder.") > 0
    return {**fields, "num_heads": num_heads, "phi": phi}


def module(fields: Mapping, **overrides) -> DriftAR:
    """Build the model of `sizes`; `overrides` are further fields of `DriftAR`."""
    return DriftAR(**{**{k: v for k, v in fields.items() if k != "phi"}, **overrides})


def title(fields: Mapping) -> str:
    """Return what a checkpoint turned out to be, for a reader."""
    alike = [n for n, p in PRESETS.items() if all(fields[k] == v for k, v in p.items())]
    size = f"Drift-AR {alike[0]}" if alike else "Drift-AR of its own size"
    return (
        f"{size}: width {fields['width']}, {fields['depth']} + {fields['decoder_depth']} blocks, "
        f"draft {fields['draft_depth']}, {fields['num_tokens']} tokens of "
        f"{fields['token_dim']} channels, {'with' if fields['phi'] else 'without'} phi"
    )
