"""A published model on disk: the workdir that `convert --family=drift_ar` writes."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from driftar_jax import seeds
from driftar_jax.config import PUBLISHED
from driftar_jax.published.model import DriftAR
from driftar_jax.storage.checkpoints import Checkpoints, read_config

TASK = PUBLISHED
# Of the published evaluation.
GUIDANCE = 1.3


def config_of(model: DriftAR, phi: bool) -> dict:
    """Return what `config.json` holds of a model; `phi`: its arrays hold phi's block.

    Raises:
      ValueError: the token grid is not square.
    """
    side = math.isqrt(model.num_tokens)
    if side**2 != model.num_tokens:
        raise ValueError(f"num_tokens: got {model.num_tokens}, allowed square token grids")
    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
    # No sizes: the type is chosen when it is loaded, the other two are linen's own.
    for name in ("parent", "name", "dtype"):
        fields.pop(name)
    return {
        "task": TASK,
        "seed": 0,
        "phi": phi,
        "model": fields,
        "data": {"name": "latents", "data_dir": "", "image_size": side, "patch_size": 1},
        "sample": {
            "ar_steps": 1,
            "nfe": 1,
            "guidance": GUIDANCE,
            "guidance_schedule": "constant",
            "temperature": 1.0,
        },
    }


def manifest_of(model: DriftAR) -> dict:
    """Return the facts of a workdir: the token grid as an image of patches of 1, and classes."""
    side = math.isqrt(model.num_tokens)
    return {
        "task": TASK,
        "image_shape": [side, side, model.token_dim],
        "patch_size": 1,
        "class_names": [str(i) for i in range(model.num_classes)],
    }


def module(config: Mapping, dtype: jnp.dtype | None = None) -> DriftAR:
    """Build the module of such a config.

    Args:
      config: as `config_of` makes it; `dtype` in it is what the model is loaded with.
      dtype: of the matrix products; None: the config's, else float32.

    Raises:
      ValueError: it is the config of something else.
    """
    if config.get("task") != TASK:
        raise ValueError(f"task: got {config.get('task')!r}, allowed {TASK!r}")
    if dtype is None:
        dtype = jnp.dtype(config.get("dtype", jnp.float32))
    return DriftAR(**config["model"], dtype=dtype)


def abstract(model: DriftAR, phi: bool) -> dict:
    """Return groups of `ShapeDtypeStruct`, without running anything; without phi's block if not
    `phi`.
    """
    label = jax.ShapeDtypeStruct((1,), np.int32)
    eps = jax.ShapeDtypeStruct((1, model.num_tokens, model.token_dim), np.float32)
    params = nn.unbox(jax.eval_shape(model.init, seeds.key(0), label, eps)["params"])
    return {group: tree for group, tree in params.items() if phi or group != "feature_block"}


def load(workdir: str | pathlib.Path, dtype: jnp.dtype = jnp.float32) -> tuple[DriftAR, dict]:
    """Load the model of a workdir and its averaged parameters.

    Args:
      workdir: folder written by `convert --family=drift_ar`.
      dtype: type of the matrix products.

    Returns:
      Module, and parameters by group; `feature_block` is among them if the official file had it
      (`model.with_features` adds it otherwise).

    Raises:
      ValueError: it is no such folder, or the arrays do not fit its config; one line.
    """
    config = read_config(workdir)
    model = module(config, dtype)
    checkpoints = Checkpoints(workdir, create=False)
    step = checkpoints.latest_step()
    if step is None:
        raise ValueError(f"workdir: got {str(workdir)!r}, allowed one with a finished checkpoint")
    params = checkpoints.restore(step, ema=abstract(model, config["phi"]))["ema"]
    checkpoints.close()
    return model, params
