"""Tables of `deviation.json`, as lines of Markdown."""

from typing import Any

import numpy as np

from driftar_jax.reports import tables
from driftar_jax.reports.ablation_table import interval

_FIELDS = (
    ("energy", "energy distance to the own head", 4),
    ("shift", "shift of the mean / own spread", 3),
    ("spread", "spread / own spread", 3),
    ("score", "energy score against the real token", 4),
)


def lines(record: dict[str, Any]) -> list[str]:
    """Return the ways in one table, the entropy's quarters in another, and what they say."""
    pairs = record["pairs"]
    names = sorted(pairs[0]["ways"], key=_place)
    head = ["draws", *(heading for _, heading, _ in _FIELDS)]
    ways = []
    for name in names:
        label = f"own head, {pairs[0]['own_steps']} steps, two halves" if name == "floor" else name
        cells = [_spread([p["ways"][name][key] for p in pairs], n) for key, _, n in _FIELDS]
        ways.append([label, *cells])
    parts = ["quarter of the entropy", "energy distance", "floor", "spread / own spread"]
    quarters = []
    for number, first in enumerate(pairs[0]["by_entropy"]):
        rows = [p["by_entropy"][number] for p in pairs]
        quarters.append(
            [
                f"{first['from']:.2f} to {first['to']:.2f}",
                _spread([r["drift"]["energy"] for r in rows], 4),
                _spread([r["floor"]["energy"] for r in rows], 4),
                _spread([r["drift"]["spread"] for r in rows], 3),
            ]
        )
    return [*tables.lines(head, ways), "", *tables.lines(parts, quarters), "", sentence(pairs)]


def _place(name: str) -> tuple[int, int]:
    """Where a way stands: floor, another training, Drift-AR, fewer steps falling, the mean."""
    first = ("floor", "own, trained again", "drift")
    if name in first:
        return first.index(name), 0
    steps = [int(word) for word in name.split() if word.isdecimal()]
    return (3, -steps[0]) if steps else (4, 0)


def sentence(pairs: list[dict[str, Any]]) -> str:
    """Say whether one step deviates, on the scale of the own head's fewer steps."""
    energy = {n: np.mean([p["ways"][n]["energy"] for p in pairs]) for n in pairs[0]["ways"]}
    scores = {n: np.mean([p["ways"][n]["score"] for p in pairs]) for n in pairs[0]["ways"]}
    few = sorted((n for n in energy if n.endswith(" steps")), key=_place)
    better = [n for n in few if energy[n] < energy["drift"]]
    words = "less than every shorter schedule of the own head"
    if len(better) == len(few):
        words = "more than every shorter schedule of the own head"
    elif better:
        words = f"more than {' and '.join(better)}, less than the others"
    twice = energy.get("own, trained again")
    again = "" if twice is None else f"; the own head trained again deviates by {twice:.4f}"
    gap = interval([p["ways"]["drift"]["score"] - p["ways"]["floor"]["score"] for p in pairs])
    sure = ""
    if gap["low"] is not None:
        bounds = f"{gap['low']:+.4f} to {gap['high']:+.4f}"
        sure = f" (95 % interval over {gap['pairs']} pairs of runs {bounds})"
    return (
        f"One evaluation deviates from the own head's {pairs[0]['own_steps']} by "
        f"{energy['drift']:.4f}, {words}{again}, the prior's mean by "
        f"{energy['prior mean']:.4f}. Against the real tokens its energy score is "
        f"{scores['drift']:.4f}, the own head's {scores['floor']:.4f}: {gap['mean']:+.4f}{sure}, "
        "lower is better."
    )


def _spread(values: list[float], digits: int) -> str:
    text = f"{np.mean(values):.{digits}f}"
    return f"{text} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else text
