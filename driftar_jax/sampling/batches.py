"""Requests of any size as batches of one size: padding, joined images, joined counts."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from driftar_jax import seeds
from driftar_jax.config import wrong
from driftar_jax.data.pixels import to_uint8
from driftar_jax.hosts.base import Model
from driftar_jax.sampling.settings import Settings
from driftar_jax.sharding import over_rows, parts_of, rows_over
from driftar_jax.types import Counts, Hole, Speculation, Trace

as_pixels = jax.jit(to_uint8)


@dataclasses.dataclass(frozen=True)
class Part:
    """What one call made.

    Attributes:
      numbers: `[k]` of the images in the whole request.
      images: uint8 `[k, H, W, C]`.
      counts: `Counts` of an image, or with drafts the `Speculation` of the whole padded call; with
        a draft model the drafts that passed, `[B, T]`.
      trace: of the images, if it was asked for.
    """

    numbers: np.ndarray
    images: np.ndarray
    counts: Counts | Speculation | jax.Array
    trace: Trace | None = None


def stream(
    model: Model,
    settings: Settings,
    params: Mapping[str, Any],
    condition: Any,
    seed: int,
    *,
    batch_size: int = 256,
    to_pixels: Callable[[jax.Array], jax.Array] = as_pixels,
    hole: Hole | None = None,
    numbers: Sequence[int] | None = None,
    trace: bool = False,
) -> Iterator[Part]:
    """Generate images batch by batch, so that memory does not grow with their number.

    On several devices the rows of a batch are laid out over them, where a batch has as many.

    Args:
      model, settings, params: as for `plain.generate`; gamma is chosen.
      condition: leaves `[n, ...]`.
      seed: root of the randomness, 0 to 2**63 - 1.
      batch_size: images per call; the last call is padded.
      to_pixels: a batch of grids to uint8 images; by default the grid is the image, in [-1, 1].
      hole: as for `plain.generate`; not with drafts.
      numbers: of the images that are wanted, in order; None: all n. An image follows from its
        number, whatever else is made.
      trace: also how their tokens came to be; checked by `traces.check`.

    Raises:
      ValueError: a condition or the settings are out of range; nothing has been compiled.
    """
    check(model, settings, condition)
    for field, value in (("gamma", settings.drafts), ("lookahead", settings.lookahead)):
        if value < 0:
            raise wrong(field, value, "a number from 0 (choose it first)")
    wanted = np.arange(size(condition)) if numbers is None else np.asarray(numbers, np.int64)
    function, first, shared = _program(model, settings, params, condition)
    seed = seeds.argument(seed)
    # Named only where it is asked for: the programs of all others keep their calls.
    traced = {"trace": True} if trace else {}

    @seeds.fixed()
    def make(rows, index):
        if settings.speculates or settings.draft_steps:
            return function(*first, rows, index, seed, **traced)
        grids, counts, *rest = function(*first, rows, index, seed, hole, **traced)
        counts = jax.tree.map(int, counts)
        if shared is not None:
            # Calls that the request shares count for each image by its part.
            calls = shared / size(condition)
            counts = dataclasses.replace(counts, backbone_calls=calls, backbone_rows=calls)
        return grids, counts, *rest

    pixels, rows = seeds.fixed()(to_pixels), rows_over(params)
    yield from _in_batches(make, condition, wanted, batch_size, pixels, rows)


def compile_ahead(
    model: Model,
    settings: Settings,
    params: Mapping[str, Any],
    condition: Any,
    seed: int,
    *,
    batch_size: int = 256,
    to_pixels: Callable[[jax.Array], jax.Array] = as_pixels,
) -> None:
    """Compile what `stream` would run with the same arguments; no image is made.

    It pays where compiled programs are kept (`storage.compiled`): the next process finds them.

    Args:
      model, settings, params, condition, seed, batch_size, to_pixels: as for `stream`.
    """
    function, first, _ = _program(model, settings, params, condition)
    rows = rows_over(params)
    batch = next(_batches(condition, np.arange(size(condition)), batch_size, rows))[1]
    with seeds.fixed():
        program = function.lower(*first, *batch, seeds.argument(seed)).compile()
        grid, place = program.out_info[0], program.output_shardings[0]
        grid = jax.ShapeDtypeStruct(grid.shape, grid.dtype, sharding=place)
        to_pixels.lower(grid).compile()


def _program(model: Model, settings: Settings, params: Mapping[str, Any], condition: Any):
    """Return the jitted function of a batch, its first arguments, and calls that images share."""
    if settings.speculates:
        from driftar_jax.sampling import drafted  # of the two roads the one that is taken

        # As `draft_count` and `window_size` ask: one compilation serves both.
        first = model, settings.speculation, settings.plainly, params
        return drafted.generate, first, None
    if settings.draft_steps:
        from driftar_jax.sampling import two_models

        return two_models.generate, (model, settings, params), None
    from driftar_jax.sampling import plain

    # Before the batches: a table that serves all of them is made once.
    with seeds.fixed():
        images = size(condition) * settings.branches
        params, shared = model.family.prepare(model, params, images)
    return plain.generate, (model, settings, params), shared


def sample_images(
    model: Model,
    settings: Settings,
    params: Mapping[str, Any],
    condition: Any,
    seed: int,
    **rest,
) -> tuple[np.ndarray, Counts]:
    """Generate one image per condition, in batches of one size; arguments as for `stream`.

    Returns:
      uint8 images `[n, ...]`, and `Counts` per image; means where images differ.

    Raises:
      ValueError: as `stream`.
    """
    images, counts = _all(stream(model, settings, params, condition, seed, **rest))
    if settings.draft_steps:
        from driftar_jax.sampling import two_models

        return images, two_models.counts(settings)
    return images, counts_of(counts, len(images))


def sample_drafted(
    model: Model,
    settings: Settings,
    params: Mapping[str, Any],
    condition: Any,
    seed: int,
    **rest,
) -> tuple[np.ndarray, Speculation]:
    """Do as `sample_images` by speculative decoding, with all that is counted on the way.

    Returns:
      uint8 images `[n, ...]`, and `Speculation` whose fields are `[n, ...]` for the images and
      `[batches]` for the batches.

    Raises:
      ValueError: as `stream`.
    """
    images, parts = _all(stream(model, settings, params, condition, seed, **rest))
    return images, joined(parts, len(images))


def _all(parts: Iterator[Part]) -> tuple[np.ndarray, list[Any]]:
    """Return the images of a request, and what its calls found."""
    parts = list(parts)
    return np.concatenate([part.images for part in parts]), [part.counts for part in parts]


def counts_of(counts: Sequence[Counts] | Sequence[Speculation], num: int) -> Counts:
    """Return the counts per image of the parts of a request of `num` images."""
    return counts[0] if isinstance(counts[0], Counts) else drafted_counts(joined(counts, num))


def check(model: Model, settings: Settings, condition: Any) -> None:
    """Raise ValueError where settings or conditions do not fit the model."""
    settings.check(model)
    model.family.check_conditions(model, condition)


def size(condition: Any) -> int:
    """Return n of conditions whose leaves are `[n, ...]`."""
    return len(jax.tree.leaves(condition)[0])


def _in_batches(
    make, condition, wanted: np.ndarray, batch_size: int, to_pixels, rows: NamedSharding | None
) -> Iterator[Part]:
    """Yield the images `wanted` of `make(condition [B], index [B])`, B at a time."""
    for numbers, batch in _batches(condition, wanted, batch_size, rows):
        grids, counts, *trace = make(*batch)
        images = np.asarray(to_pixels(grids))[: len(numbers)]
        yield Part(numbers, images, counts, *_cut(trace, len(numbers)))


def _batches(
    condition, wanted: np.ndarray, batch_size: int, rows: NamedSharding | None
) -> Iterator[tuple[np.ndarray, tuple[Any, Any]]]:
    """Yield the numbers of a batch's images, and `condition [B]` and `index [B]` of the call."""
    condition = jax.tree.map(np.asarray, condition)
    batch_size = min(batch_size, len(wanted))
    devices = 1 if rows is None else parts_of(rows.mesh)
    if batch_size >= devices > 1:  # every device takes as many rows
        batch_size = -(-batch_size // devices) * devices
    for first in range(0, len(wanted), batch_size):
        numbers = wanted[first : first + batch_size]
        # The last batch is filled up with the last image, so that one compilation serves all.
        index = np.pad(numbers, (0, batch_size - len(numbers)), mode="edge").astype(np.int32)
        batch = jax.tree.map(lambda a, at=index: a[at], condition), index
        batch = over_rows(batch, rows)
        yield numbers, batch


def _cut(tree: Any, number: int) -> Any:
    """Arrays `[B, ...]` without the rows that filled up the batch."""
    return jax.tree.map(lambda a: np.asarray(a)[:number], tree)


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
