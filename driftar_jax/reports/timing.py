"""One benchmark: what it was given, checked, and the tables it writes."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from driftar_jax import config
from driftar_jax.cli import program
from driftar_jax.evaluation import benchmark, windows
from driftar_jax.reports import tables
from driftar_jax.sampling import generator, load
from driftar_jax.storage.jsons import write_json
from driftar_jax.storage.pages import write_page
from driftar_jax.targets import precision
from driftar_jax.training import specs

PIECES = ("backbone_s", "head_s", "rest_s")


def open_subject(
    settings: Any, workdir: str | None, vae: str | None = None, *, drawn: bool = True
) -> tuple[generator.Generator, str]:
    """Load the checkpoint of a workdir, or make random weights in the shapes of a config.

    Args:
      settings: config, or None where `workdir` is given.
      workdir: folder written by `train` or `convert`, or None.
      vae: folder of the autoencoder, where tokens are latents and none is known.
      drawn: False leaves random weights shapes alone, for a subject that nothing is run on.

    Returns:
      The subject, and what its weights are, for a reader.

    Raises:
      ValueError: both or neither are given, or one of them cannot be used; one line.
    """
    if (settings is None) == (workdir is None):
        got = "both" if workdir else "neither"
        raise config.wrong("workdir, config", got, "--workdir=FOLDER or --config=FILE.py[:SIZE]")
    if workdir is not None:
        loaded = load.load(workdir, vae=vae)
        return loaded, f"step {loaded.step} of {workdir}"
    config.check(settings)
    if settings.task not in ("host", "drift"):
        raise config.wrong("task", settings.task, "host | drift")
    loaded = (load.random if drawn else load.shapes)(settings, specs.image_spec(settings))
    return loaded, "random: speed only, the images mean nothing"


def write(out: str, rows: Sequence[benchmark.Row], weights: str, averages: tuple) -> None:
    """Write `benchmark.json` and `benchmark.md` in the folder `out`.

    Args:
      out: folder, made if it is not there.
      rows: measured.
      weights: of the subject.
      averages: the machine's load averages before the first and after the last call.
    """
    records = [row.as_json() for row in rows]
    _write(out, "Seconds per image", _facts(weights, averages), {"rows": records}, _table(records))


def write_windows(
    out: str,
    records: Sequence[dict],
    subject: generator.Generator,
    weights: str,
    averages: tuple,
) -> None:
    """Do as `write` with the records of `windows.costs`."""
    facts = _facts(weights, averages) | {"host": windows.size_in_words(subject)}
    head = "batch | tokens made | contexts | ms of a call | beside a plain one (low to high)"
    rows = []
    for r in records:
        cells = [f"{r[name]}" for name in ("batch_size", "window", "contexts")]
        cells += [f"{1000 * r['seconds']:.2f}"]
        cells += [f"{r['ratio']:.2f} ({r['ratio_low']:.2f} to {r['ratio_high']:.2f})"]
        rows.append(cells)
    table = tables.lines(head.split(" | "), rows)
    _write(out, "What a call costs by its window", facts, {"windows": list(records)}, table)


def _facts(weights: str, averages: tuple) -> dict[str, str]:
    device = jax.devices()[0]
    return {
        "command": program.command("benchmark"),
        "weights": weights,
        "device": f"{device.device_kind}, {os.cpu_count()} CPU cores",
        "products of float32": precision.words(),
        "load average before and after": " and ".join(f"{x:.1f}" for x in averages),
        "jax": jax.__version__,
    }


def _write(out: str, title: str, facts: dict, record: dict, table: Sequence[str]) -> None:
    folder = pathlib.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "benchmark.json", {"facts": facts, **record})
    lines = [f"# {title}", "", *(f"- {name}: {value}" for name, value in facts.items())]
    write_page(folder / "benchmark.md", "\n".join([*lines, "", *table, ""]))


def _table(records: Sequence[dict]) -> list[str]:
    head = (
        "method | batch | AR steps | backbone calls | head evaluations | "
        "s per image (median, low to high) | "
        "backbone | head | rest | compile s | peak GiB | temporary GiB"
    )
    rows = []
    for r in records:
        low, high = r["seconds_per_image_low"], r["seconds_per_image_high"]
        cells = [
            r["method"],
            f"{r['batch_size']}",
            f"{r['ar_steps']}",
            f"{r['backbone_calls']:.4g}",
            f"{r['head_evaluations']:.4g}",
            f"{r['seconds_per_image']:.4g} ({low:.4g} to {high:.4g})",
            *("" if r["head_s"] is None else f"{r[n]:.3g}" for n in PIECES),
            f"{r['compile_s']:.1f}",
            f"{r['peak_bytes'] / 2**30:.2f}",
            f"{r['temporary_bytes'] / 2**30:.2f}",
        ]
        rows.append(cells)
    return tables.lines(head.split(" | "), rows)
