"""Requests of any size as batches of one size: padding, joined images, joined counts."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from driftar_jax import seeds
from driftar_jax.config import wrong
from driftar_jax.data.pixels import to_uint8
from driftar_jax.hosts.base import Model
from driftar_jax.sampling import drafted, plain
from driftar_jax.sampling.settings import Settings
from driftar_jax.types import Counts, Given, Speculation

as_pixels = jax.jit(to_uint8)


@seeds.fixed()
def sample_images(
    model: Model,
    settings: Settings,
    params: Mapping[str, Any],
    condition: Any,
    seed: int,
    *,
    batch_size: int = 256,
    to_pixels: Callable[[jax.Array], jax.Array] = as_pixels,
    given: Given | None = None,
) -> tuple[np.ndarray, Counts]:
    """Generate one image per condition, in batches of one size.

    Args:
      model, settings, params: as for `plain.generate`.
      condition: leaves `[n, ...]`.
      seed: root of the randomness, 0 to 2**63 - 1.
      batch_size: images per call; the last call is padded.
      to_pixels: a batch of grids to uint8 images; by default the grid is the image, in [-1, 1].
      given: as for `plain.generate`; not with drafts.

    Returns:
      uint8 images `[n, ...]`, and `Counts` per image; means where images differ.

    Raises:
      ValueError: a condition or the settings are out of range; nothing has been compiled.
    """
    if settings.speculates:
        images, speculation = sample_drafted(
            model, settings, params, condition, seed, batch_size=batch_size, to_pixels=to_pixels
        )
        return images, drafted_counts(speculation)

    check(model, settings, condition)
    number, seed = size(condition), seeds.argument(seed)
    # Before the batches: a table that serves all of them is made once.
    params, shared = model.family.prepare(model, params, number * settings.branches)

    def make(condition, index):
        return plain.generate(model, settings, params, condition, index, seed, given)

    images, each = _in_batches(make, condition, batch_size, to_pixels)
    counts = jax.tree.map(int, each[0])
    if shared is not None:
        # Calls that the request shares count for each image by its part.
        calls = shared / number
        counts = dataclasses.replace(counts, backbone_calls=calls, backbone_rows=calls)
    return images, counts


@seeds.fixed()
def sample_drafted(
    model: Model,
    settings: Settings,
    params: Mapping[str, Any],
    condition: Any,
    seed: int,
    *,
    batch_size: int = 256,
    to_pixels: Callable[[jax.Array], jax.Array] = as_pixels,
) -> tuple[np.ndarray, Speculation]:
    """Do as `sample_images` by speculative decoding, with all that is counted on the way.

    Returns:
      uint8 images `[n, ...]`, and `Speculation` whose fields are `[n, ...]` for the images and
      `[batches]` for the batches.

    Raises:
      ValueError: as `sample_images`; or gamma is still to be chosen.
    """
    check(model, settings, condition)
    for field in ("gamma", "lookahead"):
        if getattr(settings, field) < 0:
            raise wrong(field, getattr(settings, field), "a number from 0 (choose it first)")
    seed = seeds.argument(seed)
    # As `draft_count` and `window_size` ask: one compilation serves both.
    rule, plainly = settings.speculation, settings.plainly

    def make(condition, index):
        return drafted.generate(model, rule, plainly, params, condition, index, seed)

    images, each = _in_batches(make, condition, batch_size, to_pixels)
    return images, joined(each, size(condition))


def check(model: Model, settings: Settings, condition: Any) -> None:
    """Raise ValueError where settings or conditions do not fit the model."""
    settings.check(model)
    model.family.check_conditions(model, condition)


def size(condition: Any) -> int:
    """Return n of conditions whose leaves are `[n, ...]`."""
    return len(jax.tree.leaves(condition)[0])


def _in_batches(make, condition, batch_size: int, to_pixels) -> tuple[np.ndarray, list]:
    """Return all images of `make(condition [B], index [B])`, and what else it gave each batch."""
    condition = jax.tree.map(np.asarray, condition)
    number = size(condition)
    batch_size = min(batch_size, number)
    images, rest = [], []
    for first in range(0, number, batch_size):
        index = np.arange(first, first + batch_size, dtype=np.int32)
        # The last batch is filled up with the last image, so that one compilation serves all.
        at = np.minimum(index, number - 1)
        grids, other = make(jax.tree.map(lambda a, at=at: a[at], condition), index)
        images.append(np.asarray(to_pixels(grids))[: number - first])
        rest.append(other)
    return np.concatenate(images), rest


_OF_BATCHES = ("batch_calls", "batch_draft_calls", "batch_rows")


def joined(batches: Sequence[Speculation], num: int) -> Speculation:
    """Join the counts of several batches: `[num, ...]` of images, `[batches]` of batches."""
    arrays = [jax.tree.map(np.asarray, batch) for batch in batches]
    fields = {}
    for field in dataclasses.fields(Speculation):
        values = [getattr(a, field.name) for a in arrays]
        # The last batch is padded with images that nobody asked for.
        of_batches = field.name in _OF_BATCHES
        fields[field.name] = np.stack(values) if of_batches else np.concatenate(values)[:num]
    return Speculation(**fields)


def drafted_counts(speculation: Speculation) -> Counts:
    """Return means per image of joined counts; rows are the batch's, idle ones included."""
    return Counts(
        backbone_calls=float(speculation.backbone_calls.mean()),
        head_evaluations=float(speculation.head_evaluations.mean()),
        draft_calls=float(speculation.draft_calls.mean()),
        backbone_rows=float(speculation.batch_rows.mean()),
    )


def summary(speculation: Speculation) -> dict[str, Any]:
    """Return joined counts as plain numbers, for reports.

    Returns:
      `accepted_per_call` (groups, mean), `accepted_groups` (share of the drafted ones), `calls` (of
      an image: mean, low, high), `accepted_lengths` (rounds with 0, 1, ... accepted groups),
      `calls_of_batch` (mean backbone calls of a batch), and `by_entropy`: for each bin of the
      target's entropy that holds a judged token its bounds, the number of tokens and the accepted
      share.
    """
    lengths = speculation.lengths.sum(axis=0)
    groups = int((lengths * np.arange(len(lengths))).sum())
    calls = speculation.backbone_calls
    judged, accepted = speculation.judged.sum(axis=0), speculation.accepted.sum(axis=0)
    edges = np.linspace(0, 1, len(judged) + 1)
    return {
        "accepted_per_call": groups / max(int(lengths.sum()), 1),
        "accepted_groups": groups / max(int(speculation.draft_calls.sum()), 1),
        "calls": [float(calls.mean()), int(calls.min()), int(calls.max())],
        "accepted_lengths": lengths.tolist(),
        "calls_of_batch": float(speculation.batch_calls.mean()),
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
