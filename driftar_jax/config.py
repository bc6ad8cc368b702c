"""Checks of a run's config. Every message about a bad field is written here.

A config is an `ml_collections.ConfigDict` of plain data; `check` reads it once, before any device
work, and below the tasks and factories only plain arguments travel.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable
from typing import Any

TASKS = ("host", "drift", "classifier")


@dataclasses.dataclass(frozen=True)
class Field:
    """One allowed setting: its type, the rule its value obeys and the words for that rule."""

    kind: type
    rule: Callable[[Any], bool]
    allowed: str


def _whole(low: int) -> Field:
    return Field(int, lambda v: v >= low, f"a whole number of at least {low}")


def _real(
    low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False
) -> Field:
    words = f"a number {'above' if open_low else 'from'} {low:g}"
    words += f" to {'below ' if open_high else ''}{high:g}" if high != math.inf else ""

    def rule(v):
        above = low < v if open_low else low <= v
        return math.isfinite(v) and above and (v < high if open_high else v <= high)

    return Field(float, rule, words)


def _choice(*values: str) -> Field:
    return Field(str, lambda v: v in values, " | ".join(values))


_FLAG = Field(bool, lambda v: True, "true | false")
_TEXT = Field(str, lambda v: True, "text")
_AXIS = Field(int, lambda v: v == -1 or v >= 1, "-1 or a whole number of at least 1")

FIELDS: dict[str, Field] = {
    "task": _choice(*TASKS),
    "seed": Field(int, lambda v: 0 <= v < 2**31, "a whole number from 0 to 2147483647"),
    "init_from": _TEXT,
    "data.name": Field(str, lambda v: bool(v), "the name of an image set or folder:PATH"),
    "data.data_dir": _TEXT,
    "data.image_size": _whole(1),
    "data.patch_size": _whole(1),
    "data.center_crop": _FLAG,
    "data.flip": _FLAG,
    "host.name": _choice("mar"),
    "host.width": _whole(1),
    "host.encoder_depth": _whole(1),
    "host.decoder_depth": _whole(2),
    "host.num_heads": _whole(1),
    "host.buffer_size": _whole(1),
    "host.attention_dropout": _real(0, 1, open_high=True),
    "host.projection_dropout": _real(0, 1, open_high=True),
    "host.label_drop": _real(0, 1),
    "host.dtype": _choice("float32", "bfloat16"),
    "head.width": _whole(1),
    "head.depth": _whole(1),
    "head.copies": _whole(1),
    "mask.law": _choice("mar", "generation"),
    "mask.ratio_min": _real(0, 1),
    "mask.tokens_per_image": _whole(0),
    "prior.scale": _choice("entropy", "constant", "shuffled", "learned"),
    "prior.sigma_max": _real(0, open_low=True),
    "prior.tau": _real(0, open_low=True),
    "prior.constant": _real(0),
    "drift.field": _choice("energy"),
    "drift.draws": _whole(2),
    "drift.width": _whole(1),
    "drift.depth": _whole(1),
    "drift.standardised": _FLAG,
    "drift.guidance_max": _real(1),
    "draft.width": _whole(1),
    "draft.depth": _whole(1),
    "draft.num_heads": _whole(1),
    "loss.entropy_loss": _choice("match", "maximize", "none"),
    "loss.alpha_start": _real(0, 1),
    "loss.freeze_at": _real(0, 1, open_low=True),
    "classifier.width": _whole(1),
    "optim.lr": _real(0, open_low=True),
    "optim.schedule": _choice("constant", "cosine"),
    "optim.warmup_steps": _whole(0),
    "optim.weight_decay": _real(0),
    "optim.b1": _real(0, 1, open_high=True),
    "optim.b2": _real(0, 1, open_high=True),
    "optim.clip": _real(0, open_low=True),
    "optim.ema": _real(0, 1),
    "optim.accumulate": _whole(1),
    "train.batch_size": _whole(1),
    "train.steps": _whole(1),
    "train.log_every": _whole(1),
    "train.sample_every": _whole(0),
    "train.checkpoint_every": _whole(1),
    "train.keep": _whole(1),
    "sample.ar_steps": _whole(1),
    "sample.nfe": _whole(1),
    "sample.nfe_schedule": _choice("constant", "two_stage", "linear", "cosine"),
    "sample.nfe_last": _whole(1),
    "sample.guidance": _real(0),
    "sample.guidance_schedule": _choice("linear", "constant"),
    "sample.spacing": _choice("even", "trimmed"),
    "sample.temperature": _real(0, open_low=True),
    "mesh.data": _AXIS,
    "mesh.fsdp": _AXIS,
    "mesh.tensor": _AXIS,
}

_SHARED = ("task", "seed", "init_from", "data", "optim", "train", "mesh")
_GENERATIVE = (*_SHARED, "host", "mask", "sample")
SECTIONS = {
    "host": (*_GENERATIVE, "head"),
    "drift": (*_GENERATIVE, "prior", "drift", "draft", "loss"),
    "classifier": (*_SHARED, "classifier"),
}

# What a resumed run may change: none of these alters a step that has been made.
CHANGEABLE = (
    "train.log_every",
    "train.sample_every",
    "train.checkpoint_every",
    "train.keep",
    "mesh",
    "sample.nfe_schedule",
    "sample.nfe_last",
)


def flatten(config) -> dict[str, Any]:
    """`{"host.width": 96, ...}` of a nested mapping."""
    flat = {}
    for name, value in dict(config).items():
        if hasattr(value, "items"):
            flat.update({f"{name}.{k}": v for k, v in flatten(value).items()})
        else:
            flat[name] = value
    return flat


def wrong(field: str, value, allowed: str) -> ValueError:
    """The one form of a complaint: field, value, allowed."""
    return ValueError(f"{field}: got {value!r}, allowed {allowed}")


def nearest(name: str, names) -> str:
    """`" (did you mean 'x'?)"`, or nothing where no name is close."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check(config) -> None:
    """Refuse a config that cannot run, before anything is compiled or written.

    Raises:
      ValueError: the first bad field as one line: field, value, allowed.
    """
    flat = flatten(config)
    if "task" not in flat:
        raise wrong("task", None, " | ".join(TASKS))
    _check_value("task", flat["task"])
    needed = [f for f in FIELDS if f.split(".")[0] in SECTIONS[flat["task"]]]
    for name in flat:
        if name not in needed:
            raise wrong("config field", name, f"the fields of configs/{nearest(name, needed)}")
    for name in needed:
        if name not in flat:
            raise wrong(name, None, FIELDS[name].allowed)
        _check_value(name, flat[name])
    _check_together(flat)


def _check_value(name: str, value) -> None:
    field = FIELDS[name]
    kind = (int, float) if field.kind is float else field.kind
    if not isinstance(value, kind) or (isinstance(value, bool) and field.kind is not bool):
        raise wrong(name, value, field.allowed)
    if not field.rule(value):
        raise wrong(name, value, field.allowed)


def _check_together(flat: dict[str, Any]) -> None:
    """Rules that bind several fields: sizes that must divide, counts that must fit."""
    size, patch = flat["data.image_size"], flat["data.patch_size"]
    if size % patch:
        raise wrong("data.patch_size", patch, f"a divisor of data.image_size {size}")
    batch, parts = flat["train.batch_size"], flat["optim.accumulate"]
    if batch % parts:
        raise wrong("optim.accumulate", parts, f"a divisor of train.batch_size {batch}")
    if flat["task"] == "classifier":
        return
    for width, heads in (("host.width", "host.num_heads"), ("draft.width", "draft.num_heads")):
        if width in flat and flat[width] % flat[heads]:
            raise wrong(heads, flat[heads], f"a divisor of {width} {flat[width]}")
    tokens = (size // patch) ** 2
    if flat["mask.tokens_per_image"] > tokens:
        raise wrong("mask.tokens_per_image", flat["mask.tokens_per_image"], f"0 to {tokens}")
    if flat["sample.ar_steps"] > tokens:
        raise wrong("sample.ar_steps", flat["sample.ar_steps"], f"1 to {tokens} (one per token)")
    if flat["sample.nfe"] > 1000:
        raise wrong("sample.nfe", flat["sample.nfe"], "1 to 1000")
    last, most = flat["sample.nfe_last"], flat["sample.nfe"]
    if flat["sample.nfe_schedule"] != "constant" and last > most:
        raise wrong("sample.nfe_last", last, f"1 to sample.nfe {most}: steps fall")


def check_same_run(config, saved: dict) -> None:
    """Refuse to go on in a workdir that belongs to another config.

    Raises:
      ValueError: the first field that differs: field, value now, value of the run.
    """
    now, then = flatten(config), flatten(saved)
    for name in sorted(now.keys() | then.keys()):
        if any(name == c or name.startswith(c + ".") for c in CHANGEABLE):
            continue
        if now.get(name) != then.get(name):
            raise wrong(
                name,
                now.get(name),
                f"{then.get(name)!r} (this workdir belongs to another config; use a new one)",
            )
