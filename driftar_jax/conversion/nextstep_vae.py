"""Checkpoints of NextStep-1's f8 autoencoder: sizes from shapes, the rest from its `config.json`.

Names are those of the KL autoencoder without its quantisation convolutions.
"""

import re
from collections.abc import Mapping
from typing import Any

from driftar_jax.config import wrong
from driftar_jax.conversion import vae
from driftar_jax.vae.f8 import F8VAE

RULES = [rule for rule in vae.RULES if "quant_conv" not in rule.official]


def module(shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any]) -> F8VAE:
    """Build the module that a state dict and its `config.json` describe.

    Args:
      shapes: official name -> shape.
      settings: `scaling_factor`, `shift_factor`, `deterministic`, `encoder_norm` and `psz`; the
        class defaults of the official program are not those of the released weights, so each must
        be there. Sizes, where they are there, must agree with the arrays.

    Raises:
      ValueError: a name or a setting is missing, or they disagree.
    """
    for name in ("encoder.conv_in.weight", "decoder.conv_out.weight", "decoder.conv_in.weight"):
        if len(shapes.get(name, ())) != 4:
            raise wrong(name, shapes.get(name), "an f8 autoencoder's 4-axis array")
    kinds = {
        "scaling_factor": (int, float),
        "shift_factor": (int, float),
        "deterministic": bool,
        "encoder_norm": bool,
        "psz": (int, type(None)),
    }
    for name, kind in kinds.items():
        value = settings.get(name)
        known = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if name not in settings or not known:
            raise wrong(name, value, "a value in the autoencoder's config.json")
    if not settings["scaling_factor"]:
        raise wrong("scaling_factor", settings["scaling_factor"], "a number other than 0")
    channels = shapes["encoder.conv_in.weight"][0]
    widths, blocks = {}, set()
    for name, shape in shapes.items():
        if match := re.fullmatch(r"encoder\.down\.(\d+)\.block\.(\d+)\.conv1\.weight", name):
            widths[int(match[1])] = shape[0]
            blocks.add(int(match[2]))
    vae = F8VAE(
        normalise=settings["encoder_norm"],
        patch=settings["psz"] or 1,
        scale=float(settings["scaling_factor"]),
        shift=float(settings["shift_factor"]),
        deterministic=settings["deterministic"],
        channels=channels,
        multipliers=tuple(widths[level] // channels for level in sorted(widths)),
        num_res_blocks=len(blocks),
        latent_channels=shapes["decoder.conv_in.weight"][1],
        image_channels=shapes["decoder.conv_out.weight"][0],
    )
    for name, value in (
        ("ch", vae.channels),
        ("ch_mult", list(vae.multipliers)),
        ("num_res_blocks", vae.num_res_blocks),
        ("z_channels", vae.latent_channels),
    ):
        if settings.get(name, value) != value:
            raise wrong(name, settings[name], f"{value}, as the arrays are")
    return vae
