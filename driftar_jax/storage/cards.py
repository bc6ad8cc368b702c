"""Model cards: what a checkpoint is, how it was made, what was measured of it, and its limits.

Everything is read from the run itself; what a run does not know is said to be unknown.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

_EMBEDDED = ("digits8", "fashion28", "emoji32", "emoji64")
_KINDS = {
    "host": "the backbone with its own many-step head",
    "drift": "Drift-AR: one head evaluation per AR step",
    "draft": "Drift-AR with its draft head for speculative decoding",
    "autoencoder": "an autoencoder, whose latents other checkpoints draw",
    "classifier": "a classifier, whose features measure samples",
    "mae": "a masked autoencoder, in whose features whole grids drift",
}
_FRONT = """---
library_name: driftar_jax
pipeline_tag: {kind}
tags: [jax, image-generation, drift-ar, {host}]
---

"""
# Columns of the quality table: field of a row of `report.json`, heading, digits.
_MEASURED = (
    ("ar_steps", "AR steps", 0),
    ("nfe_per_step", "evaluations per step", 0),
    ("images_per_s", "images/s", 0),
    ("frechet", "Frechet distance", 2),
    ("precision", "precision", 2),
    ("recall", "recall", 2),
    ("accuracy", "class accuracy", 2),
)


def card(
    name: str,
    config: Mapping,
    manifest: Mapping,
    step: int,
    size: int,
    *,
    seconds: float | None = None,
    report: Mapping | None = None,
    begun: str = "",
    held_out: Mapping | None = None,
    hub: bool = False,
) -> str:
    """Return a model card as Markdown.

    Args:
      name: of the folder.
      config, manifest, step: of the checkpoint.
      size: number of parameters.
      seconds: that the run took, of all its starts; None where nobody knows.
      report: a `report.json` of `evaluate`; None: nothing was measured.
      begun: name of the run that it was begun from.
      held_out: last record of the run's `held_out.jsonl`; None: there is none.
      hub: whether it is for a hub, whose cards begin with a few facts for machines.
    """
    host, task = config.get("host", {}).get("name", "drift_ar"), config.get("task")
    text = manifest.get("text") is not None
    front = ""
    if hub:
        kind = "text-to-image" if text else "unconditional-image-generation"
        front = _FRONT.format(kind=kind, host=host)
    parts = [f"# {name}", "", *_what(config, manifest, host, task, size), ""]
    if task in ("host", "drift", "draft"):
        parts += ["## Use", "", *_use(name, config, manifest, host, text, hub), ""]
    parts += ["## How it was made", "", *_made(config, manifest, step, seconds, begun), ""]
    parts += ["## Measured", "", *_measured(task, report, held_out), ""]
    parts += ["## Limits", "", *_limits(task, text, seconds), ""]
    return front + "\n".join(parts)


def _what(config, manifest, host: str, task: str, size: int) -> list[str]:
    shape = "x".join(map(str, manifest.get("image_shape", ())))
    grids = (
        "latents" if str(config.get("data", {}).get("name")).startswith("latents:") else "pixels"
    )
    kind = _KINDS.get(task, task)
    subject = f"{host}, {kind}" if "host" in config else kind[0].upper() + kind[1:]
    return [
        f"{subject}. {size / 1e6:.2f} million parameters, averaged over "
        f"training; it works on {shape} {grids}."
    ]


def _use(name: str, config, manifest, host: str, text: bool, hub: bool) -> list[str]:
    folder = "hf://OWNER/NAME" if hub else f"models/{name}"
    labels = '["a red apple"]' if text else "[0, 1, 2, 3]"
    words = '--prompt="a red apple" --num=4' if text else "--num=16"
    lines = [
        f"    python -m driftar_jax.sample --workdir={folder} {words} --out=pictures",
    ]
    if host == "mar":
        more = f"    python -m driftar_jax.sample --workdir={folder} --image=I.png --mask=M.png"
        lines.append(f"{more} --out=filled")
    return [
        *lines,
        "",
        "```python",
        "import driftar_jax",
        "",
        f'model = driftar_jax.load("{folder}")',
        f"images = model.sample({labels}, seed=0).images  # uint8",
        "```",
        "",
        "Sampling settings, unless others are asked for: "
        + ", ".join(f"{k} {v}" for k, v in sorted(config.get("sample", {}).items()))
        + ".",
    ]


def _made(config, manifest, step: int, seconds: float | None, begun: str) -> list[str]:
    train, data = config.get("train", {}), config.get("data", {}).get("name")
    names = list(manifest.get("class_names", ()))
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    batch = train.get("batch_size")
    amount = f" of {batch} images, {step * batch / 1e3:.0f} thousand in all" if batch else ""
    took = "its time was not kept" if seconds is None else f"{seconds / 3600:.1f} hours in all"
    versions = manifest.get("versions", {})
    machine = f"{manifest.get('device_count', 1)} x {manifest.get('device', 'unknown device')}"
    if manifest.get("cpu_count"):
        machine += f", {manifest['cpu_count']} CPU cores"
    licence = ""
    pictures = manifest.get("pictures", data)
    if pictures != data:
        # A set of latents is called after its folder; what was encoded is what a reader knows.
        data = f"{pictures}, encoded as {data}"
    if pictures in _EMBEDDED:
        licence = "; licences and attribution: `driftar_jax/data/embedded/LICENSES.md`"
    rows = [
        f"- task `{config.get('task')}`, {step:,} steps{amount}; {took}",
        f"- machine: {machine}; "
        + ", ".join(f"{k} {v}" for k, v in versions.items() if k in ("jax", "flax")),
        f"- data: `{data}`, {len(names)} class(es): {shown}{licence}",
    ]
    if begun:
        rows.append(f"- begun from `{begun}`")
    kept = {k: config[k] for k in ("host", "head", "drift", "prior", "autoencoder") if k in config}
    return [*rows, "", "```json", json.dumps(kept, indent=1), "```"]


def _measured(task: str, report: Mapping | None, held_out: Mapping | None) -> list[str]:
    first_lines = []
    if held_out is not None:
        numbers = {k: v for k, v in held_out.items() if k != "step" and isinstance(v, int | float)}
        figures = ", ".join(f"{name.replace('_', ' ')} {v:.4g}" for name, v in numbers.items())
        first_lines = [f"On held-out pictures after {held_out['step']:,} steps: {figures}.", ""]
    if report is None and first_lines:
        return first_lines[:1]
    if report is None:
        return ["Nothing: `evaluate` measures it, `export --report=report.json` writes it here."]
    wanted = ("own",) if task == "host" else ("drift",)
    rows = [row for row in report["rows"] if row["method"] in (*wanted, "prior mean", "own")]
    columns = [c for c in _MEASURED if any(c[0] in row for row in rows)]
    head = ["method", *(heading for _, heading, _ in columns)]
    lines = [_row(head), "|" + "---|" * len(head)]
    for row in (*rows, {"method": "real images", **report.get("real", {})}):
        cells = [f"{row[key]:.{n}f}" if key in row else "" for key, _, n in columns]
        lines.append(_row([row["method"], *cells]))
    known = report.get("facts", {})
    floor = report.get("floor")
    said = [f"{name}: {known[name]}" for name in ("images", "device") if name in known]
    if isinstance(floor, float):
        said.append(f"two halves of the real images are {floor:.2f} apart")
    said.append(f"features: {report.get('network', 'classifier')}")
    return [
        *first_lines,
        *lines,
        "",
        "; ".join(said) + ". Distances compare rows here and nothing published.",
    ]


def _row(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _limits(task: str, text: bool, seconds: float | None) -> list[str]:
    does = "knows" if task in ("autoencoder", "classifier", "mae") else "draws"
    lines = [
        f"- It {does} what its training set shows, in that set's style and size; nothing else."
    ]
    if text:
        lines.append("- Words that no training caption has are not read, and order says little.")
    long = "a short time" if seconds is None else f"{seconds / 3600:.1f} hours"
    lines.append(f"- It is small and was trained for {long}: look at what it makes.")
    return lines
