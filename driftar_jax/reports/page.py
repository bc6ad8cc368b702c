"""A page of results: prose from a notes file, every number from result files.

A line `{{KIND NAME}}` of the notes is replaced by what was measured:

  {{evaluate NAME}}   table, premise, sentences and picture of a `report.json`
  {{drafts NAME}}     main table of a `drafts.json`
  {{lookahead NAME}}  tables of a `lookahead.json`, with the costs of calls of every
                      `benchmark.json` of windows
  {{deviation NAME}}  tables and picture of a `deviation.json`
  {{ablation NAME}}   tables and sentences of a folder of results of `ablate`
  {{picture NAME}}    `NAME.png`, as `sample` left it
  {{verdict A,B}}     a few rows of the reports A and B in one table (`verdict.py`)

NAME is a file `NAME.json` or `NAME.png` or a folder NAME of the results. What is not there is said
to be missing; what no line names comes at the end.
"""

import contextlib
import functools
import pathlib
import re
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from driftar_jax.config import nearest, wrong
from driftar_jax.data import pictures
from driftar_jax.evaluation import deviation
from driftar_jax.reports import (
    ablation_table,
    ahead_table,
    deviation_table,
    speculation_report,
    tables,
    verdict,
)
from driftar_jax.reports.ablation_table import CONFIDENCE
from driftar_jax.storage.jsons import read_json
from driftar_jax.storage.pages import write_page
from driftar_jax.storage.reasons import reason

NOTES = "page.md"
_DIRECTIVE = re.compile(r"\{\{(\w+) (\S+)\}\}")


def write(folders: Sequence[str], out: str) -> str:
    """Write the page `out` and its pictures into `figures/` beside it.

    Args:
      folders: of results; the first that has notes gives the page.
      out: Markdown file, replaced.

    Returns:
      One line: what was written and what was missing.

    Raises:
      ValueError: a folder or a file is not what it should be; nothing has been written.
    """
    results: dict[str, tuple[str, Any]] = {}
    for folder in map(pathlib.Path, folders):
        if not folder.is_dir():
            raise wrong("results", str(folder), "folders of result files")
        results |= {path.stem: _read(path) for path in sorted(folder.iterdir()) if _is_result(path)}
    notes = [p for p in (pathlib.Path(folder) / NOTES for folder in folders) if p.exists()]
    lines = _text(notes[0]).splitlines() if notes else ["# Results", ""]
    # Costs of calls have no place of their own: tables of lookahead show them.
    costs = {name: results.pop(name)[1] for name in list(results) if results[name][0] == "windows"}
    figures = pathlib.Path(out).parent / "figures"
    filled, missing, used = [], [], set()
    # Pictures are drawn after the page: a mistake in the notes then leaves all files as they were.
    drawing: list[Callable[[], None]] = []
    section = functools.partial(_section, figures, drawing, list(costs.values()))
    for line in lines:
        directive = _DIRECTIVE.fullmatch(line.strip())
        if directive is None:
            filled.append(line)
            continue
        kind, name = directive.groups()
        if kind not in (*KINDS, "verdict"):
            raise wrong(NOTES, line, f"{' | '.join(KINDS)} | verdict{nearest(kind, KINDS)}")
        if kind == "verdict":
            names = name.split(",")
            there = {n: results[n] for n in names if n in results}
            missing += [n for n in names if n not in results]
            if other := [n for n, (of, _) in there.items() if of != "evaluate"]:
                raise wrong(NOTES, line, f"names of reports of evaluate, {other[0]} is none")
            with _whole(name):
                filled += verdict.lines({n: record for n, (_, record) in there.items()})
            continue
        if name not in results:
            missing.append(name)
            filled.append("Not measured yet.")
        elif results[name][0] != kind:
            raise wrong(NOTES, line, f"{results[name][0]} {name}")
        else:
            used.add(name)
            with _whole(name):
                filled += section(kind, name, results[name][1])
    # Sorted, for a set has no order and the page would change from run to run.
    for name in sorted(results.keys() - used):
        kind, record = results[name]
        with _whole(name):
            filled += ["", f"## {name}", "", *section(kind, name, record)]
    figures.mkdir(parents=True, exist_ok=True)
    write_page(out, "\n".join(filled).rstrip() + "\n")
    for draw in drawing:
        draw()
    words = f"{out}: {len(results) + len(costs)} results"
    return f"{words}, missing: {', '.join(missing)}" if missing else words


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise wrong(NOTES, str(path), f"a page in UTF-8 ({reason(error)})") from None


def _is_result(path: pathlib.Path) -> bool:
    return path.suffix in (".json", ".png") or (path.is_dir() and any(path.rglob("*.seed*.json")))


def _read(path: pathlib.Path) -> tuple[str, Any]:
    """Kind and content of a result."""
    if path.is_dir():
        return "ablation", ablation_table.read(path)
    if path.suffix == ".png":
        return "picture", path
    allowed = "a report.json, drafts.json, lookahead.json or deviation.json"
    record = read_json("results", path, allowed)
    try:
        # A record says by its own keys which program wrote it; file names are the user's.
        kinds = {"pairs": "deviation", "controls": "drafts", "ahead": "lookahead"}
        kinds |= {"windows": "windows", "rows": "evaluate"}
        return next(kind for key, kind in kinds.items() if key in record), record
    except StopIteration as error:
        raise wrong("results", str(path), allowed) from error


@contextlib.contextmanager
def _whole(name: str):
    """Turn what a result lacks into a ValueError that names it."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        why = f"{type(error).__name__}: {reason(error)}"
        raise wrong("results", name, f"figures as the program wrote them ({why})") from error


def _section(figures: pathlib.Path, drawing: list, costs, kind, name, record) -> list[str]:
    path = figures / f"{name}.png"
    image = ["", f"![{name}](figures/{path.name})"]
    if kind == "evaluate":
        if len(_placed(record)) > 1:
            drawing.append(lambda: _pareto(path, record))
        else:
            image = []
        return [*_evaluate(record), *image]
    if kind == "picture":
        drawing.append(lambda: shutil.copyfile(record, path))
        return image
    if kind == "deviation":
        drawing.append(lambda: deviation.picture(path, record["pairs"]))
        return [*_facts(record), "", *deviation_table.lines(record), *image]
    if kind == "lookahead":
        return [*_facts(record), "", *ahead_table.lines(record, costs)]
    if kind == "drafts":
        return [*_facts(record), "", *speculation_report.main_table(record)]
    rows = ablation_table.summary(record)
    return [*_sweep(record, rows), "", *ablation_table.lines(rows)]


KINDS = ("evaluate", "drafts", "lookahead", "deviation", "ablation", "picture")

# --- evaluate ----------------------------------------------------------------------------------

_COLUMNS = (
    ("ar_steps", "AR steps", 0),
    ("nfe_per_step", "NFE per step", 1),
    ("backbone_rows", "rows", 0),
    ("images_per_s", "images/s (low to high)", 0),
    ("speed_ratio", "speed ratio (low to high)", 2),
    ("frechet", "Frechet distance", 2),
    ("precision", "precision", 3),
    ("recall", "recall", 3),
    ("accuracy", "class accuracy", 3),
)


def _evaluate(record: dict[str, Any]) -> list[str]:
    rows = record["rows"]
    columns = [c for c in _COLUMNS if any(c[0] in row for row in rows)]
    head = ["method", *(heading for _, heading, _ in columns)]
    shown = [(row["method"], row) for row in rows]
    if "real" in record:
        real = {k: v for k, v in record["real"].items() if not k.startswith("nearest")}
        shown.append(("real images", real))
    cells = [[name, *(_cell(row, key, n) for key, _, n in columns)] for name, row in shown]
    text = [*_facts(record), "", *tables.lines(head, cells)]
    text += ["", *(f"- {words}" for words in conclusions(record))]
    text += _premise(record.get("premise", {}))
    return [*text, *_held_out(record.get("held_out", {}))]


def _cell(row: dict[str, Any], key: str, digits: int) -> str:
    if key not in row:
        return ""
    if isinstance(row[key], str):
        return row[key]
    text = f"{row[key]:.{digits}f}" if digits != 1 else f"{row[key]:g}"
    if f"{key}_std" in row:
        return f"{text} ± {row[f'{key}_std']:.{digits}f}"
    if f"{key}_low" in row:
        low, high = (f"{row[f'{key}_{end}']:.{digits}f}" for end in ("low", "high"))
        return f"{text} ({low} to {high})"
    return text


def conclusions(record: dict[str, Any]) -> list[str]:
    """Return one sentence for Drift-AR beside the own head, one for the gain at equal distance."""
    rows = record["rows"]
    own = rows[0]
    drift = next(row for row in rows if row["method"] == "drift")
    low, high = difference(own, drift)
    over = "sampling" if "of 1 training seeds" in record["facts"].get("images", "") else "training"
    bounds = "one seed"
    if low is not None:
        bounds = f"95 % interval over {over} seeds {low:+.2f} to {high:+.2f}"
    gap = drift["frechet"] - own["frechet"]
    speed = ""
    if "speed_ratio" in drift:
        speed = (
            f", at {drift['speed_ratio']:.1f} times its speed "
            f"({drift['speed_ratio_low']:.1f} to {drift['speed_ratio_high']:.1f})"
        )
    sentences = [
        f"Drift-AR at one evaluation is {gap:+.2f} from the own head at {own['nfe_per_step']} in "
        f"distance ({bounds}), {drift['frechet'] / own['frechet']:.2f} times as far from the "
        f"data{speed}."
    ]
    owns = [row for row in rows if row["method"].startswith("own")]
    reach = [row for row in owns if row["frechet"] <= drift["frechet"]]
    if "speed_ratio" in drift and reach:
        best = max(reach, key=lambda r: r["speed_ratio"])
        gain = drift["speed_ratio"] / best["speed_ratio"]
        sentences.append(
            f"The fastest row of the own head that is at least as near to the data is "
            f"`{best['method']}` at {best['nfe_per_step']:g} evaluations: at equal distance the "
            f"gain is {gain:.1f} times."
        )
    elif not reach:
        sentences.append("No row of the own head is as near to the data.")
    return sentences


def difference(a: dict[str, Any], b: dict[str, Any]) -> tuple[float | None, float | None]:
    """Return the 95 % interval of `b - a` in distance by Welch's t, from means, spreads and counts
    of seeds.

    None where a row has one seed.
    """
    n, m = a.get("seeds", 1), b.get("seeds", 1)
    if min(n, m) < 2:
        return None, None
    va, vb = a["frechet_std"] ** 2 / n, b["frechet_std"] ** 2 / m
    free = (va + vb) ** 2 / max(va**2 / (n - 1) + vb**2 / (m - 1), 1e-300)
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, free) * np.sqrt(va + vb)
    gap = b["frechet"] - a["frechet"]
    return float(gap - half), float(gap + half)


def _premise(correlations: dict[str, list[dict]]) -> list[str]:
    if not correlations:
        return []
    counts = [p["num_unknown"] for p in min(correlations.values(), key=len)]
    head = ["entropy against residual (Spearman)", *(f"{n} unknown" for n in counts)]
    rows = [
        [name, *(f"{p['spearman']:+.2f}" for p in of[: len(counts)])]
        for name, of in correlations.items()
    ]
    return ["", *tables.lines(head, rows)]


def _held_out(scores: dict[str, dict]) -> list[str]:
    if not scores:
        return []
    bands = len(next(iter(scores.values()))["spread_to_error"])
    names = (f"spread over error, band {n + 1}" for n in range(bands))
    head = ["held-out contexts", "energy score", *names]
    rows = [
        [name, f"{of['energy_score']:.4f}", *(f"{r:.2f}" for r in of["spread_to_error"])]
        for name, of in scores.items()
    ]
    return ["", *tables.lines(head, rows)]


def _placed(record: dict[str, Any]) -> list[dict]:
    return [row for row in record["rows"] if "images_per_s" in row]


def _pareto(path: pathlib.Path, record: dict[str, Any]) -> None:
    """Distance against speed, both better towards the lower right."""
    plt = pictures.pyplot()
    figure, axis = plt.subplots(figsize=(9, 5.4))
    for row in _placed(record):
        own, guided = row["method"].startswith("own"), "guidance" in row["method"]
        colour = "tab:blue" if own else "tab:gray" if row["method"] == "prior mean" else "tab:red"
        marker = "s" if guided else "o"
        axis.plot(row["images_per_s"], row["frechet"], marker, color=colour, alpha=0.8, ms=8)
        if row["method"] in ("own", "drift", "prior mean"):
            words = f"{row['method']} {row['nfe_per_step']:g}"
            place = row["images_per_s"], row["frechet"]
            axis.annotate(words, place, fontsize=10, xytext=(5, 5), textcoords="offset points")
    axis.set(xscale="log", xlabel="images/s", ylabel="Frechet distance")
    speeds = sorted(row["images_per_s"] for row in _placed(record))
    ticks = np.geomspace(speeds[0], speeds[-1], 5)
    axis.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
    axis.minorticks_off()
    axis.set_title("blue: own head, red: Drift-AR; squares: with guidance", fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


# --- what all have ------------------------------------------------------------------------------

_SHOWN = ("data", "images", "draws", "mask law", "steps", "device", "distance", "source")


def _facts(record: dict[str, Any]) -> list[str]:
    facts = record["facts"]
    if "machine" in facts:
        machine = facts["machine"]
        facts = facts | {"device": f"{machine['device']}, {machine['cpu_count']} CPU cores"}
    command = [f"    {facts['command']}", ""] if "command" in facts else []
    parts = [f"{name}: {facts[name]}" for name in _SHOWN if name in facts]
    if "floor" in record and isinstance(record["floor"], float):
        parts.append(f"two halves of the real images: {record['floor']:.2f}")
    return [*command, "; ".join(parts) + "."]


def _sweep(records: Sequence[dict], rows: Sequence[dict]) -> list[str]:
    """Command, machine, seeds and cost of a sweep."""
    first = records[0]
    machine = first["machine"]
    hours = sum(row["seconds"] for row in rows) / 3600
    floor = next((row["floor"] for row in rows if row["floor"] is not None), None)
    seeds = sorted({record["seed"] for record in records})
    parts = [
        f"{len(rows)} arms, seeds {', '.join(map(str, seeds))}, {hours:.1f} h in all",
        f"{first['asked']['images']} samples per arm and seed",
        f"{machine['device']}, {machine['cpu_count']} CPU cores",
    ]
    if floor is not None:
        parts.append(f"two halves of the real images: {floor:.2f}")
    words = (
        "± is the standard deviation over seeds; differences are taken seed by seed, with the 95 % "
        "interval of Student's t. Each result holds the `train` command of its arm."
    )
    return [f"    {first['sweep']}", "", "; ".join(parts) + ". " + words]
