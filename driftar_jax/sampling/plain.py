"""The lock-step road: all images of a batch take their AR steps together, in one program."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from driftar_jax.data.pixels import unpatchify
from driftar_jax.drift.head import DriftHead
from driftar_jax.heads import randomness
from driftar_jax.hosts.base import Model
from driftar_jax.sampling.settings import Settings
from driftar_jax.types import Counts, Hole, Trace


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames="trace")
def generate(
    model: Model,
    settings: Settings,
    params: Mapping[str, Any],
    condition: Any,
    index: jax.Array,
    seed: jax.Array,
    hole: Hole | None = None,
    trace: bool = False,
) -> tuple[jax.Array, Counts] | tuple[jax.Array, Counts, Trace]:
    """Generate a batch of images; the tokens are put back in their places.

    Args:
      model: modules of a run.
      settings: checked against `model`.
      params: parameter groups of the run.
      condition: of the images, leaves `[B, ...]`; classes `[B]` int32, -1 for none, or what
        `conditions.py` makes.
      index: `[B]` int32 number of each image in the whole request; with `seed` it decides all of
        an image's randomness, so an image does not depend on its batch.
      seed: uint32 scalar.
      hole: tokens that stand; a host of any order fills in the others.
      trace: also return how the tokens came to be; it is a program of its own, and images are
        the same up to its rounding.

    Returns:
      float32 grid `[B, H, W, C]` of `model.images.image_shape`, `Counts` per image, and the `Trace`
      where it is asked for.
    """
    keys = randomness.image_keys(seed, index)
    head = one_step_head(model, settings, params)
    result = model.family.plain(model, settings, params, condition, keys, head, hole, trace)
    if trace:
        return grid_of(model, result.tokens), counts(model, settings), result
    return grid_of(model, result), counts(model, settings)


def grid_of(model: Model, tokens: jax.Array) -> jax.Array:
    """Put tokens `[B, N, C]` in their places: `[B, H, W, C]` of `model.images.image_shape`."""
    images = model.images
    return unpatchify(tokens, *images.image_shape[:2], images.patch_size)


def one_step_head(model: Model, settings: Settings, params: Mapping[str, Any]) -> DriftHead | None:
    """Bind prior and decoder as checked settings want them; None where the host's own head runs."""
    if settings.method == "own":
        return None
    decoder = model.decoder if settings.method == "drift" else None
    trained = settings.guidance_form == "trained"
    return DriftHead(model.prior, decoder, params, settings.guided, settings.temperature, trained)


def counts(model: Model, settings: Settings) -> Counts:
    """Return what an image costs: every AR step is one backbone call of its branches.

    With an accelerator some calls are cheap ones, and have fewer branches.
    """
    rows = settings.rows
    if settings.accelerator != "none":
        rows = model.family.rows(model, settings)
    return Counts(
        backbone_calls=jnp.int32(settings.ar_steps),
        head_evaluations=jnp.int32(sum(settings.head_steps)),
        draft_calls=jnp.int32(0),
        backbone_rows=jnp.int32(rows),
    )
