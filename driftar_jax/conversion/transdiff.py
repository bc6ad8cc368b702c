"""TransDiff checkpoints: names, sizes, and which modules they describe.

Our tree holds the backbone under `host` and the velocity network under `head`; the official state
dict holds both, the network under `diffdecoder.net`.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from driftar_jax import config, seeds
from driftar_jax.conversion import rules as r
from driftar_jax.conversion.shapes import Shapes, attention_heads
from driftar_jax.heads.flow import VelocityNet
from driftar_jax.hosts.transdiff import PRESETS, TransDiff
from driftar_jax.hosts.transdiff_host import GROUPS

# Recipe and evaluation of the released weights: steps are 625 an epoch. By form and resolution.
_RECIPES = {
    "one_step": dict(lr=8e-4, warmup_steps=62_500, ema=0.9999, steps=500_000, copies=4),
    "mrar": dict(lr=5e-5, warmup_steps=6_250, ema=0.9999, steps=25_000, copies=2),
    "512": dict(lr=1e-4, warmup_steps=6_250, ema=0.999, steps=93_750, copies=4),
}
# Guidance, drift scale and noise scale of the published figures.
SCALES = {
    "base": (1.30, 0.87, 0.91),
    "large": (1.30, 0.89, 0.95),
    "huge": (1.23, 0.87, 0.93),
    "base_mrar": (1.30, 0.87, 0.91),
    "large_mrar": (1.30, 0.925, 0.95),
    "huge_mrar": (1.28, 0.87, 0.91),
    "large_512": (1.30, 0.87, 0.87),
}

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
    """Return fields of the modules that a state dict describes.

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
    shape = Shapes(shapes, "TransDiff")
    num_tokens = shape("diffdecoder.net.diffusion_pos_embed_learned", 3)[1]
    num_classes, width = shape("class_emb.weight", 2)
    num_rows = shape("diffusion_pos_embed_learned", 3)[1]
    group_rows = shape("mask_token", 3)[1]
    fields = dict(
        num_rows=num_rows,
        # One mask row is the 1-step form, which repeats it.
        groups=1 if group_rows == 1 else num_rows // group_rows,
        reference_dim=shape("z_proj.weight", 2)[1],
        num_classes=num_classes,
        width=width,
        depth=shape.depth("encoder_blocks."),
        buffer_size=shape("encoder_pos_embed_learned", 3)[1] - num_rows,
        mlp_ratio=shape("encoder_blocks.0.mlp.fc1.weight", 2)[0] / width,
        token_dim=shape("diffdecoder.net.input_proj.weight", 2)[1],
        num_tokens=num_tokens,
        head_depth=shape.depth("diffdecoder.net.res_blocks."),
    )
    alike = ("width", "depth", "head_depth")
    num_heads = attention_heads(num_heads, fields, PRESETS.values(), alike)
    return {**fields, "num_heads": num_heads}


_OF_HEAD = ("token_dim", "num_tokens", "head_depth")


def modules(fields: Mapping, **overrides) -> tuple[TransDiff, VelocityNet]:
    """Build backbone and head of `sizes`; `overrides` are further fields of `TransDiff`."""
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
    """Return `{"host": ..., "head": ...}` of `ShapeDtypeStruct`, without running anything."""
    one = jax.ShapeDtypeStruct((1,), jnp.int32)
    x = jax.ShapeDtypeStruct((1, net.num_tokens, net.token_dim), jnp.float32)
    z = jax.ShapeDtypeStruct((1, host.group_rows, host.width), jnp.float32)
    key = seeds.key(0)
    backbone = jax.eval_shape(host.init, key, one)
    head = jax.eval_shape(net.init, key, x, one, z)
    return nn.unbox({"host": backbone["params"], "head": head["params"]})


def _released(fields: Mapping) -> str | None:
    """Name of the released model of these sizes."""
    alike = [n for n, p in PRESETS.items() if all(fields[k] == v for k, v in p.items())]
    return alike[0] if alike else None


def title(fields: Mapping) -> str:
    """Return what a checkpoint turned out to be, for a reader."""
    name = _released(fields) or "of its own size"
    form = "1 step" if fields["groups"] == 1 else f"{fields['groups']} images in a row"
    return (
        f"TransDiff {name} ({form}): width {fields['width']}, {fields['depth']} blocks over "
        f"{fields['buffer_size']} + {fields['num_rows']} rows, head of {fields['head_depth']} "
        f"blocks over {fields['num_tokens']} tokens of {fields['token_dim']} channels"
    )


def _form(fields: Mapping) -> tuple[str, int]:
    """`host.form` and `host.row_patch` that say these sizes.

    Raises:
      ValueError: none do.
    """
    forms = {groups: form for form, groups in GROUPS.items()}
    if fields["groups"] not in forms:
        allowed = " | ".join(map(str, forms))
        raise ValueError(f"groups: got {fields['groups']}, allowed {allowed} images in a row")
    rows = fields["num_rows"] // fields["groups"]
    patch = math.isqrt(fields["num_tokens"] // rows)
    if rows * fields["groups"] != fields["num_rows"] or rows * patch**2 != fields["num_tokens"]:
        raise ValueError(
            f"num_rows: got {fields['num_rows']} of {fields['groups']} groups, allowed as many as "
            f"the {fields['num_tokens']} tokens have square patches, in each group"
        )
    features = fields["token_dim"] * (patch**2 if fields["groups"] > 1 else 1)
    if fields["reference_dim"] != features:
        raise ValueError(f"z_proj.weight: got {fields['reference_dim']} inputs, allowed {features}")
    return forms[fields["groups"]], patch


def config_of(fields: Mapping) -> dict:
    """Return the config of the workdir: the sizes, and the recipe of the released weights.

    Raises:
      ValueError: a size that a config of this project cannot say.
    """
    if fields["mlp_ratio"] != 4.0:
        raise ValueError(f"mlp_ratio: got {fields['mlp_ratio']:g}, allowed 4")
    form, patch = _form(fields)
    recipe = _RECIPES["512" if form == "one_step" and patch > 1 else form]
    guidance, drift_scale, noise_scale = SCALES.get(_released(fields), (1.0, 1.0, 1.0))
    workdir_config = {
        "task": "host",
        "seed": 0,
        "init_from": "",
        "data": {
            "name": "latents",
            "data_dir": "",
            "image_size": r.manifest_of(fields)["image_shape"][0],
            "patch_size": 1,
            "center_crop": True,
            "flip": False,
        },
        "host": {
            "name": "transdiff",
            "form": form,
            "row_patch": patch,
            **{name: fields[name] for name in ("width", "depth", "num_heads", "buffer_size")},
            "attention_dropout": 0.1,
            "projection_dropout": 0.1,
            "label_drop": 0.1,
            "dtype": "float32",
            "remat": "none",
            "scan": False,
            "attention": "auto",
        },
        "head": {"depth": fields["head_depth"], "copies": recipe["copies"]},
        "optim": {
            "lr": recipe["lr"],
            "schedule": "constant",
            "warmup_steps": recipe["warmup_steps"],
            "weight_decay": 0.02,
            "b2": 0.95,
            "clip": 3.0,
            "ema": recipe["ema"],
            "accumulate": 1,
            "freeze": "",
        },
        "train": {
            "batch_size": 2048,
            "steps": recipe["steps"],
            "log_every": 100,
            "sample_every": 0,
            "checkpoint_every": 5_000,
            "checkpoint_minutes": 30.0,
            "keep": 2,
        },
        "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
        "sample": {
            "ar_steps": fields["groups"],
            "nfe": 100,
            "nfe_schedule": "constant",
            "nfe_last": 5,
            "guidance": guidance,
            "guidance_schedule": "constant",
            "temperature": noise_scale,
            "drift_scale": drift_scale,
        },
    }
    if form == "mrar":
        # The images of a row are drawn from a bank of the last images of their class.
        workdir_config["bank"] = {"size": 16, "dtype": "bfloat16", "limit_gib": 1.0}
    config.check(workdir_config)
    return workdir_config


def fields_of(settings: Mapping, manifest: Mapping) -> dict:
    """Return the fields of `sizes`, from config and manifest of a workdir.

    Raises:
      ValueError: it is no host with its own head.
    """
    if settings.get("task") != "host" or settings["host"]["name"] != "transdiff":
        raise ValueError(
            f"task: got {settings.get('task')!r}, allowed 'host' with host.name 'transdiff'"
        )
    height, width, channels = manifest["image_shape"]
    size, host = manifest["patch_size"], settings["host"]
    tokens, token_dim = (height // size) * (width // size), channels * size**2
    groups, square = GROUPS[host["form"]], host["row_patch"] ** 2
    return {
        **{name: host[name] for name in ("width", "depth", "num_heads", "buffer_size")},
        "num_rows": groups * tokens // square,
        "groups": groups,
        "reference_dim": token_dim * (square if groups > 1 else 1),
        "num_classes": len(manifest["class_names"]),
        "mlp_ratio": 4.0,
        "token_dim": token_dim,
        "num_tokens": tokens,
        "head_depth": settings["head"]["depth"],
    }
