"""TransDiff's part of a config; its forms differ in the images that are made in a row."""

import math
from typing import Any

from driftar_jax.config import blocks, choice, former, of_tasks, real, text, whole, wrong
from driftar_jax.hosts import fields as shared

tasks = ("host", "drift")

# Images of a class that are made in a row, one for each AR step.
GROUPS = {"one_step": 1, "mrar": 4}


def _has_bank(flat) -> bool:
    return flat["task"] == "drift" or flat.get("host.form") == "mrar"


fields = {
    **shared.COMMON,
    **shared.DROPOUT,
    **shared.ANNEALED,
    **shared.DECODER_HEADS,
    "host.form": choice(tuple(GROUPS), "One image by itself, or images of a class in a row."),
    "host.depth": blocks(2, "Blocks; the last gives the entropy."),
    "host.row_patch": whole(1, "Side of the square of tokens that one content row stands for."),
    "host.buffer_size": whole(1, "Rows of class tokens in front of the content rows."),
    "sample.drift_scale": real(
        0, math.inf, "Factor of the velocity in the flow head's steps.", open_low=True
    ),
    **of_tasks(
        ("drift",),
        {
            "drift.guidance_power": former(3.0, "p in the scales' density alpha^-p."),
            "drift.guidance_none": former(0.5, "Share of the rows that learn without guidance."),
            "drift.features": choice(
                ("identity", "penultimate", "mae"),
                "Space in which whole grids drift: tokens, or features of a trained network.",
            ),
            "drift.features_from": text("Workdir of that network; '' for identity."),
            "drift.classes": whole(1, "Rows of a step: classes that drift, one grid each."),
            "drift.positives": whole(1, "Real grids of its class that attract a row."),
            "drift.unconditional": whole(
                0, "Real grids of any class that carry the guidance; 0: none."
            ),
            "drift.chunk": whole(0, "Rows through decoder and features at a time; 0: all."),
        },
    ),
    "bank.size": whole(1, "Real grids kept of every class.", when=_has_bank),
    "bank.dtype": choice(("float32", "bfloat16"), "Type of the grids kept.", when=_has_bank),
    "bank.limit_gib": real(
        0, math.inf, "Most memory that the bank may take.", open_low=True, when=_has_bank
    ),
}


def check(flat: dict[str, Any], tokens: int) -> None:
    """Raise ValueError where values do not fit together."""
    shared.check_sizes(flat)
    side, form = math.isqrt(tokens), flat["host.form"]
    if side % flat["host.row_patch"]:
        allowed = f"a divisor of the grid's side {side}"
        raise wrong("host.row_patch", flat["host.row_patch"], allowed)
    if flat["sample.ar_steps"] != GROUPS[form]:
        allowed = f"{GROUPS[form]} (host.form is {form})"
        raise wrong("sample.ar_steps", flat["sample.ar_steps"], allowed)
    if flat.get("bank.size", GROUPS[form]) < GROUPS[form]:
        raise wrong("bank.size", flat["bank.size"], f"at least {GROUPS[form]} images in a row")
    if flat["task"] == "drift":
        _check_drift(flat)
    else:
        for field in ("sample.nfe", "sample.nfe_last"):
            if flat[field] < 2:
                raise wrong(field, flat[field], "a whole number of at least 2")
    shared.check_steps(flat)


def _check_drift(flat: dict[str, Any]) -> None:
    """Check drifting of whole grids; a single draw would have nothing that repels it."""
    images = flat["train.batch_size"] // flat["optim.accumulate"]
    if flat["drift.classes"] > images:
        raise wrong("drift.classes", flat["drift.classes"], f"1 to {images} images of a batch")
    chunk = flat["drift.chunk"]
    if chunk and flat["drift.classes"] % chunk:
        allowed = f"0 or a divisor of drift.classes {flat['drift.classes']}"
        raise wrong("drift.chunk", chunk, allowed)
    if flat["drift.positives"] > flat["bank.size"]:
        allowed = f"1 to bank.size {flat['bank.size']}"
        raise wrong("drift.positives", flat["drift.positives"], allowed)
    for field, want in (("host.form", "one_step"), ("host.row_patch", 1)):
        if flat[field] != want:
            raise wrong(field, flat[field], f"{want} (task drift has a prior for every token)")
    if flat["drift.guidance_max"] > 1 and not flat["drift.unconditional"]:
        allowed = "at least 1: unconditional samples carry the guidance of drift.guidance_max"
        raise wrong("drift.unconditional", 0, allowed)
    trained, network = flat["drift.features"] != "identity", bool(flat["drift.features_from"])
    if trained != network:
        allowed = "the workdir of a trained network" if trained else "'' for identity"
        raise wrong("drift.features_from", flat["drift.features_from"], allowed)
