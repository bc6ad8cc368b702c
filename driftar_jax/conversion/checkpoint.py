"""From an official file to a workdir and back, with a report of every name.

Everything is checked on shapes before an array is read, and written under a temporary name, so a
refused or interrupted conversion leaves nothing behind.
"""

import contextlib
import math
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from driftar_jax.config import lasting
from driftar_jax.conversion import formats, rules, shards, state_dicts
from driftar_jax.conversion.families import FAMILIES, Described, Family
from driftar_jax.storage import checkpoints, jsons, paths

# Which tree of a workdir holds which copy of the weights.
COPIES = {"model_ema": "ema", "model": "params"}


def forward(
    family: str,
    source: str,
    out: str,
    weights: str | None = None,
    num_heads: int | None = None,
    tell: Callable[[str], None] = print,
) -> rules.Report:
    """Convert an official file to a workdir that `sample` and `train` can read.

    Args:
      family: a key of `FAMILIES`.
      source: `.pth`, `.pt`, `.ckpt`, `.safetensors`, or a folder of safetensors shards.
      out: new or empty folder.
      weights: copy of the weights in a file that holds several; None for the averaged one where
        its family has one, or for the only one that the file holds.
      num_heads: attention heads, for sizes that were not released.
      tell: takes the lines of the report.

    Returns:
      The complete report; `out` holds it as `report.json`.

    Raises:
      ValueError: `out` is taken, the file is refused, or names do not fit; nothing is written.
      OSError: the folder cannot be written.
    """
    chosen = _family(family)
    target = pathlib.Path(paths.local("out", out)).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"out: got {out!r}, allowed a new or empty folder")
    place = pathlib.Path(paths.local("source", source))
    if place.is_dir():
        arrays, home, copy = dict(shards.Shards(place)), place, ""
    else:
        read, home = state_dicts.read_state_dict(place, weights, chosen.averaged), place.parent
        arrays, copy = read.arrays, read.weights
        del read
    if copy and weights is None and copy != chosen.averaged:
        tell(f"weights: {chosen.averaged} is not in the file, its only copy {copy} is used")
    names, prefix = rules.unwrap(arrays, chosen.rules)
    if prefix:
        tell(f"prefix: {prefix} of a trainer is taken off the names")
    state = {names[name]: array for name, array in arrays.items()}
    # Names first: a file of another family is refused by what it is, not by its missing arrays.
    del arrays
    formats.check_names(source, state)
    rules.check_known(state, chosen.rules)
    official = state_dicts.shapes(state)
    beside = (shards.read_json(home / "config.json"),) if chosen.beside else ()
    described = chosen.describe(official, num_heads, *beside)
    wanted = rules.shapes_of(described.abstract)
    report = rules.plan(official, chosen.rules, wanted)
    for line in report.problems():
        tell(line)
    report.check()
    if coarse := _check_kinds(state, report):
        tell(f"warning: {coarse[0]} and {len(coarse) - 1} other arrays are float8, as coarse here")
    for name in chosen.copied:
        if (meaning := formats.of_file(home / name, text=True)) is not None:
            raise ValueError(
                f"source: got {str(home / name)!r}, allowed the model's own ({meaning})"
            )
    tell(f"{source}: {described.title}, {_count(wanted)} parameters in {len(official)} arrays")
    _check_constants(chosen.constants(described.config), state, report.dropped)
    # Known from shapes alone, and better known now than after an hour of writing.
    _check_room(target, _bytes(state, report, chosen.dtype, wanted))
    for name, path, transform in report.mapped:
        tell(f"{name} {list(official[name])} -> {path} {list(wanted[path])} ({transform.name})")
    for name in report.dropped:
        tell(f"{name} {list(official[name])}: not needed")
    # One tree, or one for each layer where the whole would not fit into memory.
    abstract = described.abstract
    parts = chosen.trees(abstract) if chosen.trees else {"ema": abstract}
    converted = _converted(state, report, parts, chosen.dtype)
    del state  # with its last array goes the mapped file
    facts = lambda: {  # noqa: E731
        "family": family,
        "source": pathlib.Path(source).name,
        "weights": copy or weights,
        "prefix": prefix,
        "described": described.title,
        "parameters": _count(wanted),
        "mapped": [[name, path, transform.name] for name, path, transform in report.mapped],
        "unused": report.unused,
        "missing": report.missing,
        "wrong_shape": report.wrong_shape,
        "not_finite": report.not_finite,
        "dropped": report.dropped,
    }
    copied = [home / name for name in chosen.copied if (home / name).exists()]
    _write_workdir(target, described, converted, facts, copied)
    for name in report.not_finite:
        tell(f"warning: {name} holds NaN or infinity")
    for name in chosen.copied:
        if not (home / name).exists():
            tell(f"warning: no {name} beside the arrays; put it into {out} before sampling")
    tell(f"{out}: written, {len(report.mapped)} of {len(official)} names used, none missing")
    return report


def back(
    family: str, source: str, out: str, weights: str, tell: Callable[[str], None] = print
) -> rules.Report:
    """Write a workdir as safetensors under official names; the inverse of `forward`.

    Args:
      family: a key of `FAMILIES`.
      source: workdir of a host with its own head, or of an autoencoder.
      out: new `.safetensors` file; a new folder for families that come in shards.
      weights: `model_ema` for the averaged parameters, `model` for the last.
      tell: takes the lines of the report.

    Raises:
      ValueError: `out` is taken or of another kind, or the workdir is not of this family.
      OSError: the file cannot be written.
    """
    chosen = _family(family)
    target = pathlib.Path(paths.local("out", out)).absolute()
    kind = "a new folder" if chosen.trees else "a new file that ends in .safetensors"
    if target.exists() or (target.suffix == ".safetensors") == bool(chosen.trees):
        raise ValueError(f"out: got {out!r}, allowed {kind}")
    if weights not in COPIES:
        raise ValueError(f"weights: got {weights!r}, allowed {' | '.join(COPIES)}")
    config = checkpoints.read_config(source)
    opened = checkpoints.Checkpoints(source, create=False)
    step = opened.latest_step()
    if step is None:
        raise ValueError(f"source: got {source!r}, allowed a workdir with a finished checkpoint")
    manifest = opened.restore(step)["manifest"]
    abstract = chosen.abstract(config, manifest)
    if chosen.trees:
        return _back_in_shards(chosen, opened, step, config, target, tell)
    params = opened.restore(step, **{COPIES[weights]: _here(abstract)})[COPIES[weights]]
    opened.close()
    official, report = rules.to_official(rules.flatten(params), chosen.rules)
    report.check()
    _write_safetensors(target, official)
    for name, path, transform in report.mapped:
        tell(f"{path} -> {name} {list(official[name].shape)} ({transform.name})")
    tell(f"{out}: written, {len(official)} arrays of step {step}")
    return report


def _back_in_shards(
    chosen: Family,
    opened: checkpoints.Checkpoints,
    step: int,
    config: dict,
    target: pathlib.Path,
    tell: Callable[[str], None],
) -> rules.Report:
    """`back` with a shard per part, one in memory at a time, and the index and config beside."""
    manifest = opened.restore(step)["manifest"]
    parts = chosen.trees(chosen.abstract(config, manifest))
    whole, names, size = rules.Report(), {}, 0
    unfinished = _temporary(target)
    unfinished.mkdir(parents=True)
    try:
        shown = tqdm(parts.items(), unit="shard", disable=None, leave=False)
        for number, (part, wanted) in enumerate(shown, 1):
            kept = jax.tree.map(_typed, wanted, opened.stored(step, part))
            params = opened.restore(step, **{part: _here(kept)})[part]
            official, report = rules.to_official(rules.flatten(params), chosen.rules)
            report.check()
            # Tables that follow from the sizes are stored nowhere; the official program wants them.
            if number == 1:
                official |= chosen.constants(config)
            file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
            _write_safetensors(unfinished / file, official)
            names |= dict.fromkeys(official, file)
            size += sum(array.nbytes for array in official.values())
            whole.mapped += report.mapped
            for name, path, transform in report.mapped:
                tell(f"{path} -> {name} {list(official[name].shape)} ({transform.name})")
        index = {"metadata": {"total_size": size}, "weight_map": names}
        jsons.write_json(unfinished / "model.safetensors.index.json", index)
        jsons.write_json(unfinished / "config.json", manifest["official"])
        os.replace(unfinished, target)
    finally:
        opened.close()
        _remove(unfinished)
    tell(f"{target}: written, {len(names)} arrays of step {step} in {len(parts)} shards")
    return whole


def _typed(wanted: jax.ShapeDtypeStruct, stored: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(wanted.shape, stored.dtype)


def _family(name: str) -> Family:
    if name not in FAMILIES:
        raise ValueError(f"family: got {name!r}, allowed {' | '.join(FAMILIES)}")
    return FAMILIES[name]


def _count(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _here(abstract: Any) -> Any:
    """The tree placed on this process's first device."""
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return checkpoints.abstract_like(abstract, jax.tree.map(lambda _: place, abstract))


def _check_room(target: pathlib.Path, needed: int) -> None:
    """Refuse a disk that is too full, before anything is read; the write may still fail."""
    there = next(folder for folder in target.parents if folder.exists())
    # Of the nearest folder that exists: the target's own does not, as a rule.
    free = shutil.disk_usage(there).free
    if free < needed:
        room = f"{free / 2**20:.0f} MiB free on the disk of {target}"
        raise ValueError(f"out: got {room}, allowed at least {needed / 2**20:.0f} MiB")


def _bytes(state, report: rules.Report, dtype, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes that the arrays will take in the workdir."""
    if dtype is not None:
        return np.dtype(dtype).itemsize * _count(shapes)
    sizes = {path: np.dtype(state[name].dtype).itemsize for name, path, _ in report.mapped}
    return sum(sizes[path] * math.prod(shape) for path, shape in shapes.items())


def _check_kinds(state, report: rules.Report) -> list[str]:
    """Refuse numbers that stand for others, whole ones of a coarser file; names of float8."""
    for name, _, _ in report.mapped:
        dtype = np.dtype(state[name].dtype)
        if dtype.kind in "iub":
            allowed = "floating numbers (a file made coarse, or of another program)"
            raise ValueError(f"{name}: got numbers of type {dtype}, allowed {allowed}")
    return [n for n, _, _ in report.mapped if np.dtype(state[n].dtype).name.startswith("float8")]


def _check_constants(constants: Mapping[str, np.ndarray], state, dropped: Sequence[str]) -> None:
    """Refuse a file whose arrays are not what follows from the sizes."""
    for name in dropped:
        if name not in constants:
            continue
        got, want = np.asarray(state[name]), constants[name]
        # A table kept in half precision is right to two digits or three.
        rounding = 1e-6 if got.dtype == np.float32 else 1e-2
        same = got.shape == want.shape
        if not same or not np.allclose(got.astype(np.float32), want, rtol=0, atol=rounding):
            raise ValueError(f"{name}: got other numbers, allowed those that follow from the sizes")


def _converted(state, report: rules.Report, parts: Mapping[str, dict], dtype):
    """Name and arrays of each part, converted when it is asked for."""
    last = list(parts)[-1]
    with tqdm(total=len(report.mapped), unit="array", disable=None, leave=False) as bar:
        for part, tree in parts.items():
            shapes = rules.shapes_of(tree)
            # Part by part: of a model larger than memory only one part is ever held.
            own = rules.Report(mapped=[mapped for mapped in report.mapped if mapped[1] in shapes])
            ours = rules.to_ours(state, own, shapes, dtype, bar.update)
            report.not_finite += own.not_finite
            if part == last:
                del state
            yield part, rules.unflatten(_placed(ours))


def _placed(arrays: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """The arrays in JAX's hands, each taken out of `arrays`, so that no second copy of all stands.

    A background save copies NumPy arrays first, but not arrays that JAX already owns.
    """
    cpu = jax.devices("cpu")[0]
    # Waited for: a copy that is still to be made keeps its source.
    place = lambda array: jax.device_put(array, cpu).block_until_ready()  # noqa: E731
    return {path: place(arrays.pop(path)) for path in list(arrays)}


def _temporary(target: pathlib.Path) -> pathlib.Path:
    return target.with_name(f".{target.name}.tmp{os.getpid()}")


def _write_workdir(
    target: pathlib.Path,
    described: Described,
    parts: Iterable[tuple[str, dict]],
    facts: Callable[[], dict],
    copied: Sequence[pathlib.Path],
) -> None:
    """Write parts as they come, the first with the manifest; `facts` is asked for at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _temporary(target)
    try:
        written = checkpoints.Checkpoints(unfinished, in_flight=_in_flight(described.abstract))
        for file in copied:  # before the arrays, whose digests hold theirs
            shutil.copyfile(file, unfinished / file.name)
        try:
            for number, (name, tree) in enumerate(parts):
                if number == 0:
                    kept = lasting(described.config)
                    written.save(0, manifest=described.manifest, config=kept, **{name: tree})
                    written.wait()
                else:
                    written.add(0, name, tree)
                del tree  # before the next is read
        except (checkpoints.SaveFailed, ValueError) as error:  # what a full disk becomes
            reason = str(error).strip().splitlines()[0].rsplit(": ", 1)[-1]
            raise OSError(
                f"out: got {str(target)!r}, allowed a disk with room ({reason})"
            ) from error
        finally:
            # Its threads go on after a failure, and would write into what is being removed.
            with contextlib.suppress(checkpoints.SaveFailed, ValueError, OSError):
                written.close()
        jsons.write_json(unfinished / "report.json", facts())
        jsons.write_json(unfinished / "config.json", described.config)
        os.replace(unfinished, target)
    finally:
        _remove(unfinished)


def _in_flight(abstract: dict) -> int:
    """Bytes on their way to the disk at once: a few arrays, whatever the size of the whole."""
    largest = max(4 * math.prod(shape) for shape in rules.shapes_of(abstract).values())
    return 2 * largest + 2**26


def _remove(folder: pathlib.Path, seconds: float = 5.0) -> None:
    """Remove a folder that a failing save's threads may still write into."""
    end = time.monotonic() + seconds
    while folder.exists() and time.monotonic() < end:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)


def _write_safetensors(target: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _temporary(target)
    try:
        save_file({n: np.ascontiguousarray(a) for n, a in arrays.items()}, unfinished)
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)
