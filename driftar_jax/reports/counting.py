"""The table of what an image costs with each accelerator, counted and not run."""

from typing import Any

from driftar_jax.hosts.base import Model
from driftar_jax.reports import tables
from driftar_jax.sampling.settings import Settings

_HEAD = (
    "caches",
    "full calls",
    "cheap calls",
    "backbone rows",
    "token rows through blocks",
    "head evaluations",
    "backbone GFLOP",
    "head GFLOP",
    "fewer operations",
)


_PAIR = (
    "decoding",
    "target calls",
    "draft calls",
    "target rows",
    "draft rows",
    "head evaluations of the target",
    "of the draft",
    "target GFLOP",
    "draft GFLOP",
    "fewer target calls",
    "fewer operations",
)


def lines(model: Model, settings: Settings) -> list[str]:
    """Return the table for an image, as lines of Markdown."""
    rows = model.family.work(model, settings)
    if settings.draft_steps:
        return tables.lines(_PAIR, [_pair(row, rows[0]) for row in rows])
    cells = [
        (
            row.method,
            row.full_calls,
            row.cheap_calls,
            row.backbone_rows,
            row.token_rows,
            row.head_evaluations,
            f"{row.backbone_flops / 1e9:.2f}",
            f"{row.head_flops / 1e9:.2f}",
            f"{rows[0].flops / row.flops:.2f} times",
        )
        for row in rows
    ]
    return tables.lines(_HEAD, cells)


def _pair(row: Any, alone: Any) -> tuple:
    """Return the cells of a decoding by two models, beside the target `alone`."""
    target, draft = row.target, row.draft
    calls, rows, evaluations, flops = (0, 0, 0, 0.0)
    if draft is not None:
        calls, rows = draft.full_calls, draft.backbone_rows
        evaluations, flops = draft.head_evaluations, draft.flops
    return (
        row.method,
        target.full_calls,
        calls,
        target.backbone_rows,
        rows,
        target.head_evaluations,
        evaluations,
        f"{target.flops / 1e9:.2f}",
        f"{flops / 1e9:.2f}",
        f"{alone.target.full_calls / target.full_calls:.2f} times",
        f"{alone.flops / row.flops:.2f} times",
    )
