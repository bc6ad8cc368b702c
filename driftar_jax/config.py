"""Checks of a run's config. Every message about a bad field has its form here.

A config is an `ml_collections.ConfigDict` of plain data; `check` reads it once, before any device
work, and below the tasks and factories only plain arguments travel. What every run has stands in
this file; hosts and networks bring the fields of their own (`hosts/*_host.py`, `_NETWORKS`).
"""

import dataclasses
import difflib
import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from driftar_jax import seeds
from driftar_jax.storage import paths

TASKS = ("host", "drift", "draft", "classifier", "mae", "autoencoder")
GENERATIVE = ("host", "drift", "draft")
# Where the fields of the other tasks stand, beside what is built of them: `FIELDS` and `check`.
_NETWORKS = {
    "classifier": "driftar_jax.features.classifier",
    "mae": "driftar_jax.features.mae",
    "autoencoder": "driftar_jax.vae.stored",
}
# Tasks of workdirs that `convert` writes and nobody trains: Drift-AR as published, NextStep-1.
PUBLISHED, CONVERTED = "published", "nextstep"
# The order of sections in messages and pages; a host may have others, which come last.
SECTIONS = (
    "task",
    "seed",
    "init_from",
    "data",
    "host",
    "head",
    "text",
    "mask",
    "prior",
    "drift",
    "bank",
    "draft",
    "adapter",
    "loss",
    "classifier",
    "mae",
    "autoencoder",
    "optim",
    "train",
    "sample",
    "teacher",
    "mesh",
)

_REQUIRED = object()
# What a run may change once it has a checkpoint: where that lies from which it was begun.
WHEN_BEGUN = ("init_from", "data.name", "data.data_dir")


@dataclasses.dataclass(frozen=True)
class Field:
    """One allowed setting.

    Attributes:
      kind: its type.
      rule: what its value obeys.
      allowed: the words for that rule.
      says: one sentence: what it does.
      tasks: the tasks that have it; (): all.
      when: of the flat config, whether it has the field; None: always.
      before: what runs did before the field was there.
      may_miss: whether a config may lack it.
      changeable: whether a resumed run may change it: no step that has been made alters.
      former: whether it is a setting no more: configs may still say its one value.
    """

    kind: type
    rule: Callable[[Any], bool]
    allowed: str
    says: str
    tasks: tuple[str, ...] = ()
    when: Callable[[Mapping[str, Any]], bool] | None = None
    before: Any = _REQUIRED
    may_miss: bool = False
    changeable: bool = False
    former: bool = False


def whole(low: int, says: str, **rest) -> Field:
    """Return the field of a whole number of at least `low`."""
    return Field(int, lambda v: v >= low, f"a whole number of at least {low}", says, **rest)


def blocks(low: int, says: str, **rest) -> Field:
    """Return the field of a number of blocks.

    They are built one by one: a number without end would be a program without end.
    """
    allowed = f"a whole number from {low} to 1000"
    return Field(int, lambda v: low <= v <= 1000, allowed, says, **rest)


def real(
    low: float,
    high: float,
    says: str,
    *,
    open_low: bool = False,
    open_high: bool = False,
    **rest,
) -> Field:
    """Return the field of a number from `low` to `high`; an open end is no value itself.

    Below an open `high` means below it in float32, in which programs compute: AdamW's `b2` one
    float64 step below 1 would be 1 there, and its bias correction 0 / 0.
    """
    words = f"a number {'above' if open_low else 'from'} {low:g}"
    words += f" to {'below ' if open_high else ''}{high:g}" if high != math.inf else ""

    def rule(v):
        above = low < v if open_low else low <= v
        below = v < high and np.float32(v) < high if open_high else v <= high
        return math.isfinite(v) and above and bool(below)

    return Field(float, rule, words, says, **rest)


def choice(values: tuple[str, ...], says: str, **rest) -> Field:
    """Return the field of one of several words."""
    return Field(str, lambda v: v in values, " | ".join(values), says, **rest)


def flag(says: str, **rest) -> Field:
    """Return the field of true or false."""
    return Field(bool, lambda v: True, "true | false", says, **rest)


def text(says: str, **rest) -> Field:
    """Return the field of any text."""
    return Field(str, lambda v: True, "text", says, **rest)


def place(says: str, **rest) -> Field:
    """Return the field of a path on this machine, which may be empty."""
    allowed = "a folder of this machine: mount the bucket and give the folder where it is mounted"
    here = lambda v: v.startswith(paths.HUB) or not paths.is_address(v)  # noqa: E731
    return Field(str, here, allowed, says, **rest)


def former(value: Any, says: str, **rest) -> Field:
    """Return a field that is a constant now, `value`; older configs name it."""
    allowed = f"{value:g} (a constant now)"
    return Field(
        float, lambda v: v == value, allowed, says, before=value, may_miss=True, former=True, **rest
    )


def of_tasks(tasks: tuple[str, ...], fields: Mapping[str, Field]) -> dict[str, Field]:
    """Return the fields as some tasks alone have them."""
    return {name: dataclasses.replace(field, tasks=tasks) for name, field in fields.items()}


_ANY = math.inf
_AXIS = (int, lambda v: v == -1 or v >= 1, "-1 or a whole number of at least 1")

_DATA = {
    "data.name": Field(
        str,
        lambda v: bool(v),
        "the name of an image set or folder:PATH",
        "Image set: a prepared one by name, or folder: webdataset: parquet: pairs: latents:PATH.",
    ),
    "data.data_dir": place("Folder of prepared and downloaded sets; '' is TFDS_DATA_DIR or ~."),
    "data.image_size": whole(1, "Side of the square images, or of the grid of latents."),
    "data.patch_size": whole(1, "Side of a patch; one patch is one token."),
    "data.center_crop": flag("Whether pictures of another shape are cut to their middle square."),
    "data.flip": flag("Whether training mirrors half of the images at random."),
}
_OPTIM = {
    "optim.lr": real(0, _ANY, "Learning rate of AdamW after the warm-up.", open_low=True),
    "optim.schedule": choice(
        ("constant", "cosine"), "Whether the rate stays, or falls to 0 at the last step."
    ),
    "optim.warmup_steps": whole(0, "Steps in which the rate rises from 0."),
    "optim.weight_decay": real(
        0, _ANY, "Decay of matrices; not of biases, norms and what lies under a head."
    ),
    "optim.b1": former(0.9, "First moment's decay of AdamW."),
    "optim.b2": real(0, 1, "Second moment's decay of AdamW.", open_high=True),
    "optim.clip": real(0, _ANY, "Largest global norm of the gradient.", open_low=True),
    "optim.ema": real(0, 1, "Decay of the averaged parameters, which sampling reads."),
    "optim.freeze": Field(
        str,
        lambda v: True,
        "globs of parameter names as in host.*,head.*",
        "Parameters that stay as they are, globs of names; they have no moments.",
        before="",
        may_miss=True,
    ),
    "optim.accumulate": whole(1, "Micro-batches of a step, a divisor of the batch."),
}
_TRAIN = {
    "train.batch_size": whole(1, "Images of a step."),
    "train.steps": whole(1, "Steps of the run."),
    "train.log_every": whole(1, "Steps between two lines of the log.", changeable=True),
    "train.sample_every": whole(
        0, "Steps between two sheets of pictures; 0: none.", changeable=True
    ),
    "train.held_out_every": whole(
        0,
        "Steps between two scores of samples against held-out pictures; 0: none.",
        tasks=GENERATIVE,
        before=0,
        may_miss=True,
        changeable=True,
    ),
    "train.judge": place(
        "Workdir of task classifier: how many of these samples it takes for their class.",
        tasks=GENERATIVE,
        before="",
        may_miss=True,
        changeable=True,
    ),
    "train.checkpoint_every": whole(1, "Steps between two checkpoints.", changeable=True),
    "train.checkpoint_minutes": real(
        0, _ANY, "Minutes after which a checkpoint is due; 0: by steps alone.", changeable=True
    ),
    "train.keep": whole(1, "Newest checkpoints that stay.", changeable=True),
}
_ADAPTER = of_tasks(
    ("host", "drift"),
    {
        "adapter.rank": whole(
            0,
            "Rank of what is learnt beside each dense layer of the host, which stays; 0: none.",
            before=0,
            may_miss=True,
        )
    },
)
_MESH = {
    "mesh.data": Field(
        *_AXIS, "Devices that share the images; -1: what the others leave.", changeable=True
    ),
    "mesh.fsdp": Field(
        *_AXIS, "Devices that share images and parameters; -1: the rest.", changeable=True
    ),
    "mesh.tensor": Field(
        *_AXIS, "Devices that share heads and hidden channels; -1: the rest.", changeable=True
    ),
}
# What every run has, whatever its host.
_SHARED: dict[str, Field] = {
    "task": choice(TASKS, "What is trained."),
    "seed": Field(
        int,
        lambda v: 0 <= v <= seeds.MOST,
        f"a whole number from 0 to {seeds.MOST}",
        "Root of all randomness of the run.",
    ),
    "init_from": place("Workdir whose host (task draft: whose Drift-AR) the run starts from; ''."),
    **_DATA,
    **_OPTIM,
    **_TRAIN,
    **_ADAPTER,
    **_MESH,
}


def hosts() -> tuple[str, ...]:
    """Return the names of the hosts."""
    return tuple(_room().FILES)


def host(name: str) -> Any:
    """Return the family of a host; of it, `fields`, `tasks` and `check` are read here."""
    return _room().family(name)


def _room():
    # Hosts stand above this file and are built on JAX: imported when one is asked for.
    return importlib.import_module("driftar_jax.hosts")


def network(task: str) -> Any:
    """Return the module of a network trained by itself; its `FIELDS` and `check` are read here."""
    return importlib.import_module(_NETWORKS[task])


def _host_name() -> Field:
    return choice(hosts(), "The autoregressive backbone.", tasks=GENERATIVE)


def fields() -> dict[str, Field]:
    """Return every field of every host and task, section after section."""
    table = {**_SHARED, "host.name": _host_name()}
    for name in hosts():
        table |= {n: field for n, field in host(name).fields.items() if n not in table}
    for task in _NETWORKS:
        table |= network(task).FIELDS
    return _in_order(table)


def _in_order(table: Mapping[str, Field]) -> dict[str, Field]:
    def place(name):
        section = name.split(".")[0]
        return SECTIONS.index(section) if section in SECTIONS else len(SECTIONS)

    return {name: table[name] for name in sorted(table, key=place)}


def flatten(config) -> dict[str, Any]:
    """Return `{"host.width": 96, ...}` of a nested mapping."""
    flat = {}
    for name, value in dict(config).items():
        if hasattr(value, "items"):
            flat.update({f"{name}.{k}": v for k, v in flatten(value).items()})
        else:
            flat[name] = value
    return flat


_LONGEST = 400  # characters of a value that a message repeats


def wrong(field: str, value, allowed: str) -> ValueError:
    """Make the one form of a complaint: field, value, allowed."""
    shown = repr(value)
    if len(shown) > _LONGEST:  # somebody gave a text for a name
        shown = f"{shown[:_LONGEST]}... ({len(shown)} characters)"
    return ValueError(f"{field}: got {shown}, allowed {allowed}")


def nearest(name: str, names) -> str:
    """Return `" (did you mean 'x'?)"`, or nothing where no name is close."""
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
    _check_value("task", _SHARED["task"], flat["task"])
    table = _fields_of(flat)
    # Values first: which fields there are may hang on one of them.
    for name, field in table.items():
        if name in flat:
            _check_value(name, field, flat[name])
    table = {n: f for n, f in table.items() if f.when is None or f.when(flat)}
    for name in flat:
        if name not in table:
            raise wrong("config field", name, f"the fields of configs/{nearest(name, table)}")
    for name, field in table.items():
        if name not in flat and not field.may_miss:
            raise wrong(name, None, field.allowed)
    _check_together(flat)


def check_stored(stored: dict[str, Any]) -> None:
    """Refuse the config of a workdir that no run can have had.

    Fields may be missing or unknown, for runs are older or newer than this program.

    Raises:
      ValueError: the first bad field as one line: field, value, allowed.
    """
    flat = flatten(stored)
    table = _known(flat)
    for name, value in flat.items():
        if name in table and not table[name].former:
            _check_value(name, table[name], value)


def _known(flat: dict[str, Any]) -> dict[str, Field]:
    """Return all fields of the host or network of a stored config, for its values alone."""
    table = {**_SHARED, "host.name": _host_name()}
    task, name = flat.get("task"), flat.get("host.name")
    if isinstance(task, str) and task in _NETWORKS:
        return table | network(task).FIELDS
    return table | (host(name).fields if isinstance(name, str) and name in hosts() else {})


def _fields_of(flat: dict[str, Any]) -> dict[str, Field]:
    """Return the fields that a config of this task and host may have."""
    task, table = flat["task"], dict(_SHARED)
    if task in GENERATIVE:
        table["host.name"] = _host_name()
        name = flat.get("host.name")
        _check_value("host.name", table["host.name"], name)
        family = host(name)
        if task not in family.tasks:
            able = " | ".join(n for n in hosts() if task in host(n).tasks)
            allowed = f"{able} for task {task}: these have {_HAVE.get(task, 'it')} so far"
            raise wrong("host.name", name, allowed)
        table |= family.fields
    else:
        table |= network(task).FIELDS
    return _in_order({n: f for n, f in table.items() if not f.tasks or task in f.tasks})


_HAVE = {"draft": "drafts"}


def _check_value(name: str, field: Field, value) -> None:
    kind = (int, float) if field.kind is float else field.kind
    if not isinstance(value, kind) or (isinstance(value, bool) and field.kind is not bool):
        raise wrong(name, value, field.allowed)
    if not field.rule(value):
        raise wrong(name, value, field.allowed)


def _check_together(flat: dict[str, Any]) -> None:
    """Check what binds several fields: sizes that must divide, counts that must fit."""
    size, patch = flat["data.image_size"], flat["data.patch_size"]
    if size % patch:
        raise wrong("data.patch_size", patch, f"a divisor of data.image_size {size}")
    batch, parts = flat["train.batch_size"], flat["optim.accumulate"]
    if batch % parts:
        raise wrong("optim.accumulate", parts, f"a divisor of train.batch_size {batch}")
    if flat["task"] in _NETWORKS:
        network(flat["task"]).check(flat)
    if flat.get("adapter.rank") and not flat["init_from"]:
        raise wrong("adapter.rank", flat["adapter.rank"], "0 without init_from, whose host stays")
    if flat["task"] in GENERATIVE:
        host(flat["host.name"]).check(flat, (size // patch) ** 2)


def lasting(config) -> dict[str, Any]:
    """Return the flat fields of a config that no later start of its run may change."""
    flat = flatten(config)
    table = _known(flat)
    free = (*WHEN_BEGUN, "train.steps")
    return {n: v for n, v in flat.items() if n not in free and not _is_free(table.get(n))}


def _is_free(field: Field | None) -> bool:
    return field is not None and field.changeable


def check_same_run(config, saved: dict, *, begun: bool = False) -> None:
    """Refuse to go on in a workdir that belongs to another config.

    Args:
      config: of this start.
      saved: of the workdir.
      begun: whether the run has a checkpoint: then what it was begun from may have moved, as data
        sets say themselves whether they are the same (`Batches.restore`).

    Raises:
      ValueError: the first field that differs: field, value now, value of the run.
    """
    now, then = flatten(config), flatten(saved)
    table = _known(then) | _known(now)
    moved = WHEN_BEGUN if begun else ()
    for name in sorted(now.keys() | then.keys()):
        field = table.get(name)
        if _is_free(field) or (name in moved and _same_kind(name, now, then)):
            continue
        # Of a field that was not there yet, or is there no more.
        missing = None if field is None or field.before is _REQUIRED else field.before
        has = now.get(name, missing if field is not None and field.may_miss else None)
        was = then.get(name, missing)
        longer = name == "train.steps" and has is not None and has >= (was or 0)
        if has != was and not longer:
            more = " or more" if name == "train.steps" else ""
            free = sorted(n for n in now if _is_free(table.get(n)))
            allowed = (
                f"{was!r}{more} (this workdir belongs to another config; use a new one; a run may "
                f"change train.steps upwards, {', '.join((*moved, *free))})"
            )
            raise wrong(name, has, allowed)


def _same_kind(name: str, now: dict, then: dict) -> bool:
    """Whether two names of a data set are folders of one kind: another set is another run."""
    if name != "data.name" or now.get(name) == then.get(name):
        return True
    kinds = [str(flat.get(name)).partition(":")[:2] for flat in (now, then)]
    return kinds[0] == kinds[1] and kinds[0][1] == ":"
