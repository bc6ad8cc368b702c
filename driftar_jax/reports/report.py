"""Writes `report.json`, `report.md` and their pictures from measured rows."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence

import numpy as np

from driftar_jax.data import pictures
from driftar_jax.evaluation.compare import Row
from driftar_jax.evaluation.premise import Premise
from driftar_jax.reports import in_words, tables
from driftar_jax.sampling.contexts import Score
from driftar_jax.storage.jsons import write_json
from driftar_jax.storage.pages import write_page

# Columns of the quality table: field of the records, heading, digits. A column that was not
# measured is left out.
QUALITY = (
    ("frechet", "fd_{network}", 2),
    ("kid", "kid_{network}", 4),
    ("precision", "precision", 3),
    ("recall", "recall", 3),
    ("inception_score", "inception score", 2),
    ("accuracy", "class accuracy", 3),
    ("nearest", "distance to the nearest training image", 4),
    ("copied", "nearer than 99 % of held-out images", 4),
)


# A sentence on speed and quality needs so many pictures of each method, and a judge that comes so
# far from chance (0) to all right (1) on real ones.
FEWEST = 512
ABOVE_CHANCE = 0.25


@dataclasses.dataclass(frozen=True)
class RealRow:
    """What real images reach.

    Attributes:
      network: whose features were used.
      num_classes: of the classifier.
      pictures: of each method, all seeds together.
      floor: distance between two halves of the real set.
      quality: of as many real images as there are samples, see `quality.summary`.
    """

    network: str
    num_classes: int
    pictures: int
    floor: float
    quality: dict[str, float]

    @property
    def accuracy_needed(self) -> float:
        """Return the share of real images that the classifier must get right to be a judge."""
        return (1 + ABOVE_CHANCE * (self.num_classes - 1)) / self.num_classes


def write(
    out: pathlib.Path,
    *,
    rows: Sequence[Row],
    real: RealRow,
    premise: dict[str, Sequence[Premise]],
    held_out: dict[str, Score],
    facts: dict,
    images: Sequence[tuple[str, str]],
) -> None:
    """Write the report.

    Args:
      out: existing folder.
      rows: measured methods, the reference first.
      real: what real images reach.
      premise: correlations by name of the checkpoint.
      held_out: what draws in held-out contexts say, by the same names; {} where there are none.
      facts: what the numbers depend on: command, device, data, judge, counts.
      images: (file name in `out`, caption) of the pictures to show.
    """
    # Everything that the page shows is in the JSON first: `report` writes pages from it alone.
    records = [row.as_json() for row in rows]
    correlations = {
        name: [{"num_unknown": p.num_unknown, "spearman": p.correlation} for p in premises]
        for name, premises in premise.items()
    }
    write_json(
        out / "report.json",
        {
            "rows": records,
            "floor": real.floor,
            "network": real.network,
            "real": real.quality,
            "judged": {
                "pictures": real.pictures,
                "pictures_needed": FEWEST,
                "accuracy_needed": real.accuracy_needed,
            },
            "premise": correlations,
            "held_out": {name: dataclasses.asdict(score) for name, score in held_out.items()},
            "facts": facts,
        },
    )
    lines = [
        "# Own head against Drift-AR",
        "",
        *summary(rows, real),
        "",
        "## In words",
        "",
        *in_words.lines(records, real.floor, real.network, real.quality, correlations),
        "",
        "## What it depends on",
        "",
        *_facts(facts),
        "",
        *_batches(records),
        "",
        *_rivals(records),
        "## Does entropy predict error?",
        "",
        "Spearman correlation of the entropy `E` and the residual `|x - mu|` of unknown tokens, at",
        "a fixed number of unknown tokens. For the own head `mu` is a linear probe of `z`.",
        "",
        *_premise(correlations),
        "",
        *_held_out(held_out),
        "## Pictures",
        "",
    ]
    for name, caption in images:
        lines += [f"![{caption}]({name})", "", caption, ""]
    write_page(out / "report.md", "\n".join(lines))


def summary(rows: Sequence[Row], real: RealRow) -> list[str]:
    """Return the verdict, the main table and the quality table, as lines of Markdown."""
    records = [row.as_json() for row in rows]
    return [verdict(records, real), "", *_table(records, real.floor), "", *_quality(records, real)]


def verdict(records: Sequence[dict], real: RealRow) -> str:
    """Return a sentence on speed and distance beside the reference's, or why there is none."""
    if real.pictures < FEWEST:
        return (
            f"No verdict: {real.pictures} pictures of each method, {FEWEST} are needed; the tables "
            "say what was measured."
        )
    if real.quality["accuracy"] < real.accuracy_needed:
        return (
            f"No verdict: the classifier gets {real.quality['accuracy']:.3f} of the real images "
            f"right, {real.accuracy_needed:.3f} are needed (chance is {1 / real.num_classes:.3f})."
        )
    own, drift = records[0], next(r for r in records if r["method"] == "drift")
    return (
        f"Drift-AR at 1 NFE per AR step makes {drift['speed_ratio']:.1f}x the images per second of "
        f"the own head at {own['nfe_per_step']} "
        f"({drift['speed_ratio_low']:.1f} to {drift['speed_ratio_high']:.1f} over the rounds), at "
        f"{drift['frechet'] / own['frechet']:.2f}x its Frechet distance "
        f"({digits(drift['frechet'], 2)} against {digits(own['frechet'], 2)})."
    )


def digits(value: float, decimals: int) -> str:
    """Return the number with so many decimals, and more where three digits need them."""
    if value and math.isfinite(value):
        decimals = max(decimals, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def _facts(facts: dict) -> list[str]:
    return [f"- {name}: {value}" for name, value in facts.items()]


def _table(records: Sequence[dict], floor: float) -> list[str]:
    head = (
        "method | AR steps | NFE per step | backbone rows | images/s (median, low to high) | "
        "compile s | speed ratio | Frechet distance | class accuracy | real-vs-real floor"
    )
    rows = []
    for r in records:
        cells = [
            r["method"],
            str(r["ar_steps"]),
            f"{r['nfe_per_step']:g}",
            str(r["backbone_rows"]),
            f"{digits(r['images_per_s'], 1)} "
            f"({digits(r['images_per_s_low'], 1)} to {digits(r['images_per_s_high'], 1)})",
            f"{r['compile_s']:.1f}",
            f"{r['speed_ratio']:.2f} ({r['speed_ratio_low']:.2f} to {r['speed_ratio_high']:.2f})",
            f"{digits(r['frechet'], 2)} ± {digits(r['frechet_std'], 2)}",
            f"{r['accuracy']:.3f} ± {r['accuracy_std']:.3f}",
            digits(floor, 2),
        ]
        rows.append(cells)
    return tables.lines(head.split(" | "), rows)


def _quality(records: Sequence[dict], real: RealRow) -> list[str]:
    # Metrics that were not asked for have no column, rather than one of gaps.
    columns = [column for column in QUALITY if column[0] in records[0]]
    heads = [heading.format(network=real.network) for _, heading, _ in columns]
    rows = []
    reached = {"method": "real images", "nfe_per_step": "", **real.quality}
    for r in (*records, reached):
        cells = [f"{digits(r[key], n)} ± {r[f'{key}_std']:.{n}f}" for key, _, n in columns]
        rows.append([r["method"], r["nfe_per_step"], *cells])
    return tables.lines(["method", "NFE per step", *heads], rows)


def _batches(records: Sequence[dict]) -> list[str]:
    sizes = list(records[0]["by_batch_size"])
    columns = [f"{what} at batch {size}" for size in sizes for what in ("images/s", "ratio")]
    rows = []
    for r in records:
        cells = []
        for size in sizes:
            at = r["by_batch_size"][size]
            low, high = at["speed_ratio_low"], at["speed_ratio_high"]
            spread = f"{at['speed_ratio']:.2f} ({low:.2f} to {high:.2f})"
            cells += [digits(at["images_per_s"], 1), spread]
        rows.append([r["method"], r["nfe_per_step"], *cells])
    return tables.lines(["method", "NFE per step", *columns], rows)


def _rivals(records: Sequence[dict]) -> list[str]:
    """Return the section that holds rivals against both heads; nothing where there is none."""
    if not any(r["rival"] for r in records):
        return []
    sizes = list(records[0]["by_batch_size"])
    head = ["method", "AR steps", "backbone calls", "backbone rows", "draft calls"]
    head += ["head evaluations", *(f"seconds an image at batch {size}" for size in sizes)]
    head += ["Frechet distance", *(["recall"] if "recall" in records[0] else [])]
    rows = []
    for r in records:
        counts = "ar_steps", "backbone_calls", "backbone_rows", "draft_calls", "head_evaluations"
        cells = [r["method"], *(f"{r[name]:g}" for name in counts)]
        cells += [digits(1 / r["by_batch_size"][size]["images_per_s"], 4) for size in sizes]
        cells.append(f"{digits(r['frechet'], 2)} ± {digits(r['frechet_std'], 2)}")
        if "recall" in r:
            cells.append(f"{r['recall']:.3f} ± {r['recall_std']:.3f}")
        rows.append(cells)
    return [
        "## Beside rivals",
        "",
        "Calls, rows and evaluations are of an image; rows are the backbone's that checks, and a",
        "draft call is one of the model that drafts, whose evaluations are among the head's.",
        "",
        *tables.lines(head, rows),
        "",
    ]


def _premise(correlations: dict[str, list[dict]]) -> list[str]:
    # Hosts differ in how many masks they were measured at: the table holds what all of them have.
    counts = [p["num_unknown"] for p in min(correlations.values(), key=len, default=[])]
    rows = [
        [name, *(f"{p['spearman']:+.2f}" for p in rates[: len(counts)])]
        for name, rates in correlations.items()
    ]
    return tables.lines(["backbone", *(f"{n} unknown" for n in counts)], rows)


def _held_out(held_out: dict[str, Score]) -> list[str]:
    if not held_out:
        return []
    bands = len(next(iter(held_out.values())).spread_to_error)
    head = ["head", "energy score", *(f"band {n + 1}" for n in range(bands))]
    rows = [
        [name, f"{score.energy_score:.4f}", *(f"{r:.2f}" for r in score.spread_to_error)]
        for name, score in held_out.items()
    ]
    return [
        "## Do draws spread as far as they err?",
        "",
        "Draws of the same unknown tokens in contexts of images that nothing was trained on:",
        "energy score, and variance over squared error of the mean in bands of directions of the",
        "tokens, from the coarse to the fine ones. 1 is right, below 1 draws are too alike.",
        "",
        *tables.lines(head, rows),
        "",
    ]


def entropy_map(
    path: pathlib.Path, images: np.ndarray, known: np.ndarray, entropy: np.ndarray
) -> None:
    """Draw images, what of them was known, and the entropy of every position, side by side.

    Args:
      path: PNG to write.
      images: uint8 `[n, H, W, C]`.
      known: `[n, rows, columns]` bool.
      entropy: `[n, rows, columns]` in [0, 1].
    """
    plt = pictures.pyplot()
    n = len(images)
    figure, axes = plt.subplots(3, n, figsize=(1.9 * n + 0.8, 6), squeeze=False)
    for i in range(n):
        picture = np.squeeze(images[i])
        patch = picture.shape[0] // known.shape[1]
        mask = np.kron(known[i], np.ones((patch, patch), bool))
        hidden = np.where(mask if picture.ndim == 2 else mask[..., None], picture, 128)
        gray = {"cmap": "gray", "vmin": 0, "vmax": 255} if picture.ndim == 2 else {}
        axes[0, i].imshow(picture, **gray)
        axes[1, i].imshow(hidden.astype(np.uint8), **gray)
        heat = axes[2, i].imshow(entropy[i], cmap="magma", vmin=entropy.min(), vmax=entropy.max())
        for axis in axes[:, i]:
            axis.set_axis_off()
    for axis, title in zip(axes[:, 0], ("image", "known", "entropy"), strict=True):
        axis.set_title(title, loc="left")
    # Beside all rows, so that every heat map stays under the image it belongs to.
    figure.colorbar(heat, ax=axes.ravel().tolist())
    figure.savefig(path, dpi=100)
    plt.close(figure)


def entropy_against_residual(path: pathlib.Path, premises: dict[str, Sequence[Premise]]) -> None:
    """Draw the mean residual by tenths of the entropy's rank, one panel per checkpoint."""
    plt = pictures.pyplot()
    figure, axes = plt.subplots(1, len(premises), figsize=(6.5 * len(premises), 4.6), squeeze=False)
    for axis, (name, rates) in zip(axes[0], premises.items(), strict=True):
        for p in rates:
            bins = np.array_split(np.argsort(p.entropy), 10)
            x = [p.entropy[b].mean() for b in bins]
            y = [p.residual[b].mean() for b in bins]
            axis.plot(x, y, marker="o", label=f"{p.num_unknown} unknown ({p.correlation:+.2f})")
        axis.set(title=name, xlabel="entropy E", ylabel="mean residual |x - mu|")
        axis.legend(fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
