"""Speculative generation of a run's images: its modules put into the engine."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from driftar_jax.data.patches import unpatchify
from driftar_jax.drift.head import DriftHead
from driftar_jax.heads import randomness
from driftar_jax.hosts import mar_plan
from driftar_jax.hosts.mar_groups import MARGroups, draft_rows
from driftar_jax.hosts.nextstep import NextStep
from driftar_jax.hosts.schedules import cosine_counts
from driftar_jax.model import Parts
from driftar_jax.sampling import speculative, text_sampler
from driftar_jax.types import Counts, Speculation


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def generate(
    parts: Parts,
    rule: speculative.Rule,
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
      params, label, index, seed: as for `sampler.generate`; the early stop of the checkpoint reads
        the group `tracker` (`policy.EntropyTracker`).

    Returns:
      float32 grid `[B, H, W, C]`, and `Speculation`.
    """
    tokens, found = bound(parts, rule, settings, params, label, index, seed).run()
    images = parts.images
    return unpatchify(tokens, *images.image_shape[:2], images.patch_size), found


def bound(parts, rule, settings, params, label, index, seed) -> speculative.Engine:
    """The engine of a batch; arguments as for `generate`."""
    images, keys = parts.images, randomness.image_keys(seed, index)
    if isinstance(parts.host, NextStep):
        return text_sampler.drafted(parts, rule, settings, params, label, keys)
    steps = mar_plan.make(
        images.num_tokens,
        settings.ar_steps,
        guidance=settings.guidance,
        guidance_schedule=settings.guidance_schedule,
        head_steps=settings.head_steps,
    )
    host = MARGroups.of(
        module=parts.host,
        params=params["host"],
        label=label,
        order=randomness.orders(keys, images.num_tokens),
        counts=cosine_counts(images.num_tokens, settings.ar_steps),
        branches=2 if settings.guided else 1,
    )
    trained = settings.guidance_form == "trained"
    head = DriftHead(
        parts.prior, parts.decoder, params, settings.guided, settings.temperature, trained
    )
    draft = draft_rows(host, parts.draft, params["draft"]) if rule.gamma else None
    token_keys, prior_keys = (
        randomness.token_keys(keys, images.num_tokens),
        randomness.prior_keys(keys),
    )
    tracker = params.get("tracker")
    return speculative.Engine(host, draft, head, token_keys, prior_keys, steps.scale, rule, tracker)


_OF_BATCHES = ("batch_calls", "batch_draft_calls", "batch_rows")


def joined(found: Sequence[Speculation], num: int) -> Speculation:
    """Counts of several batches as one: `[num, ...]` of images, `[batches]` of batches."""
    arrays = [jax.tree.map(np.asarray, f) for f in found]
    fields = {}
    for field in dataclasses.fields(Speculation):
        values = [getattr(a, field.name) for a in arrays]
        # The last batch is padded with images that nobody asked for.
        of_batches = field.name in _OF_BATCHES
        fields[field.name] = np.stack(values) if of_batches else np.concatenate(values)[:num]
    return Speculation(**fields)


def counts(found: Speculation) -> Counts:
    """Means per image of joined counts; rows are the batch's, idle ones included."""
    return Counts(
        backbone_calls=float(found.backbone_calls.mean()),
        head_evaluations=float(found.head_evaluations.mean()),
        draft_calls=float(found.draft_calls.mean()),
        backbone_rows=float(found.batch_rows.mean()),
    )


def summary(found: Speculation) -> dict[str, Any]:
    """Joined counts as plain numbers, for reports.

    Returns:
      `accepted_per_call` (groups, mean), `accepted_groups` (share of the drafted ones),
      `accepted_lengths` (rounds with 0, 1, ... accepted groups), `calls_of_batch` (mean backbone
      calls of a batch), and `by_entropy`: for each bin of the target's entropy that holds a judged
      token its bounds, the number of tokens and the accepted share.
    """
    lengths = found.lengths.sum(axis=0)
    groups = int((lengths * np.arange(len(lengths))).sum())
    judged, accepted = found.judged.sum(axis=0), found.accepted.sum(axis=0)
    edges = np.linspace(0, 1, len(judged) + 1)
    return {
        "accepted_per_call": groups / max(int(lengths.sum()), 1),
        "accepted_groups": groups / max(int(found.draft_calls.sum()), 1),
        "accepted_lengths": lengths.tolist(),
        "calls_of_batch": float(found.batch_calls.mean()),
        "by_entropy": [
            {
                "from": round(float(edges[i]), 4),
                "to": round(float(edges[i + 1]), 4),
                "tokens": int(judged[i]),
                "accepted": float(accepted[i] / judged[i]),
            }
            for i in np.flatnonzero(judged)
        ],
    }
