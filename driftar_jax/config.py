"""Checks of a run's config. Every message about a bad field is written here.

A config is an `ml_collections.ConfigDict` of plain data; `check` reads it once, before any device
work, and below the tasks and factories only plain arguments travel.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable
from typing import Any

TASKS = ("host", "drift", "draft", "classifier", "mae")
# Tasks of workdirs that `convert` writes and nobody trains: Drift-AR as published, NextStep-1.
PUBLISHED, CONVERTED = "published", "nextstep"


@dataclasses.dataclass(frozen=True)
class Field:
    """One allowed setting: its type, the rule its value obeys and the words for that rule."""

    kind: type
    rule: Callable[[Any], bool]
    allowed: str


def _whole(low: int) -> Field:
    return Field(int, lambda v: v >= low, f"a whole number of at least {low}")


def _blocks(low: int) -> Field:
    """Blocks are built one by one: a number without end would be a program without end."""
    return Field(int, lambda v: low <= v <= 1000, f"a whole number from {low} to 1000")


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
# TransDiff's forms: images of a class that are made in a row, one for each AR step.
GROUPS = {"one_step": 1, "mrar": 4}

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
    "host.name": _choice("mar", "transdiff", "nextstep"),
    "host.width": _whole(1),
    "host.encoder_depth": _blocks(1),
    "host.decoder_depth": _blocks(2),
    "host.form": _choice(*GROUPS),
    "host.depth": _blocks(2),
    "host.row_patch": _whole(1),
    "host.num_heads": _whole(1),
    "host.num_kv_heads": _whole(1),
    "host.mlp_width": _whole(1),
    "host.norm_eps": _real(0, open_low=True),
    "host.rope_theta": _real(1),
    "host.buffer_size": _whole(1),
    "host.attention_dropout": _real(0, 1, open_high=True),
    "host.projection_dropout": _real(0, 1, open_high=True),
    "host.label_drop": _real(0, 1),
    "host.dtype": _choice("float32", "bfloat16"),
    "host.remat": _choice("none", "dots", "full"),
    "head.width": _whole(1),
    "head.depth": _blocks(1),
    "head.copies": _whole(1),
    "text.length": _whole(1),
    "text.unknown": _real(0, 1, open_high=True),
    "text.loss": _real(0),
    "mask.law": _choice("mar", "generation"),
    "mask.ratio_min": _real(0, 1),
    "mask.tokens_per_image": _whole(0),
    "prior.scale": _choice("entropy", "constant", "shuffled", "learned"),
    "prior.sigma_max": _real(0, open_low=True),
    "prior.tau": _real(0, open_low=True),
    "prior.constant": _real(0),
    "drift.field": _choice("energy", "laplace"),
    "drift.draws": _whole(2),
    "drift.width": _whole(1),
    "drift.depth": _blocks(1),
    "drift.standardised": _FLAG,
    "drift.entropy_adaln": _FLAG,
    "drift.entropy_gradient": _FLAG,
    "drift.guidance_max": _real(1),
    "drift.num_heads": _whole(1),
    "drift.guidance_power": _real(0),
    "drift.guidance_none": _real(0, 1),
    "drift.features": _choice("identity", "penultimate", "mae"),
    "drift.features_from": _TEXT,
    "drift.classes": _whole(1),
    "drift.positives": _whole(1),
    "drift.unconditional": _whole(0),
    "drift.chunk": _whole(0),
    "bank.size": _whole(1),
    "bank.dtype": _choice("float32", "bfloat16"),
    "bank.limit_gib": _real(0, open_low=True),
    "draft.width": _whole(1),
    "draft.depth": _blocks(1),
    "draft.num_heads": _whole(1),
    "loss.entropy_loss": _choice("match", "maximize", "none"),
    "loss.alpha_start": _real(0, 1),
    "loss.freeze_at": _real(0, 1, open_low=True),
    "classifier.width": _whole(1),
    "mae.width": _whole(1),
    "mae.blocks": Field(
        str,
        lambda v: re.fullmatch(r"[1-9]\d{0,2}(,[1-9]\d{0,2}){0,9}", v) is not None,
        "blocks of each stage as in 3,4,6,3",
    ),
    "mae.patch": _whole(1),
    "mae.mask_share": _real(0, 1, open_low=True),
    "mae.label_weight": _real(0, 1),
    "mae.label_from": _real(0, 1, open_high=True),
    "mae.dtype": _choice("float32", "bfloat16"),
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
    "train.checkpoint_minutes": _real(0),
    "train.keep": _whole(1),
    "sample.ar_steps": _whole(1),
    "sample.nfe": _whole(1),
    "sample.nfe_schedule": _choice("constant", "two_stage", "linear", "cosine"),
    "sample.nfe_last": _whole(1),
    "sample.guidance": _real(0),
    "sample.guidance_schedule": _choice("linear", "constant"),
    "sample.spacing": _choice("even", "trimmed"),
    "sample.temperature": _real(0, open_low=True),
    "sample.drift_scale": _real(0, open_low=True),
    "sample.gamma": Field(int, lambda v: v >= -1, "-1 (chosen by measuring) or groups from 0"),
    "sample.rule": _choice("gaussian", "coupled", "feature"),
    "sample.delta": _real(0),
    "teacher.unroll": _blocks(1),
    "teacher.prior": _real(0),
    "teacher.fresh_head": _FLAG,
    "mesh.data": _AXIS,
    "mesh.fsdp": _AXIS,
    "mesh.tensor": _AXIS,
}

_SHARED = ("task", "seed", "init_from", "data", "optim", "train", "mesh")
_GENERATIVE = (*_SHARED, "host", "text", "mask", "sample")
SECTIONS = {
    "host": (*_GENERATIVE, "head"),
    "drift": (*_GENERATIVE, "prior", "drift", "draft", "loss"),
    "draft": (*_GENERATIVE, "prior", "drift", "draft", "loss", "teacher"),
    "classifier": (*_SHARED, "classifier"),
    "mae": (*_SHARED, "mae"),
}

# Fields and whole sections that some hosts alone have.
OF_HOSTS = {
    "host.form": ("transdiff",),
    "host.depth": ("transdiff", "nextstep"),
    "host.row_patch": ("transdiff",),
    "host.encoder_depth": ("mar",),
    "host.decoder_depth": ("mar",),
    "host.buffer_size": ("mar", "transdiff"),
    "host.attention_dropout": ("mar", "transdiff"),
    "host.projection_dropout": ("mar", "transdiff"),
    "host.num_kv_heads": ("nextstep",),
    "host.mlp_width": ("nextstep",),
    "host.norm_eps": ("nextstep",),
    "host.rope_theta": ("nextstep",),
    "text": ("nextstep",),
    "head.width": ("mar", "nextstep"),
    "mask": ("mar",),
    "mask.tokens_per_image": ("mar", "nextstep"),
    "draft": ("mar", "nextstep"),
    "drift.entropy_adaln": ("mar",),
    "drift.entropy_gradient": ("mar",),
    "drift.num_heads": ("transdiff",),
    "drift.guidance_power": ("transdiff",),
    "drift.guidance_none": ("transdiff",),
    "drift.features": ("transdiff",),
    "drift.features_from": ("transdiff",),
    "drift.classes": ("transdiff",),
    "drift.positives": ("transdiff",),
    "drift.unconditional": ("transdiff",),
    "drift.chunk": ("transdiff",),
    "loss.entropy_loss": ("mar", "nextstep"),
    "loss.alpha_start": ("mar", "nextstep"),
    "sample.spacing": ("mar",),
    "sample.drift_scale": ("transdiff",),
    "sample.nfe_schedule": ("mar", "transdiff"),
    "sample.nfe_last": ("mar", "transdiff"),
    "sample.gamma": ("mar", "nextstep"),
    "sample.rule": ("mar", "nextstep"),
    "sample.delta": ("mar", "nextstep"),
}
# Fields that some tasks alone have, of those that have the section.
OF_TASKS = {name: ("drift", "draft") for name in ("sample.gamma", "sample.rule", "sample.delta")}
OF_TASKS["text.loss"] = ("host",)

# What a resumed run may change: none of these alters a step that has been made.
CHANGEABLE = (
    "train.log_every",
    "train.sample_every",
    "train.checkpoint_every",
    "train.checkpoint_minutes",
    "train.keep",
    "mesh",
    "host.remat",
    "sample.nfe_schedule",
    "sample.nfe_last",
    "sample.gamma",
    "sample.rule",
    "sample.delta",
)

# What runs did before these fields were there.
BEFORE = {
    "drift.guidance_max": 1.0,
    "drift.entropy_adaln": True,
    "drift.entropy_gradient": True,
    "teacher.fresh_head": False,
    "host.remat": "none",
}
# Fields of training alone, which older workdirs lack.
MAY_MISS = ("host.remat",)


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
    needed = _needed(flat)
    for name in flat:
        if name not in needed:
            raise wrong("config field", name, f"the fields of configs/{nearest(name, needed)}")
    for name in needed:
        if name not in flat and name in MAY_MISS:
            continue
        if name not in flat:
            raise wrong(name, None, FIELDS[name].allowed)
        _check_value(name, flat[name])
    _check_together(flat)


def check_stored(stored: dict[str, Any]) -> None:
    """Refuse the config of a workdir that no run can have had.

    Fields may be missing or unknown, for runs are older or newer than this program.

    Raises:
      ValueError: the first bad field as one line: field, value, allowed.
    """
    for name, value in flatten(stored).items():
        if name in FIELDS:
            _check_value(name, value)


def _needed(flat: dict[str, Any]) -> list[str]:
    """Names of the fields that a config of this task and host has."""
    sections = list(SECTIONS[flat["task"]])
    host = flat.get("host.name") if "host" in sections else None
    if host is not None:
        _check_value("host.name", host)
    if host == "transdiff" and "host.form" in flat:
        _check_value("host.form", flat["host.form"])
    if host == "transdiff" and flat["task"] == "draft":
        raise wrong("host.name", host, "mar | nextstep for task draft: these have drafts so far")
    if host == "transdiff" and (flat["task"] == "drift" or flat.get("host.form") == "mrar"):
        sections.append("bank")

    def has(name):
        section = name.split(".")[0]
        hosts = OF_HOSTS.get(name, OF_HOSTS.get(section, ()))
        if flat["task"] not in OF_TASKS.get(name, (flat["task"],)):
            return False
        return section in sections and (not hosts or (host or "mar") in hosts)

    return [name for name in FIELDS if has(name)]


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
    if flat["task"] == "mae" and size % flat["mae.patch"]:
        raise wrong("mae.patch", flat["mae.patch"], f"a divisor of data.image_size {size}")
    if flat["task"] in ("classifier", "mae"):
        return
    for width, heads in (
        ("host.width", "host.num_heads"),
        ("draft.width", "draft.num_heads"),
        ("drift.width", "drift.num_heads"),
    ):
        if heads in flat and flat[width] % flat[heads]:
            raise wrong(heads, flat[heads], f"a divisor of {width} {flat[width]}")
    tokens = (size // patch) ** 2
    if flat["host.name"] == "mar":
        _check_masks(flat, tokens)
    elif flat["host.name"] == "nextstep":
        _check_causal(flat, tokens)
    else:
        _check_transdiff(flat, size // patch)
    if flat["sample.nfe"] > 1000:
        raise wrong("sample.nfe", flat["sample.nfe"], "1 to 1000")
    last, most = flat.get("sample.nfe_last", 1), flat["sample.nfe"]
    if flat.get("sample.nfe_schedule", "constant") != "constant" and last > most:
        raise wrong("sample.nfe_last", last, f"1 to sample.nfe {most}: steps fall")


def _check_masks(flat: dict[str, Any], tokens: int) -> None:
    """What a host that fills masked tokens needs."""
    _check_tokens(flat, tokens)
    if flat["sample.ar_steps"] > tokens:
        raise wrong("sample.ar_steps", flat["sample.ar_steps"], f"1 to {tokens} (one per token)")


def _check_tokens(flat: dict[str, Any], tokens: int) -> None:
    """What a host that makes single tokens needs."""
    if flat["mask.tokens_per_image"] > tokens:
        raise wrong("mask.tokens_per_image", flat["mask.tokens_per_image"], f"0 to {tokens}")
    if flat.get("drift.field") == "laplace":
        allowed = "energy (a token has one real continuation, and laplace needs many)"
        raise wrong("drift.field", "laplace", allowed)


def _check_causal(flat: dict[str, Any], tokens: int) -> None:
    """What a host that makes one token after another needs."""
    _check_tokens(flat, tokens)
    heads, shared = flat["host.num_heads"], flat["host.num_kv_heads"]
    if heads % shared:
        raise wrong("host.num_kv_heads", shared, f"a divisor of host.num_heads {heads}")
    if flat["host.width"] // heads % 2:
        raise wrong("host.num_heads", heads, "heads of an even width: they are rotated in pairs")
    if flat["sample.ar_steps"] != tokens:
        raise wrong("sample.ar_steps", flat["sample.ar_steps"], f"{tokens} (one per token)")
    if flat.get("prior.scale") == "shuffled":
        allowed = "entropy | constant | learned (tokens come one by one, with nobody to swap with)"
        raise wrong("prior.scale", "shuffled", allowed)
    if flat["task"] == "host" and flat["sample.nfe"] < 2:
        raise wrong("sample.nfe", flat["sample.nfe"], "2 to 1000 (of a flow head)")


def _check_grid_drift(flat: dict[str, Any]) -> None:
    """What drifting of whole grids needs; a single draw would have nothing that repels it."""
    images = flat["train.batch_size"] // flat["optim.accumulate"]
    if flat["drift.classes"] > images:
        raise wrong("drift.classes", flat["drift.classes"], f"1 to {images} images of a batch")
    chunk = flat["drift.chunk"]
    if chunk and flat["drift.classes"] % chunk:
        raise wrong(
            "drift.chunk", chunk, f"0 or a divisor of drift.classes {flat['drift.classes']}"
        )
    if flat["drift.positives"] > flat["bank.size"]:
        allowed = f"1 to bank.size {flat['bank.size']}"
        raise wrong("drift.positives", flat["drift.positives"], allowed)
    for field, want in (("host.form", "one_step"), ("host.row_patch", 1)):
        if flat[field] != want:
            raise wrong(field, flat[field], f"{want} (task drift has a prior for every token)")
    if flat["drift.guidance_max"] > 1 and not flat["drift.unconditional"]:
        allowed = "at least 1: unconditional samples carry the guidance of drift.guidance_max"
        raise wrong("drift.unconditional", 0, allowed)
    trained, given = flat["drift.features"] != "identity", bool(flat["drift.features_from"])
    if trained != given:
        allowed = "the workdir of a trained network" if trained else "'' for identity"
        raise wrong("drift.features_from", flat["drift.features_from"], allowed)


def _check_transdiff(flat: dict[str, Any], side: int) -> None:
    if side % flat["host.row_patch"]:
        raise wrong(
            "host.row_patch", flat["host.row_patch"], f"a divisor of the grid's side {side}"
        )
    form = flat["host.form"]
    if flat["sample.ar_steps"] != GROUPS[form]:
        allowed = f"{GROUPS[form]} (host.form is {form})"
        raise wrong("sample.ar_steps", flat["sample.ar_steps"], allowed)
    if flat.get("bank.size", GROUPS[form]) < GROUPS[form]:
        raise wrong("bank.size", flat["bank.size"], f"at least {GROUPS[form]} images in a row")
    if flat["task"] == "drift":
        _check_grid_drift(flat)
        return
    for field in ("sample.nfe", "sample.nfe_last"):
        if flat[field] < 2:
            raise wrong(field, flat[field], "a whole number of at least 2")


def check_same_run(config, saved: dict) -> None:
    """Refuse to go on in a workdir that belongs to another config.

    Raises:
      ValueError: the first field that differs: field, value now, value of the run.
    """
    now, then = flatten(config), flatten(saved)
    for name in sorted(now.keys() | then.keys()):
        if any(name == c or name.startswith(c + ".") for c in CHANGEABLE):
            continue
        was = then.get(name, BEFORE.get(name))
        if now.get(name) != was:
            raise wrong(
                name,
                now.get(name),
                f"{was!r} (this workdir belongs to another config; use a new one)",
            )
