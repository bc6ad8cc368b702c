"""Tables of lookahead: what it saved and left, and where it pays, for the page and for its own."""

import pathlib
from collections.abc import Collection, Mapping, Sequence

from driftar_jax.evaluation import windows
from driftar_jax.reports import tables
from driftar_jax.storage.jsons import write_json
from driftar_jax.storage.pages import write_page

LIMITS = (
    "Deviation: root mean square of a token's difference from plain decoding of the same noise, "
    "over the spread of all tokens; mean, 99 % and largest of all tokens. Energy distances are "
    "between the features of a row's images and of plain images with other noise; the plain row's "
    "own is the floor. Calls, and tokens per call, with the least and the most of an image."
)
# Windows and batches of the rows of arithmetic.
_WINDOW, _BATCHES = 16, (1, 8, 64)


def write(out: pathlib.Path, record: dict) -> str:
    """Write `lookahead.json` and `lookahead.md` into an existing folder; returns the Markdown.

    Args:
      out: the folder.
      record: `facts`, `ahead` (rows of `ahead.Bench`), `contraction` and `calls` (of
        `windows.costs`), of the checkpoints measured.
    """
    write_json(out / "lookahead.json", record)
    facts = [f"- {name}: {value}" for name, value in record["facts"].items()]
    text = "\n".join(["# Looking ahead", "", *facts, "", *lines(record), ""])
    write_page(out / "lookahead.md", text)
    return text


def lines(record: dict, others: Sequence[dict] = ()) -> list[str]:
    """Return all tables as Markdown lines; `others` are costs of calls measured elsewhere."""
    rows = record["ahead"]
    return [
        LIMITS,
        "",
        *_calls(rows),
        "",
        *_quality(rows),
        "",
        "Seconds per image, and the speed beside plain decoding in the same round:",
        "",
        *_time(rows),
        "",
        "How far a moved token moves the next one, by the entropy of that one's context:",
        "",
        *_contraction(record["contraction"]),
        "",
        "Where looking ahead pays: tokens per call as measured above, over the cost of a call.",
        "",
        *predicted(record, others),
    ]


def _table(head: str, rows: Sequence[Sequence[str]]) -> list[str]:
    return tables.lines(head.split(" | "), rows)


def _calls(rows: Sequence[dict]) -> list[str]:
    head = (
        "checkpoint | decoding | calls (low to high) | tokens per call (low to high) | rows | "
        "head evaluations | deviation | 99 % | largest | pixels that differ | levels"
    )
    cells = []
    for r in rows:
        far = [""] * 5
        if "deviation" in r:
            far = [f"{r['deviation']:.4f}", f"{r['deviation_99']:.3f}"]
            far += [f"{r['deviation_largest']:.2f}", f"{r['pixels_differing']:.2%}"]
            far += [f"{r['pixel_levels']:.2f}, at most {r['pixel_levels_largest']}"]
        calls = f"{r['backbone_calls']:.1f} ({r['backbone_calls_low']} to "
        each = f"{r['tokens_per_call']:.2f} ({r['tokens_per_call_low']:.2f} to "
        costs = [f"{calls}{r['backbone_calls_high']})", f"{each}{r['tokens_per_call_high']:.2f})"]
        costs += [f"{r['backbone_rows']:.0f}", f"{r['head_evaluations']:.0f}"]
        cells.append([r["run"], r["method"], *costs, *far])
    return _table(head, cells)


def _quality(rows: Sequence[dict]) -> list[str]:
    head = "checkpoint | decoding | distance | accuracy | energy distance to plain"
    names = {"frechet": 2, "accuracy": 3, "energy_distance": 4}
    cells = [
        [r["run"], r["method"]]
        + [f"{r[n]:.{digits}f} ± {r[f'{n}_std']:.{digits}f}" for n, digits in names.items()]
        for r in rows
    ]
    return _table(head, cells)


def _time(rows: Sequence[dict]) -> list[str]:
    sizes = list(rows[0]["time"])
    head = " | ".join(["checkpoint | decoding", *(f"batch {size}" for size in sizes)])
    cells = []
    for r in rows:
        at = [r["time"][size] for size in sizes]
        cells.append(
            [r["run"], r["method"]]
            + [
                f"{t['seconds_per_image']:.4g} s, {t['ratio']:.2f} ({t['ratio_low']:.2f} to "
                f"{t['ratio_high']:.2f})"
                for t in at
            ]
        )
    return _table(head, cells)


def _contraction(by_run: Mapping[str, Sequence[dict]]) -> list[str]:
    quarters = max((len(r["by_entropy"]) for rs in by_run.values() for r in rs), default=0)
    head = " | ".join(
        ["checkpoint | moved by | next token | farther than it was moved | farthest later token"]
        + [f"quarter {i + 1} of E" for i in range(quarters)]
    )
    cells = [
        [name, f"{r['move']:g} of the spread", f"{r['factor']:.2f}", f"{r['expanding']:.0%}"]
        + [f"{r['later']:.2f}"]
        + [f"{b['factor']:.2f} (E {b['from']:.2f} to {b['to']:.2f})" for b in r["by_entropy"]]
        for name, records in by_run.items()
        for r in records
    ]
    return _table(head, cells)


def predicted(record: dict, others: Sequence[dict] = ()) -> list[str]:
    """Return the table that says where looking ahead pays.

    Tokens per call are those of the first checkpoint with the smallest `delta` above 0 and a bound
    by entropy. The cost of a call is measured, with trained or with random weights, or for an H100
    the larger of bytes and operations, which is said.

    Args:
      record: of `write`.
      others: results of `benchmark --windows`; those of another trained checkpoint are left out.
    """
    head = "host | device | batch | window | cost of a call | tokens per call | times plain"
    settled = _settled(record["ahead"])
    measured = [(record["facts"], record["calls"])]
    runs = {row["run"] for row in record["ahead"]}
    measured += [(o["facts"], o["windows"]) for o in others if _is_for(o["facts"], runs)]
    cells = []
    for facts, calls in measured:
        for call in calls:
            # Where no tokens per call were measured for a window nothing is said of it.
            if call["window"] in settled:
                where = [facts["host"], facts["device"], f"{call['batch_size']}"]
                worth = _worth(call["ratio"], settled[call["window"]])
                cells.append([*where, f"{call['window']}", *worth])
    for size in windows.SIZES if _WINDOW in settled else ():
        for batch in _BATCHES:
            cost = windows.ratio(size, windows.H100, _WINDOW, batch)
            cells.append(
                [size.name, f"{windows.H100.name}, arithmetic", f"{batch}", f"{_WINDOW}"]
                + _worth(cost, settled[_WINDOW])
            )
    return _table(head, cells)


def _is_for(facts: dict, runs: Collection[str]) -> bool:
    """Whether costs of calls may stand beside the tokens per call of these runs."""
    # Another trained checkpoint settles other tokens per call; random weights are a size alone.
    of = facts.get("weights", "random")
    return of.startswith("random") or pathlib.PurePath(of).name in runs


def _settled(rows: Sequence[dict]) -> dict[int, float]:
    """Tokens per call by window, of the first checkpoint."""
    mine = [r for r in rows if r["run"] == rows[0]["run"] and r.get("delta")]
    mine = [r for r in mine if r["bound"] == "entropy"]
    # The strictest bound that lets guesses move: its images are nearest to plain decoding.
    least = min((r["delta"] for r in mine), default=None)
    return {r["lookahead"]: r["tokens_per_call"] for r in mine if r["delta"] == least}


def _worth(cost: float, tokens: float) -> list[str]:
    return [f"{cost:.2f}", f"{tokens:.2f}", f"{tokens / cost:.2f}"]
