"""NextStep-1 checkpoints: names, sizes from shapes and `config.json`, and what they describe.

Our tree stacks the layers; names are matched one by one, on a tree in which they stand side by side
(`unstacked`). The vocabulary, eps and rotary base are read and never assumed: releases differ.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from driftar_jax.config import wrong
from driftar_jax.conversion import rules as r
from driftar_jax.conversion.shapes import Shapes
from driftar_jax.hosts.nextstep import PRESETS, generation_positions
from driftar_jax.hosts.nextstep_stored import TASK

# A table that the official state dict may hold and that nothing needs: it follows from the width.
BUFFER = "gen_pos_embed"

# Names of NextStep-1.1 for what `config.json` of 1.0 says otherwise.
_RENAMED = {
    "image_size": "latent_size",
    "patch_size": "latent_patch_size",
    "num_channels": "latent_channels",
    "image_loss_weight": "im_loss_weight",
    "genloss_width": "fm_head_dim",
    "genloss_depth": "fm_head_layers",
    "genloss_batch_mul": "fm_head_batch_mul",
}

# Special tokens: our names and those of `config.json`.
_MARKS = {
    "begin_image": "boi",
    "end_image": "eoi",
    "placeholder": "image_placeholder_id",
    "pad": "pad_token_id_added",
}

_LAYER = "host/stack/layers/{i}"

_NET = "image_head.net"


def _layer() -> list[r.Rule]:
    attention = [
        rule
        for name in ("q_proj", "k_proj", "v_proj")
        for rule in r.linear(f"layers.{{i}}.self_attn.{name}", f"{_LAYER}/{name}")
    ]
    plain = {"self_attn.o_proj": "o_proj"}
    plain |= {f"mlp.{name}": name for name in ("gate_proj", "up_proj", "down_proj")}
    return [
        r.Rule("layers.{i}.input_layernorm.weight", f"{_LAYER}/input_norm/scale"),
        *attention,
        r.Rule("layers.{i}.post_attention_layernorm.weight", f"{_LAYER}/mlp_norm/scale"),
        *(
            r.Rule(f"layers.{{i}}.{official}.weight", f"{_LAYER}/{ours}/kernel", r.LINEAR)
            for official, ours in plain.items()
        ),
    ]


def _block(official: str, ours: str) -> list[r.Rule]:
    return [
        *r.norm(f"{official}.in_ln", f"{ours}/in_ln"),
        *r.linear(f"{official}.mlp.0", f"{ours}/mlp_0"),
        *r.linear(f"{official}.mlp.2", f"{ours}/mlp_2"),
        *r.linear(f"{official}.adaLN_modulation.1", f"{ours}/adaLN_modulation"),
    ]


RULES = [
    r.Rule(BUFFER, None),
    r.Rule("embed_tokens.weight", "host/embed_tokens"),
    *_layer(),
    r.Rule("norm.weight", "host/stack/norm/scale"),
    r.Rule("lm_head.weight", "host/lm_head/kernel", r.LINEAR),
    *r.linear("image_in_projector", "host/image_in_projector"),
    *r.linear("image_out_projector", "host/image_out_projector"),
    *r.linear(f"{_NET}.time_embed.mlp.0", "head/time_embed_0"),
    *r.linear(f"{_NET}.time_embed.mlp.2", "head/time_embed_2"),
    *r.linear(f"{_NET}.cond_embed", "head/cond_embed"),
    *r.linear(f"{_NET}.input_proj", "head/input_proj"),
    *_block(f"{_NET}.res_blocks.{{i}}", "head/res_blocks_{i}"),
    *r.linear(f"{_NET}.final_layer.adaLN_modulation.1", "head/final_modulation"),
    *r.linear(f"{_NET}.final_layer.linear", "head/final_linear"),
]


def sizes(shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any]) -> dict:
    """Return fields of the modules that a checkpoint describes.

    Args:
      shapes: official name -> shape.
      settings: `config.json` of the checkpoint, of 1.0 or 1.1; keys that nothing needs are ignored.

    Returns:
      Dictionary with the fields of `NextStep` (without `positions`, `entropy_chunk`, `remat` and
      `dtype`) and `head_width`, `head_depth`.

    Raises:
      ValueError: a name that the sizes are read from is missing, a setting is missing, or the two
        disagree.
    """
    values = normalised(settings)

    shape = Shapes(shapes, "NextStep")

    def number(name: str, kind: type = int):
        value = values.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            raise wrong(name, value, "a number above 0 in the checkpoint's config.json")
        return kind(value)

    vocab_size, width = shape("embed_tokens.weight", 2)
    queries = shape("layers.0.self_attn.q_proj.weight", 2)[0]
    num_heads = number("num_attention_heads")
    # Named by some configs: it need not be the width over the heads.
    head_dim = number("head_dim") if values.get("head_dim") else width // num_heads
    num_kv_heads = number("num_key_value_heads")
    keys = shape("layers.0.self_attn.k_proj.weight", 2)[0]
    if (num_heads * head_dim, num_kv_heads * head_dim) != (queries, keys):
        raise wrong(
            "num_attention_heads",
            num_heads,
            f"heads of {head_dim} that fit {queries} query and {keys} key rows of the arrays",
        )
    if num_heads % num_kv_heads:
        raise wrong("num_key_value_heads", num_kv_heads, f"a divisor of {num_heads}")
    fields = dict(
        vocab_size=vocab_size,
        placeholder=number("image_placeholder_id"),
        token_dim=shape("image_in_projector.weight", 2)[1],
        width=width,
        depth=shape.depth("layers."),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        mlp_width=shape("layers.0.mlp.gate_proj.weight", 2)[0],
        norm_eps=number("rms_norm_eps", float),
        rope_theta=number("rope_theta", float),
        attention_bias="layers.0.self_attn.q_proj.bias" in shapes,
        head_width=shape(f"{_NET}.input_proj.weight", 2)[0],
        head_depth=shape.depth(f"{_NET}.res_blocks."),
    )
    if fields["placeholder"] >= vocab_size:
        raise wrong("image_placeholder_id", fields["placeholder"], f"0..{vocab_size - 1}")
    patch = number("latent_patch_size")
    if patch**2 * number("latent_channels") != fields["token_dim"]:
        raise wrong("latent_patch_size", patch, f"one that gives tokens of {fields['token_dim']}")
    for name, field in (
        ("hidden_size", "width"),
        ("intermediate_size", "mlp_width"),
        ("num_hidden_layers", "depth"),
        ("fm_head_dim", "head_width"),
        ("fm_head_layers", "head_depth"),
    ):
        if name in values and values[name] != fields[field]:
            raise wrong(name, values[name], f"{fields[field]}, as the arrays are")
    return fields


def normalised(settings: Mapping[str, Any]) -> dict:
    """Return `config.json` of 1.0 or 1.1 under the names of 1.0."""
    return {_RENAMED.get(name, name): value for name, value in settings.items()}


def marks(settings: Mapping[str, Any]) -> dict[str, int]:
    """Return ids of the special tokens: `begin_image`, `end_image`, `placeholder`, `pad`.

    Raises:
      ValueError: one is missing.
    """
    values, ids = normalised(settings), {}
    for ours, official in _MARKS.items():
        if not isinstance(values.get(official), int):
            raise wrong(
                official, values.get(official), "a token id in the checkpoint's config.json"
            )
        ids[ours] = values[official]
    return ids


def buffer(width: int) -> np.ndarray:
    """Return `gen_pos_embed` as the official state dict holds it, `[1, 1024, width]` float32."""
    return generation_positions(width)[None]


def config_of(fields: Mapping, settings: Mapping[str, Any]) -> dict:
    """Return the config of the workdir: sizes, special tokens, and the recommended sampling."""
    values = normalised(settings)
    return {
        "task": TASK,
        "host": dict(fields),
        "marks": marks(settings),
        "patch_size": values["latent_patch_size"],
        "latent_channels": values["latent_channels"],
        "sample": {"nfe": 28, "shift": 1.0, "guidance": 7.5, "guidance_image": 1.0},
    }


def title(fields: Mapping) -> str:
    """Return what a checkpoint turned out to be, for a reader."""
    alike = [n for n, p in PRESETS.items() if all(fields[k] == v for k, v in p.items())]
    size = f"NextStep-1 {alike[0]}" if alike else "NextStep-1 of its own size"
    return (
        f"{size}: {fields['depth']} layers of width {fields['width']}, {fields['vocab_size']} "
        f"token ids, image tokens of {fields['token_dim']} channels, "
        f"head {fields['head_depth']} x {fields['head_width']}"
    )
