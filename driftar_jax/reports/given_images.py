"""How good pictures of anybody are: the metrics of `evaluate` for a folder or a file of them."""

import dataclasses
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from driftar_jax.cli import program
from driftar_jax.config import wrong
from driftar_jax.data import picture_sets
from driftar_jax.evaluation import frechet, inception_score, judges, manifold, networks, quality
from driftar_jax.evaluation.kid import kid
from driftar_jax.reports import tables
from driftar_jax.storage.jsons import write_json
from driftar_jax.storage.pages import write_page

METRICS = ("frechet", "kid", "precision_recall", "inception_score")
_FEWEST = 4  # of the kernel distance


@dataclasses.dataclass(frozen=True)
class Seen:
    """Pictures as a network sees them.

    Attributes:
      features: `[n, d]` float32.
      score: inception score, mean and spread over its splits; None: not asked for.
    """

    features: np.ndarray
    score: tuple[float, float] | None = None


def measure(
    images: str,
    out: str,
    *,
    judge: str | None = None,
    inception_dir: str | None = None,
    reference: str | None = None,
    metrics: Iterable[str] = METRICS,
    overwrite: bool = False,
) -> str:
    """Measure pictures against real ones and write `report.md` and `report.json`.

    Args:
      images: folder, or `.npz` with `arr_0`.
      out: folder of the report.
      judge: run of a classifier; its features measure, and its set is what is real.
      inception_dir: folder of `convert --family=inception`; its features measure instead.
      reference: real pictures in place of the judge's set: a folder, or a `.npz` with `arr_0`, with
        `mu` and `sigma`, or with all of them.
      metrics: of `METRICS`.
      overwrite: replace a report.

    Returns:
      The table.

    Raises:
      ValueError: an input is missing, damaged or does not fit; one line.
    """
    folder = pathlib.Path(out)
    if (folder / "report.json").exists() and not overwrite:
        raise wrong("out", out, "a folder without a report, or --overwrite")
    for metric in metrics:
        if metric not in METRICS:
            raise wrong("metrics", metric, " | ".join(METRICS))
    files = _opened("images", images)
    if len(files) < _FEWEST:
        raise wrong("images", images, f"at least {_FEWEST} pictures, not {len(files)}")
    if not judge and not inception_dir:
        raise wrong("judge", judge, "--judge=RUN or --inception=FOLDER, whose features measure")
    if not judge and not reference:
        raise wrong("reference", reference, "real pictures or moments, where there is no --judge")
    opened = judges.open_judge(judge) if judge else None
    network = judges.open_inception(inception_dir) if inception_dir else opened.network
    real, moments, called = _real(opened, network, reference)
    if opened and network is opened.network and files.shape[1:] != opened.image_shape:
        high, wide, channels = opened.image_shape
        allowed = f"pictures of {high}x{wide}x{channels}, as the judge reads them"
        raise wrong("images", f"{images} of {'x'.join(map(str, files.shape[1:]))}", allowed)
    folder.mkdir(parents=True, exist_ok=True)
    # Part by part: a folder may hold more pictures than memory does.
    features = _see(network, files.parts(), len(files), "inception_score" in metrics)
    record = {
        "command": program.command("evaluate"),
        "images": images,
        "count": len(files),
        "size": list(files.shape[1:]),
        "reference": called,
        "network": network.name,
        **_found(features, real, moments, tuple(metrics)),
    }
    text = _markdown(record)
    write_json(folder / "report.json", record)
    write_page(folder / "report.md", text)
    return text


def _real(
    opened: judges.Judge | None, network: networks.Network, reference: str | None
) -> tuple[Seen | None, frechet.Moments | None, str]:
    """Features of the real pictures, moments that were given apart, and what they are called."""
    if not reference:
        images, _ = judges.all_images(opened.open_sources())
        name = f"{opened.settings.data.name}, {len(images)} images"
        return Seen(network.read(images)[0]), None, name
    if not (os.path.isdir(reference) or picture_sets.holds(reference, "arr_0.npy")):
        return None, frechet.read(reference, network.name, network.width), "the moments given"
    real = _opened("reference", reference)
    moments, name = None, f"{reference}, {len(real)} pictures"
    # Moments beside pictures are of InceptionV3, as ADM publishes them; others cannot use them.
    if network.name == "inception" and picture_sets.holds(reference, "mu.npy", "sigma.npy"):
        moments = frechet.read(reference, network.name, network.width)
        name += ", distance to its mu and sigma"
    return _see(network, real.parts(), len(real), False), moments, name


def _opened(field: str, name: str) -> picture_sets.PictureSet:
    """The pictures of a flag; what else lies in their folder is said in one line."""
    opened = picture_sets.open_pictures(field, name)
    if opened.left_out:
        print(f"{name}: left out of {field}: {opened.left_out}", file=sys.stderr)
    return opened


def _see(network: networks.Network, parts: Iterator[np.ndarray], count: int, scored: bool) -> Seen:
    sums = None
    if scored:
        splits = min(inception_score.SPLITS, count)
        sums = inception_score.ScoreSums(count, network.num_classes, splits)
    features = []
    for part in parts:
        new, logits = network.read(part)
        features.append(new)
        if sums is not None:
            sums.add(logits)
    return Seen(np.concatenate(features), None if sums is None else sums.result())


def _found(
    sample: Seen, real: Seen | None, moments: frechet.Moments | None, metrics: Sequence[str]
) -> dict[str, Any]:
    """The figures, and for each that could not be had the reason."""
    count, width = sample.features.shape
    figures: dict[str, Any] = {}
    left: list[str] = []
    if "frechet" in metrics:
        fewest = count if moments else min(count, len(real.features))
        # A covariance of `width` features has full rank with more pictures than that.
        if fewest <= width:
            left.append(f"no Frechet distance: {fewest} pictures, more than {width} are needed")
        else:
            against = moments or frechet.Moments.of(real.features)
            figures["frechet"] = frechet.frechet_distance(
                frechet.Moments.of(sample.features), against
            )
            if real is not None and len(real.features) // 2 > width:
                figures["frechet_real_halves"] = quality.real_floor(real.features)
    if real is None:
        left += [
            f"no {name}: moments alone were given"
            for name in ("kid", "precision_recall")
            if name in metrics
        ]
    else:
        chosen = np.random.default_rng(0).permutation(len(real.features))
        # What real pictures reach against each other: nobody can be expected to come nearer.
        halves = np.split(real.features[chosen], [len(chosen) // 2])
        if "kid" in metrics and min(len(half) for half in halves) >= _FEWEST:
            figures["kid"], figures["kid_spread"] = kid(real.features, sample.features)
            figures["kid_real_halves"], figures["kid_real_halves_spread"] = kid(*halves)
        if "precision_recall" in metrics:
            # Equal counts, for both shares depend on them.
            kept = min(quality.KEPT, count, len(chosen))
            if kept > quality.NEIGHBOURS:
                figures["precision"], figures["recall"] = manifold.precision_recall(
                    real.features[chosen[:kept]],
                    sample.features[np.random.default_rng(1).permutation(count)[:kept]],
                    neighbours=quality.NEIGHBOURS,
                )
    if sample.score is not None:
        figures["inception_score"], figures["inception_score_spread"] = sample.score
    return figures | ({"left_out": left} if left else {})


def _markdown(record: dict[str, Any]) -> str:
    lines = ["# Pictures measured", ""]
    for name in ("images", "count", "size", "reference", "network", "command"):
        lines.append(f"- {name}: {record[name]}")
    lines += [f"- {reason}" for reason in record.get("left_out", ())]
    metrics = (
        (f"fd_{record['network']}", "frechet", ""),
        (f"kid_{record['network']}", "kid", "kid_spread"),
        ("precision", "precision", ""),
        ("recall", "recall", ""),
        ("inception score", "inception_score", "inception_score_spread"),
    )
    rows = []
    for heading, key, spread in metrics:
        if key in record:
            halves = f"{key}_real_halves"
            cells = [_cell(record, key, spread), _cell(record, halves, f"{halves}_spread")]
            rows.append([heading, *cells])
    lines += ["", *tables.lines(["metric", "these pictures", "two halves of the reference"], rows)]
    note = "± is the spread over subsets (kid) or splits (inception score), not over runs."
    return "\n".join([*lines, "", note, ""])


def _cell(record: dict[str, Any], key: str, spread: str) -> str:
    if key not in record:
        return ""
    return f"{record[key]:.4g}" + (f" ± {record[spread]:.2g}" if spread in record else "")
