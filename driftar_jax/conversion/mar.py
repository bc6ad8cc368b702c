"""MAR checkpoints: names, sizes, and which modules they describe.

Our tree holds the backbone under `host` and the diffusion head under `head`; the official state
dict holds both, the head under `diffloss.net`.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from driftar_jax import config, seeds
from driftar_jax.conversion import rules as r
from driftar_jax.conversion.shapes import Shapes, attention_heads
from driftar_jax.heads.diffusion import DiffusionHead
from driftar_jax.hosts.mar import MAR, PRESETS

# Published guidance scales (linear, 256 AR steps, 100 head steps) by width.
GUIDANCE = {768: 2.9, 1024: 3.0, 1280: 3.2}

_BACKBONE = [
    r.Rule("class_emb.weight", "host/class_emb"),
    r.Rule("fake_latent", "host/fake_latent"),
    r.Rule("mask_token", "host/mask_token", r.LEADING),
    r.Rule("encoder_pos_embed_learned", "host/encoder_pos_embed", r.LEADING),
    r.Rule("decoder_pos_embed_learned", "host/decoder_pos_embed", r.LEADING),
    r.Rule("diffusion_pos_embed_learned", "host/diffusion_pos_embed", r.LEADING),
    *r.linear("z_proj", "host/z_proj"),
    *r.norm("z_proj_ln", "host/z_proj_ln"),
    *r.norm("encoder_norm", "host/encoder_norm"),
    *r.linear("decoder_embed", "host/decoder_embed"),
    *r.norm("decoder_norm", "host/decoder_norm"),
]

_HEAD = [
    *r.linear("diffloss.net.time_embed.mlp.0", "head/time_embed_0"),
    *r.linear("diffloss.net.time_embed.mlp.2", "head/time_embed_2"),
    *r.linear("diffloss.net.cond_embed", "head/cond_embed"),
    *r.linear("diffloss.net.input_proj", "head/input_proj"),
    *r.norm("diffloss.net.res_blocks.{i}.in_ln", "head/res_blocks_{i}/in_ln"),
    *r.linear("diffloss.net.res_blocks.{i}.mlp.0", "head/res_blocks_{i}/mlp_0"),
    *r.linear("diffloss.net.res_blocks.{i}.mlp.2", "head/res_blocks_{i}/mlp_2"),
    *r.linear(
        "diffloss.net.res_blocks.{i}.adaLN_modulation.1", "head/res_blocks_{i}/adaLN_modulation"
    ),
    *r.linear("diffloss.net.final_layer.adaLN_modulation.1", "head/final_modulation"),
    *r.linear("diffloss.net.final_layer.linear", "head/final_linear"),
]

_BLOCKS = [
    *r.block("encoder_blocks.{i}", "host/encoder_blocks_{i}"),
    *r.block("decoder_blocks.{i}", "host/decoder_blocks_{i}"),
]

RULES = [*_BACKBONE, *_BLOCKS, *_HEAD]


def sizes(shapes: Mapping[str, tuple[int, ...]], num_heads: int | None = None) -> dict:
    """Return fields of the modules that a state dict describes.

    Args:
      shapes: official name -> shape.
      num_heads: attention heads, which no shape shows; None takes them from the released size of
        the same width and depths.

    Returns:
      Dictionary with the fields of `MAR`, and `head_width`, `head_depth`.

    Raises:
      ValueError: a name that the sizes are read from is missing, or the heads are not known.
    """
    shape = Shapes(shapes, "MAR")
    # Sizes come from the arrays and not from a name of the model: fine-tuned and home-made ones fit
    # too.
    num_classes, width = shape("class_emb.weight", 2)
    num_tokens = shape("diffusion_pos_embed_learned", 3)[1]
    fields = dict(
        num_tokens=num_tokens,
        token_dim=shape("z_proj.weight", 2)[1],
        num_classes=num_classes,
        width=width,
        encoder_depth=shape.depth("encoder_blocks."),
        decoder_depth=shape.depth("decoder_blocks."),
        buffer_size=shape("encoder_pos_embed_learned", 3)[1] - num_tokens,
        mlp_ratio=shape("encoder_blocks.0.mlp.fc1.weight", 2)[0] / width,
        head_width=shape("diffloss.net.input_proj.weight", 2)[0],
        head_depth=shape.depth("diffloss.net.res_blocks."),
    )
    alike = ("width", "encoder_depth", "decoder_depth")
    num_heads = attention_heads(num_heads, fields, PRESETS.values(), alike)
    return {**fields, "num_heads": num_heads}


def modules(fields: Mapping, **overrides) -> tuple[MAR, DiffusionHead]:
    """Build backbone and head of `sizes`; `overrides` are further fields of `MAR`."""
    host = {k: v for k, v in fields.items() if k not in ("head_width", "head_depth")}
    head = DiffusionHead(
        token_dim=fields["token_dim"], width=fields["head_width"], depth=fields["head_depth"]
    )
    return MAR(**{**host, **overrides}), head


def abstract_params(host: MAR, head: DiffusionHead) -> dict:
    """Return `{"host": ..., "head": ...}` of `ShapeDtypeStruct`, without running anything."""
    tokens = jax.ShapeDtypeStruct((1, host.num_tokens, host.token_dim), jnp.float32)
    known = jax.ShapeDtypeStruct((1, host.num_tokens), jnp.bool_)
    label = jax.ShapeDtypeStruct((1,), jnp.int32)
    z = jax.ShapeDtypeStruct((1, host.width), jnp.float32)
    x = jax.ShapeDtypeStruct((1, host.token_dim), jnp.float32)
    key = seeds.key(0)
    backbone = jax.eval_shape(host.init, key, tokens, known, label)
    denoiser = jax.eval_shape(head.init, key, x, label, z)
    return nn.unbox({"host": backbone["params"], "head": denoiser["params"]})


def title(fields: Mapping) -> str:
    """Return what a checkpoint turned out to be, for a reader."""
    alike = [n for n, p in PRESETS.items() if all(fields[k] == v for k, v in p.items())]
    size = f"MAR {alike[0]}" if alike else "MAR of its own size"
    return (
        f"{size}: width {fields['width']}, {fields['encoder_depth']} + "
        f"{fields['decoder_depth']} blocks, {fields['num_tokens']} tokens of "
        f"{fields['token_dim']} channels, head {fields['head_depth']} x {fields['head_width']}"
    )


def config_of(fields: Mapping) -> dict:
    """Return the config of the workdir: the sizes, and the recipe of the released weights.

    Raises:
      ValueError: a size that a config of this project cannot say.
    """
    if fields["mlp_ratio"] != 4.0:
        raise ValueError(f"mlp_ratio: got {fields['mlp_ratio']:g}, allowed 4")
    side = r.manifest_of(fields)["image_shape"][0]
    sizes_of_host = ("width", "encoder_depth", "decoder_depth", "num_heads", "buffer_size")
    scale = GUIDANCE.get(fields["width"], 1.0)
    workdir_config = {
        "task": "host",
        "seed": 0,
        "init_from": "",
        "data": {
            "name": "latents",
            "data_dir": "",
            "image_size": side,
            "patch_size": 1,
            "center_crop": True,
            "flip": False,
        },
        "host": {
            "name": "mar",
            **{name: fields[name] for name in sizes_of_host},
            "attention_dropout": 0.1,
            "projection_dropout": 0.1,
            "label_drop": 0.1,
            "dtype": "float32",
            "remat": "none",
            "scan": False,
            "attention": "auto",
        },
        "head": {"width": fields["head_width"], "depth": fields["head_depth"], "copies": 4},
        "mask": {"law": "mar", "tokens_per_image": 0},
        # 800 epochs of 625 steps, as released: warm-up over 100, then constant.
        "optim": {
            "lr": 8e-4,
            "schedule": "constant",
            "warmup_steps": 62_500,
            "weight_decay": 0.02,
            "b2": 0.95,
            "clip": 3.0,
            "ema": 0.9999,
            "accumulate": 1,
            "freeze": "",
        },
        "train": {
            "batch_size": 2048,
            "steps": 500_000,
            "log_every": 100,
            "sample_every": 0,
            "checkpoint_every": 5_000,
            "checkpoint_minutes": 30.0,
            "keep": 2,
        },
        "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
        "sample": {
            # 64 steps are MAR's own default; its best published figures take 256, which cost four
            # times as much.
            "ar_steps": min(64, fields["num_tokens"]),
            "nfe": 100,
            "nfe_schedule": "constant",
            "nfe_last": 5,
            "guidance": scale,
            "guidance_schedule": "linear",
            "temperature": 1.0,
            "spacing": "even",
        },
    }
    config.check(workdir_config)
    return workdir_config


def fields_of(settings: Mapping, manifest: Mapping) -> dict:
    """Return the fields of `sizes`, from config and manifest of a workdir.

    Raises:
      ValueError: it is no host with its own head.
    """
    if settings.get("task") != "host" or settings["host"]["name"] != "mar":
        raise ValueError(f"task: got {settings.get('task')!r}, allowed 'host' with host.name 'mar'")
    height, width, channels = manifest["image_shape"]
    patch = manifest["patch_size"]
    names = ("width", "encoder_depth", "decoder_depth", "num_heads", "buffer_size")
    return {
        **{name: settings["host"][name] for name in names},
        "num_tokens": (height // patch) * (width // patch),
        "token_dim": channels * patch**2,
        "num_classes": len(manifest["class_names"]),
        "mlp_ratio": 4.0,
        "head_width": settings["head"]["width"],
        "head_depth": settings["head"]["depth"],
    }
