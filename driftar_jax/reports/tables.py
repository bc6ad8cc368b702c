"""Tables in Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any


def lines(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return a table as lines: its headings, and a row of cells for each line."""
    return [_row(head), "|" + "---|" * len(head), *map(_row, rows)]


def _row(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
