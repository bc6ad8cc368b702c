"""Writes `drafts.json` and `drafts.md`: the tables of `speculation.py` for a reader."""

import pathlib
from collections.abc import Sequence

import numpy as np

from driftar_jax.config import wrong
from driftar_jax.reports import tables
from driftar_jax.storage.jsons import read_json, write_json
from driftar_jax.storage.pages import write_page

LIMITS = (
    "A round drafts gamma AR steps and lets one backbone call judge them. A call then holds "
    "gamma + 1 contexts per image: it shortens the chain of calls, not the arithmetic (backbone "
    "rows per image). The control is the target alone with as many backbone calls, in fewer and "
    "larger AR steps. Energy distances are between the features of a row's images and of plain "
    "images with other noise; the plain row's own is the floor."
)


def write(out: pathlib.Path, record: dict, facts: dict[str, str]) -> str:
    """Write both files.

    Args:
      out: existing folder.
      record: of `Bench.measure`.
      facts: what the numbers depend on.

    Returns:
      The Markdown.
    """
    write_json(out / "drafts.json", {"facts": facts, **record})
    text = "\n".join(
        [
            "# Speculative decoding: calls saved against quality",
            "",
            *(f"- {name}: {value}" for name, value in facts.items()),
            "",
            LIMITS,
            "",
            *main_table(record),
            "",
            "## Speed",
            "",
            *_speed(record),
            "",
            "## What auto chose",
            "",
            *_auto(record["auto"]),
            "",
            "## Accepted AR steps per round",
            "",
            *_lengths(record["rows"]),
            "",
            "## Accepted share of judged tokens by the target's entropy",
            "",
            *_by_entropy(record["rows"]),
            "",
        ]
    )
    write_page(out / "drafts.md", text)
    return text


def join(out: pathlib.Path, reports: Sequence[str]) -> str:
    """Put the drafted rows of several reports into one table, `joined.md`.

    Args:
      out: existing folder.
      reports: folders of `write`; their names are what tells the reports apart.

    Returns:
      The Markdown.

    Raises:
      ValueError: a folder holds no such report, or two have one name; one line.
    """
    read = {}
    for folder in map(pathlib.Path, reports):
        record = read_json("join", folder / "drafts.json", "folders of evaluate_drafts")
        try:
            # Plain rows have no drafts to compare.
            rows = [row for row in record["rows"] if "accepted_groups" in row]
            facts = f"{record['facts']['checkpoints']}; {record['facts']['images']}"
            cells = [(_name(row), _joined_cells(row)) for row in rows]
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise wrong("join", str(folder), "folders of evaluate_drafts") from error
        if folder.name in read:
            raise wrong("join", folder.name, "folders of different names")
        read[folder.name] = cells, facts
    head = (
        "method | report | backbone calls per image | accepted share of drafts | "
        "accepted AR steps per call | distance | energy distance to plain"
    ).split(" | ")
    names = dict.fromkeys(name for cells, _ in read.values() for name, _ in cells)
    lines = []
    for name in names:
        for report, (cells, _) in read.items():
            lines += [[name, report, *row] for called, row in cells if called == name]
    facts = [f"- {report}: {said}" for report, (_, said) in read.items()]
    title = "# Acceptance of drafts, report by report"
    spread = "Means and standard deviations over checkpoints and sampling seeds."
    text = "\n".join([title, "", *facts, "", spread, "", *tables.lines(head, lines), ""])
    write_page(out / "joined.md", text)
    return text


def _joined_cells(row: dict) -> list[str]:
    digits = {
        "backbone_calls": 2,
        "accepted_groups": 3,
        "accepted_per_call": 2,
        "frechet": 2,
        "energy_distance": 4,
    }
    return [_spread(row, name, n) for name, n in digits.items()]


def _name(row: dict) -> str:
    return f"{row['method']}, gamma {row['gamma']}" if row["gamma"] else "plain"


def _spread(row: dict, name: str, digits: int) -> str:
    return f"{row[name]:.{digits}f} +- {row[f'{name}_std']:.{digits}f}"


def main_table(record: dict) -> list[str]:
    """Return the table of calls and quality as Markdown lines; `record` is of `Bench.measure`."""
    head = (
        "method | AR steps | backbone calls per image | draft calls | head evaluations | "
        "backbone rows | calls saved | distance | accuracy | energy distance to plain | "
        "control: AR steps | control's distance | control's energy distance"
    ).split(" | ")
    # Beside every row stands plain decoding with as many calls: a saving that it reaches as well
    # earns the drafts no credit.
    controls = {row["ar_steps"]: row for row in record["controls"]}
    rows, plain = [], record["rows"][0]
    for row in record["rows"]:
        control = controls[row["control_ar_steps"]]
        rows.append(
            [
                _name(row),
                f"{row['ar_steps']}",
                _spread(row, "backbone_calls", 2),
                f"{row['draft_calls']:.2f}",
                f"{row['head_evaluations']:.2f}",
                f"{row['backbone_rows']:.1f}",
                f"{1 - row['backbone_calls'] / plain['backbone_calls']:.0%}",
                _spread(row, "frechet", 2),
                _spread(row, "accuracy", 3),
                _spread(row, "energy_distance", 4),
                f"{control['ar_steps']}",
                _spread(control, "frechet", 2),
                _spread(control, "energy_distance", 4),
            ]
        )
    return tables.lines(head, rows)


def _speed(record: dict) -> list[str]:
    sizes = list(record["rows"][0]["speed"])
    head = ["method", *(f"images/s, batch {size} (times plain)" for size in sizes)]
    fewer = [row for row in record["controls"] if row is not record["rows"][0]]
    rows = []
    for row in [*record["rows"], *fewer]:
        name = _name(row) if row["gamma"] else f"plain, {row['ar_steps']} AR steps"
        speeds = [row["speed"][size] for size in sizes]
        rows.append([name, *(f"{s['images_per_s']:.1f} ({s['ratio']:.2f})" for s in speeds)])
    return tables.lines(head, rows)


def _auto(chosen: Sequence[dict]) -> list[str]:
    head = (
        "rule | batch | gamma | predicted | chance of each draft | seconds per batch by gamma | "
        "seconds to find out"
    ).split(" | ")
    rows = [
        [
            c["method"],
            f"{c['batch_size']}",
            f"{c['gamma']}",
            f"{c['predicted']}",
            ", ".join(f"{chance:.2f}" for chance in c["acceptance"]),
            ", ".join(f"{g}: {seconds:.3f}" for g, seconds in c["seconds"].items()),
            f"{c['finding_out']:.1f}",
        ]
        for c in chosen
    ]
    return tables.lines(head, rows)


def _drafted(rows: Sequence[dict]) -> list[dict]:
    return [row for row in rows if row.get("speculation")]


def _lengths(rows: Sequence[dict]) -> list[str]:
    rows = _drafted(rows)
    # Rules draft up to different numbers of steps; the shorter rows end in empty cells.
    most = max(len(row["speculation"]["accepted_lengths"]) for row in rows)
    head = ["method", *(f"{n}" for n in range(most)), "mean", "accepted share of drafts"]
    lines = []
    for row in rows:
        speculation = row["speculation"]
        lengths = np.array(speculation["accepted_lengths"], float)
        shares = [f"{share:.0%}" for share in lengths / lengths.sum()]
        shares += [""] * (most - len(shares))
        mean, share = speculation["accepted_per_call"], speculation["accepted_groups"]
        lines.append([_name(row), *shares, f"{mean:.2f}", f"{share:.0%}"])
    return tables.lines(head, lines)


def _by_entropy(rows: Sequence[dict]) -> list[str]:
    rows = _drafted(rows)
    # Bins in which any row judged a token; the others would be empty columns.
    bins = sorted({(b["from"], b["to"]) for r in rows for b in r["speculation"]["by_entropy"]})
    head = ["method", *(f"E {low:g} to {high:g}" for low, high in bins)]
    lines = []
    for row in rows:
        known = {(b["from"], b["to"]): b for b in row["speculation"]["by_entropy"]}
        cells = [
            f"{known[b]['accepted']:.0%} of {known[b]['tokens']}" if b in known else ""
            for b in bins
        ]
        lines.append([_name(row), *cells])
    return tables.lines(head, lines)
