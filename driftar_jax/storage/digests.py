"""Whether the files of a checkpoint are as they were written: digests of a step, and its damage.

Array data carries no check sum of its own that would notice a flipped bit. A step also says its own
number, so that a folder under another's name is noticed.
"""

import hashlib
import json
import pathlib
from collections.abc import Iterable

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from driftar_jax.storage import reasons
from driftar_jax.storage.jsons import write_json

DIGESTS = "digests.json"
# Files of the workdir that what is read means something else without.
BESIDE = ("tokenizer.json", "captions.json", "sources.npz")
_BESIDE = "workdir"
# What a training run's step holds; others hold fewer trees, and some of other names.
_OF_TRAINING = ("params", "ema", "train", "manifest", "position")
_FACTS = ("manifest", "position")
_UNFINISHED = "orbax-checkpoint-tmp"


def step_folder(workdir: pathlib.Path, step: int) -> pathlib.Path:
    """Return where a step of a workdir lies."""
    return workdir / "checkpoints" / str(step)


def damage(workdir: pathlib.Path, step: int, names: tuple[str, ...] | None = None) -> str | None:
    """Say what is wrong with the files of a step, in a few words; None if they are as written.

    Args:
      workdir: of the run.
      step: a complete step.
      names: the folders to look at; None for all. A step without digests must hold what a
        step holds, and it must be possible to read it.
    """
    folder = step_folder(workdir, step)
    if not folder.is_dir():
        return "no folder of that name"
    held = {p.name for p in folder.iterdir() if p.is_dir()}
    # What must be there follows from what is: an export has no parameters and no position to lack.
    training = not held.isdisjoint(("params", "train", "position"))
    wanted = set(names or held) | {"manifest"}
    if not training:
        wanted -= {"position"}
    sealed = (folder / DIGESTS).exists()
    if training and not sealed and names is None:
        wanted |= set(_OF_TRAINING)
    if missing := sorted(wanted - held):
        return f"no {missing[0]}"
    if sealed:
        wrong = _differs(workdir, folder, wanted, held, everything=names is None)
    else:
        wrong = _unreadable(folder, wanted, arrays=names is None)
    return wrong or _misplaced(step, folder)


def _differs(
    workdir: pathlib.Path,
    folder: pathlib.Path,
    wanted: set[str],
    held: set[str],
    *,
    everything: bool,
) -> str | None:
    """What the digests say of the folders that are wanted, or of all."""
    written = _sealed(folder)
    if written is None:
        return f"a damaged {DIGESTS}"
    # A list that leaves out a folder would let anything stand in it.
    known = {name.split("/")[0] for name in written}
    if missing := sorted(wanted - known):
        return f"no digest of {missing[0]}"
    if everything and (missing := sorted(known - held - {_BESIDE})):
        return f"no {missing[0]}"
    for name, digest in written.items():
        top, _, rest = name.partition("/")
        if top not in wanted | {_BESIDE}:
            continue
        beside = top == _BESIDE
        path = workdir / rest if beside else folder / name
        if wrong := _other(path, rest if beside else name, digest):
            return wrong
    return None


def _sealed(folder: pathlib.Path) -> dict[str, str] | None:
    """The digests of a folder by the names they are of; None where these cannot be read."""
    try:
        written = json.loads((folder / DIGESTS).read_text())
        return {str(name): str(digest) for name, digest in written.items()}
    except (OSError, ValueError, AttributeError, RecursionError):
        return None


def _other(path: pathlib.Path, called: str, digest: str) -> str | None:
    """Say how a file is not the one of a digest; None: it is."""
    try:
        if _digest(path) == digest:
            return None
        stands = reasons.of_file(path)
        return f"{called} that is {stands}" if stands else f"a damaged {called}"
    except OSError as error:
        return f"no readable {called} ({error.strerror})"


def _unreadable(folder: pathlib.Path, wanted: set[str], *, arrays: bool) -> str | None:
    """What cannot be read of a step without digests; `arrays`: read all of them."""
    for name in sorted(wanted):
        try:
            if name in _FACTS:
                if not isinstance(json.loads((folder / name / "metadata").read_text()), dict):
                    raise ValueError
            else:
                reader, place = ocp.StandardCheckpointHandler(), epath.Path(folder / name)
                tree = reader.metadata(place).tree
                if arrays:
                    like = jax.tree.map(lambda a: np.empty(a.shape, a.dtype), tree)
                    reader.restore(place, args=ocp.args.StandardRestore(like))
        # Damaged files have Orbax and its store raise nearly anything.
        except Exception:
            return f"an unreadable {name}"
    return None


def _misplaced(step: int, folder: pathlib.Path) -> str | None:
    """Where the folder's name, the step in it and the position of the data disagree."""
    for name, field in (("manifest", "step"), ("position", "batch")):
        try:
            facts = json.loads((folder / name / "metadata").read_text())
            number = facts.get(field, step)
        except (OSError, ValueError, AttributeError, RecursionError):
            continue  # said elsewhere, where it is wanted
        if number != step:
            return f"the {name} of step {str(number)[:40]}"
    return None


def strangers(workdir: pathlib.Path) -> list[str]:
    """Find folders that hold what a step holds and are not called by one: copies, renamed ones."""
    names = []
    for path in sorted((workdir / "checkpoints").iterdir()):
        # What a killed save leaves keeps Orbax's mark; it never was a step.
        if not path.is_dir() or _is_step(path.name) or _UNFINISHED in path.name:
            continue
        # Copied into a folder that was there, all steps lie one folder deeper.
        places = [path, *(p for p in path.iterdir() if p.is_dir() and _is_step(p.name))]
        held = {p.name for place in places for p in place.iterdir()}
        if not held.isdisjoint((*_OF_TRAINING, DIGESTS)):
            names.append(path.name)
    return names


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdigit() and name == str(int(name))


def seal(workdir: pathlib.Path, folder: pathlib.Path) -> None:
    """Write the digests of the step in `folder`, and of the text files of its workdir."""
    parts = [p for p in folder.iterdir() if p.is_dir()]
    sealed = {k: v for p in parts for k, v in _digests(folder, p).items()}
    beside = [name for name in BESIDE if (workdir / name).is_file()]
    sealed |= {f"{_BESIDE}/{name}": _digest(workdir / name) for name in beside}
    write_json(folder / DIGESTS, sealed)


def seal_files(folder: pathlib.Path, names: Iterable[str]) -> None:
    """Write the digests of these files of `folder`."""
    write_json(folder / DIGESTS, {name: _digest(folder / name) for name in names})


def changed_file(folder: pathlib.Path, names: Iterable[str]) -> str | None:
    """Say which of these files is not as `seal_files` saw it; None: all are, or it saw none."""
    if not (folder / DIGESTS).exists():
        return None
    written = _sealed(folder)
    if written is None:
        return f"a damaged {DIGESTS}"
    for name in names:
        there = (folder / name).exists()
        if name not in written and there:
            return f"no digest of {name}"
        if name in written and (wrong := _other(folder / name, name, written[name])):
            return wrong
    return None


def add_to_seal(folder: pathlib.Path, part: pathlib.Path) -> None:
    """Write the digests of one more part of a step that has its digests."""
    sealed = json.loads((folder / DIGESTS).read_text())
    write_json(folder / DIGESTS, sealed | _digests(folder, part))


def _digests(folder: pathlib.Path, part: pathlib.Path) -> dict[str, str]:
    """Digest of every file in a part of a step's `folder`, by its path from there."""
    files = sorted(p for p in part.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): _digest(p) for p in files}


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
