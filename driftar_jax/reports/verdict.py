"""The table that opens the page of results: own head against one evaluation, a few rows a set."""

from collections.abc import Mapping, Sequence
from typing import Any

from driftar_jax.reports import tables

_HEAD = (
    "set and row",
    "distance",
    "times the own head's best",
    "recall",
    "calls",
    "rows",
    "evaluations",
    "seconds per image, by batch size",
    "training x sampling seeds",
)


def lines(reports: Mapping[str, dict[str, Any]]) -> list[str]:
    """Return the table of some reports of `evaluate` by name, as lines of Markdown."""
    rows = []
    for of, record in reports.items():
        seeds = _seeds(record)
        best = min(row["frechet"] for row in record["rows"] if _own(row))
        for words, row in chosen(record["rows"]):
            name = f"{of}: {words}: `{row['method']}` at {row['nfe_per_step']:g}"
            recall = f"{row['recall']:.3f}" if "recall" in row else ""
            cells = [
                name,
                f"{row['frechet']:.1f} ± {row['frechet_std']:.1f}",
                f"{row['frechet'] / best:.2f}",
                recall,
                f"{row['backbone_calls']:g}",
                f"{row['backbone_rows']:g}" if "backbone_rows" in row else "",
                f"{row['ar_steps'] * row['nfe_per_step']:g}",
                _seconds(row),
                seeds,
            ]
            rows.append(cells)
    return tables.lines(_HEAD, rows)


def chosen(rows: Sequence[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Return the rows of a report that a verdict needs, each once, with what it stands for."""
    owns = [row for row in rows if _own(row)]
    drifts = [row for row in rows if row["method"].startswith("drift")]
    one = next(row for row in drifts if row["method"] == "drift")
    as_near = [row for row in owns if row["frechet"] <= one["frechet"]]
    candidates = [("own head at its best", min(owns, key=lambda r: r["frechet"]))]
    if as_near:
        cheapest = max(as_near, key=lambda r: r["images_per_s"])
        candidates.append(("its fastest row as near as one evaluation", cheapest))
    candidates += [("one evaluation", one)]
    candidates += [("one evaluation at its best", min(drifts, key=lambda r: r["frechet"]))]
    fewest = min(drifts, key=lambda r: (r["backbone_calls"], r["frechet"]))
    if fewest["backbone_calls"] < one["backbone_calls"]:
        candidates.append(("one evaluation, fewest calls", fewest))
    once: dict[int, tuple[str, dict]] = {}
    for words, row in candidates:
        before = once.get(id(row))
        once[id(row)] = (f"{before[0]}; {words}" if before else words, row)
    return list(once.values())


def _own(row: dict[str, Any]) -> bool:
    return row["method"].startswith("own")


def _seconds(row: dict[str, Any]) -> str:
    by_size = sorted((int(size), s["images_per_s"]) for size, s in row["by_batch_size"].items())
    return ", ".join(f"{1 / speed:.3g} ({size})" for size, speed in by_size)


def _seeds(record: dict[str, Any]) -> str:
    """Return `3 x 1` of the words of a report: how many trainings, and samplings of each."""
    words = record["facts"]["images"].split()
    trained, sampled = words[words.index("training") - 1], words[words.index("sampling") - 1]
    return f"{trained} x {sampled}"
