"""Tables of a sweep from its result files: mean and spread over seeds, differences by seed."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from driftar_jax.drift.spread import BANDS
from driftar_jax.reports import tables
from driftar_jax.storage.jsons import read_json, write_json
from driftar_jax.storage.pages import write_page

# Figures that are lower where an arm is better, in the order of the columns.
COLUMNS = (("frechet", "distance", 2), ("held_out_energy_score", "energy score, held out", 4))
CONFIDENCE = 0.95


def read(folder: str | pathlib.Path) -> list[dict[str, Any]]:
    """Read all results of a sweep's folder (or of its `results`), in the sweep's order.

    Raises:
      ValueError: a file is no result of a sweep.
    """
    folder = pathlib.Path(folder)
    folder = folder / "results" if (folder / "results").is_dir() else folder
    results = []
    for path in sorted(folder.glob("*.seed*.json")):
        try:
            record = read_json("results", path, "a result of ablate")
            key = record["order"], record["seed"]
        except KeyError as error:
            raise ValueError(f"results: got {str(path)!r}, allowed a result of ablate") from error
        results.append((key, record))
    return [record for _, record in sorted(results, key=lambda item: item[0])]


def write(folder: str | pathlib.Path) -> str:
    """Write `ablation.json` and `ablation.md` of a sweep's folder; returns the latter."""
    folder = pathlib.Path(folder)
    rows = summary(read(folder))
    text = "\n".join(lines(rows))
    write_json(folder / "ablation.json", rows)
    write_page(folder / "ablation.md", text + "\n")
    return text


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per arm: its figures by seed, and its differences to the arm it is held
    against.
    """
    by_arm: dict[str, list[dict]] = {}
    for record in records:
        by_arm.setdefault(record["arm"], []).append(record)
    rows = []
    for name, of in by_arm.items():
        first = of[0]
        row = {
            "arm": name,
            "question": first["question"],
            "against": first["against"],
            "command": first.get("command", ""),
            "seeds": [r["seed"] for r in of],
            "failed": [r["seed"] for r in of if "failed" in r],
            "floor": first.get("floor"),
            "steps": first.get("cost", {}).get("steps"),
            "seconds": sum(_seconds(r) for r in of),
            "figures": {},
            "differences": {},
        }
        other = {r["seed"]: _flat(r) for r in by_arm.get(first["against"], ())}
        values = {r["seed"]: _flat(r) for r in of}
        for key in dict.fromkeys(k for v in values.values() for k in v):
            there = {seed: v[key] for seed, v in values.items() if key in v}
            row["figures"][key] = spread(list(there.values()))
            # By seed: runs of one seed share data and noise, so that much of the spread cancels.
            pairs = [v - other[s][key] for s, v in there.items() if key in other.get(s, ())]
            if pairs:
                row["differences"][key] = interval(pairs)
        rows.append(row)
    return rows


def _seconds(record: dict[str, Any]) -> float:
    """Return the seconds spent on a result.

    An arm that samples another arm's run does not count its training.
    """
    cost = record.get("cost", {})
    # That was counted where the run was measured itself.
    trained = 0.0 if record["asked"].get("of") else cost.get("train_s", 0.0)
    return trained + cost.get("measure_s", 0.0)


def _flat(record: dict[str, Any]) -> dict[str, float]:
    """The figures of a result that are single numbers; those of drafts and speed by a path."""
    numbers = {}
    for name, value in record["figures"].items():
        if isinstance(value, dict):
            numbers |= {f"{name}.{k}": v for k, v in value.items() if isinstance(v, (int, float))}
        elif isinstance(value, (int, float)):
            numbers[name] = value
        elif name == "spearman":
            numbers |= {f"spearman.{p['num_unknown']}": p["spearman"] for p in value}
        elif name == "spread_to_error":
            numbers |= {f"{name}.{band}": ratio for band, ratio in enumerate(value, 1)}
    return {k: float(v) for k, v in numbers.items()}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean, standard deviation (0 of one value) and the values."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": std, "values": list(values)}


def interval(differences: Sequence[float]) -> dict[str, Any]:
    """Return the mean of paired differences and its 95 % interval by Student's t; None with one
    pair.
    """
    n, mean = len(differences), float(np.mean(differences))
    if n < 2:
        return {"mean": mean, "low": None, "high": None, "pairs": n}
    error = np.std(differences, ddof=1) / np.sqrt(n)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1) * error)
    return {"mean": mean, "low": mean - half, "high": mean + half, "pairs": n}


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Write a table per question, each with the arm it is held against, and a sentence per arm."""
    by_name = {row["arm"]: row for row in rows}
    text: list[str] = []
    for question in dict.fromkeys(row["question"] for row in rows if row["question"]):
        arms = [row for row in rows if row["question"] == question]
        against = [by_name[n] for n in dict.fromkeys(r["against"] for r in arms) if n in by_name]
        table = [*(row for row in against if row not in arms), *arms]
        text += [f"### {question}", "", *_table(table), ""]
        sentences = [sentence(row) for row in arms if row["against"] in by_name]
        text += [*(f"- {words}" for words in sentences), ""]
    return text


_OF_DRAFTS = (
    ("drafts.accepted_groups", "drafts accepted", 2),
    ("drafts.backbone_calls", "backbone calls", 2),
)
_OF_AHEAD = (
    ("ahead_exact.backbone_calls", "calls, exact", 1),
    ("ahead_bounded.backbone_calls", "calls, bounded", 1),
    ("ahead_bounded.tokens_per_call", "tokens per call, bounded", 2),
    ("ahead_bounded.deviation", "deviation, bounded", 4),
    ("contraction.0.02", "moved by 0.02", 2),
    ("contraction.0.2", "moved by 0.2", 2),
    ("contraction.1", "moved by 1", 2),
)
_OF_SPEED = (("speed.images_per_s", "images/s", 0), ("speed.ratio", "speed ratio", 2))
_OTHERS = (
    ("accuracy", "class accuracy", 3),
    ("precision", "precision", 3),
    ("recall", "recall", 3),
    ("sigma_mean", "sigma", 3),
    *((f"spread_to_error.{band}", f"spread/error {band}", 2) for band in range(1, BANDS + 1)),
)


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    columns = [
        column
        for column in (*COLUMNS, *_OF_DRAFTS, *_OF_AHEAD, *_OF_SPEED, *_OTHERS)
        if any(column[0] in row["figures"] for row in rows)
    ]
    head = ["arm", *(heading for _, heading, _ in columns), "seeds", "seconds"]
    table = []
    for row in rows:
        cells = [row["arm"]]
        for key, _, digits in columns:
            figure = row["figures"].get(key)
            cells.append("" if figure is None else _spread(figure, digits))
        failed = f" ({len(row['failed'])} failed)" if row["failed"] else ""
        cells += [f"{len(row['seeds'])}{failed}", f"{row['seconds']:.0f}"]
        table.append(cells)
    return tables.lines(head, table)


def _spread(figure: dict[str, Any], digits: int) -> str:
    text = f"{figure['mean']:.{digits}f}"
    return f"{text} ± {figure['std']:.{digits}f}" if len(figure["values"]) > 1 else text


# What an arm is judged by: acceptance where drafts are its question, else what it makes.
_JUDGED = {
    "entropy loss": ("drafts.accepted_groups", "share of accepted drafts", 3),
    "draft depth": ("drafts.accepted_groups", "share of accepted drafts", 3),
}

# What is said beside that.
_BESIDE = {
    "decoder width": (("speed.ratio", "speed ratio", 2),),
    "contraction": (("ahead_bounded.tokens_per_call", "tokens per call", 2),),
}


def sentence(row: dict[str, Any]) -> str:
    """Return what a row says beside the arm it is held against, and how sure that is."""
    parts = []
    special = _JUDGED.get(row["question"])
    wanted = [special] if special else [(key, heading, n) for key, heading, n in COLUMNS]
    wanted += _BESIDE.get(row["question"], ())
    for key, heading, digits in wanted:
        if (gap := row["differences"].get(key)) is None:
            continue
        mean = f"{heading} {gap['mean']:+.{digits}f}"
        if gap["low"] is None:
            parts.append(f"{mean} (one seed)")
            continue
        sure = "" if gap["low"] > 0 or gap["high"] < 0 else ", not told from 0"
        parts.append(f"{mean} ({gap['low']:+.{digits}f} to {gap['high']:+.{digits}f}{sure})")
    if not parts:
        return f"**{row['arm']}**: no result beside {row['against']}."
    return f"**{row['arm']}** against {row['against']}: {'; '.join(parts)}."
