"""Speculative generation of a run's images: its modules put into the engine."""

import functools
from typing import Any

import jax

from driftar_jax import draws, plan
from driftar_jax.assembly import Parts
from driftar_jax.drift.head import DriftHead
from driftar_jax.hosts.mar_groups import MARGroups, draft_rows
from driftar_jax.hosts.schedules import cosine_counts, unpatchify
from driftar_jax.speculative import engine
from driftar_jax.types import Speculation


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def generate(
    parts: Parts,
    rule: engine.Rule,
    settings: Any,
    params: dict[str, Any],
    label: jax.Array,
    index: jax.Array,
    seed: jax.Array,
) -> tuple[jax.Array, Speculation]:
    """`sampler.generate` for Drift-AR with drafts; an image is the same in any batch.

    Args:
      parts: modules of a Drift-AR run.
      rule: how far to draft and what to accept.
      settings: `sampler.Settings`, checked against `parts`, method `drift`.
      params, label, index, seed: as for `sampler.generate`.

    Returns:
      float32 grid `[B, H, W, C]`, and `Speculation`.
    """
    images = parts.images
    keys = draws.image_keys(seed, index)
    steps = plan.make(
        images.num_tokens,
        settings.ar_steps,
        guidance=settings.guidance,
        guidance_schedule=settings.guidance_schedule,
        head_steps=settings.head_steps,
    )
    host = MARGroups(
        module=parts.host,
        params=params["host"],
        label=label,
        order=draws.orders(keys, images.num_tokens),
        counts=cosine_counts(images.num_tokens, settings.ar_steps),
        branches=2 if settings.guided else 1,
    )
    head = DriftHead(parts.prior, parts.decoder, params, settings.guided, settings.temperature)
    draft = draft_rows(host, parts.draft, params["draft"]) if rule.gamma else None
    tokens, found = engine.Engine(host, draft, head, keys, steps.scale, rule).run()
    return unpatchify(tokens, *images.image_shape[:2], images.patch_size), found
