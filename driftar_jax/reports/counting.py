"""The table of what an image costs with each accelerator, counted and not run."""

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


def lines(model: Model, settings: Settings) -> list[str]:
    """Return the table for an image, as lines of Markdown."""
    rows = model.family.work(model, settings)
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
