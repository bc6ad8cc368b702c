"""From an official file to a workdir and back, with a report of every name.

Everything is checked on shapes before an array is read, and written under a temporary name, so a
refused or interrupted conversion leaves nothing behind.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from driftar_jax import checkpoints
from driftar_jax import inception as network
from driftar_jax.conversion import drift_ar, inception, mar, pickles, rules, transdiff, vae
from driftar_jax.published import stored as published
from driftar_jax.vae import stored


@dataclasses.dataclass(frozen=True)
class Described:
    """What one checkpoint turns out to be.

    Attributes:
      title: for a reader.
      config: of the workdir.
      manifest: facts stored beside the arrays.
      abstract: parameter tree of `ShapeDtypeStruct`.
    """

    title: str
    config: dict
    manifest: dict
    abstract: dict


@dataclasses.dataclass(frozen=True)
class Family:
    """How one family of checkpoints is recognised.

    Attributes:
      rules: names and transforms.
      describe: official name -> shape, and the number of heads where it is given, to `Described`;
        ValueError where it is another family.
      abstract: config and manifest of a workdir, to its abstract parameter tree.
    """

    rules: Sequence[rules.Rule]
    describe: Callable[[Mapping[str, tuple[int, ...]], int | None], Described]
    abstract: Callable[[dict, dict], dict]


def _describe_mar(shapes: Mapping[str, tuple[int, ...]], num_heads: int | None) -> Described:
    fields = mar.sizes(shapes, num_heads)
    abstract = mar.abstract_params(*mar.modules(fields))
    return Described(mar.title(fields), mar.config_of(fields), mar.manifest_of(fields), abstract)


def _describe_transdiff(shapes: Mapping[str, tuple[int, ...]], num_heads: int | None) -> Described:
    fields = transdiff.sizes(shapes, num_heads)
    config, manifest = transdiff.config_of(fields), transdiff.manifest_of(fields)
    abstract = transdiff.abstract_params(*transdiff.modules(fields))
    return Described(transdiff.title(fields), config, manifest, abstract)


def _describe_drift_ar(shapes: Mapping[str, tuple[int, ...]], num_heads: int | None) -> Described:
    fields = drift_ar.sizes(shapes, num_heads)
    made = drift_ar.module(fields)
    return Described(
        drift_ar.title(fields),
        published.config_of(made, fields["phi"]),
        drift_ar.manifest_of(fields),
        published.abstract(made, fields["phi"]),
    )


def _describe_vae(shapes: Mapping[str, tuple[int, ...]], num_heads: int | None) -> Described:
    if num_heads is not None:
        raise ValueError(f"num_heads: got {num_heads}, allowed for family mar only")
    made = vae.module(shapes)
    config = stored.config_of(made)
    title = f"KL autoencoder, {made.latent_channels} channels at 1/{made.factor}"
    return Described(title, config, {"task": stored.TASK}, stored.abstract(made))


def _describe_inception(shapes: Mapping[str, tuple[int, ...]], num_heads: int | None) -> Described:
    if num_heads is not None:
        raise ValueError(f"num_heads: got {num_heads}, allowed for family mar only")
    made = inception.module(shapes)
    config = network.config_of(made)
    title = f"InceptionV3, {made.num_classes} classes"
    return Described(title, config, {"task": network.TASK}, network.abstract(made))


FAMILIES = {
    "mar": Family(
        mar.RULES,
        _describe_mar,
        lambda config, manifest: mar.abstract_params(*mar.modules(mar.fields_of(config, manifest))),
    ),
    "transdiff": Family(
        transdiff.RULES,
        _describe_transdiff,
        lambda config, manifest: transdiff.abstract_params(
            *transdiff.modules(transdiff.fields_of(config, manifest))
        ),
    ),
    "drift_ar": Family(
        drift_ar.RULES,
        _describe_drift_ar,
        lambda config, manifest: published.abstract(published.module(config), config["phi"]),
    ),
    "vae-kl16": Family(
        vae.RULES, _describe_vae, lambda config, manifest: stored.abstract(stored.module(config))
    ),
    "inception": Family(
        inception.RULES,
        _describe_inception,
        lambda config, manifest: network.abstract(network.module_of(config)),
    ),
}

# Which tree of a workdir holds which copy of the weights.
COPIES = {"model_ema": "ema", "model": "params"}


def forward(
    family: str,
    source: str,
    out: str,
    weights: str,
    num_heads: int | None = None,
    tell: Callable[[str], None] = print,
) -> rules.Report:
    """Official file to a workdir that `sample` and `train` can read.

    Args:
      family: a key of `FAMILIES`.
      source: `.pth`, `.pt`, `.ckpt` or `.safetensors`.
      out: new or empty folder.
      weights: copy of the weights in a file that holds several.
      num_heads: attention heads, for sizes that were not released.
      tell: takes the lines of the report.

    Returns:
      The complete report; `out` holds it as `report.json`.

    Raises:
      ValueError: `out` is taken, the file is refused, or names do not fit; nothing is written.
      OSError: the folder cannot be written.
    """
    chosen = _family(family)
    target = pathlib.Path(out).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"out: got {out!r}, allowed a new or empty folder")
    state = pickles.read_state_dict(source, weights)
    found = pickles.shapes(state)
    described = chosen.describe(found, num_heads)
    wanted = rules.shapes_of(described.abstract)
    report = rules.plan(found, chosen.rules, wanted)
    for line in report.problems():
        tell(line)
    report.check()
    tell(f"{source}: {described.title}, {_count(wanted)} parameters in {len(found)} arrays")
    _check_room(target, 4 * _count(wanted))
    ours = rules.to_ours(state, report, wanted)
    del state  # with it goes the mapped file
    for name, path, transform in report.mapped:
        tell(f"{name} {list(found[name])} -> {path} {list(wanted[path])} ({transform.name})")
    for name in report.dropped:
        tell(f"{name} {list(found[name])}: not needed")
    for name in report.not_finite:
        tell(f"warning: {name} holds NaN or infinity")
    facts = {
        "family": family,
        "source": pathlib.Path(source).name,
        "weights": weights,
        "described": described.title,
        "parameters": _count(wanted),
        "mapped": [[name, path, transform.name] for name, path, transform in report.mapped],
        "unused": report.unused,
        "missing": report.missing,
        "wrong_shape": report.wrong_shape,
        "not_finite": report.not_finite,
        "dropped": report.dropped,
    }
    _write_workdir(target, described, rules.unflatten(_placed(ours)), facts)
    tell(f"{out}: written, {len(report.mapped)} of {len(found)} names used, none missing")
    return report


def back(
    family: str, source: str, out: str, weights: str, tell: Callable[[str], None] = print
) -> rules.Report:
    """A workdir to one safetensors file under official names; the inverse of `forward`.

    Args:
      family: a key of `FAMILIES`.
      source: workdir of a host with its own head, or of an autoencoder.
      out: new `.safetensors` file.
      weights: `model_ema` for the averaged parameters, `model` for the last.
      tell: takes the lines of the report.

    Raises:
      ValueError: `out` is taken or of another kind, or the workdir is not of this family.
      OSError: the file cannot be written.
    """
    chosen = _family(family)
    target = pathlib.Path(out)
    if target.suffix != ".safetensors" or target.exists():
        raise ValueError(f"out: got {out!r}, allowed a new file that ends in .safetensors")
    if weights not in COPIES:
        raise ValueError(f"weights: got {weights!r}, allowed {' | '.join(COPIES)}")
    config = checkpoints.read_config(source)
    opened = checkpoints.Checkpoints(source, create=False)
    step = opened.latest_step()
    if step is None:
        raise ValueError(f"source: got {source!r}, allowed a workdir with a finished checkpoint")
    manifest = opened.restore(step)["manifest"]
    abstract = chosen.abstract(config, manifest)
    params = opened.restore(step, **{COPIES[weights]: _here(abstract)})[COPIES[weights]]
    opened.close()
    official, report = rules.to_official(rules.flatten(params), chosen.rules)
    report.check()
    _write_safetensors(target, official)
    for name, path, transform in report.mapped:
        tell(f"{path} -> {name} {list(official[name].shape)} ({transform.name})")
    tell(f"{out}: written, {len(official)} arrays of step {step}")
    return report


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
    free = shutil.disk_usage(there).free
    if free < needed:
        room = f"{free / 2**20:.0f} MiB free on the disk of {target}"
        raise ValueError(f"out: got {room}, allowed at least {needed / 2**20:.0f} MiB")


def _placed(arrays: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """The arrays in JAX's hands, each taken out of `arrays`, so that no second copy of all stands.

    A background save copies NumPy arrays first, but not arrays that JAX already owns.
    """
    cpu = jax.devices("cpu")[0]
    return {path: jax.device_put(arrays.pop(path), cpu) for path in list(arrays)}


def _temporary(target: pathlib.Path) -> pathlib.Path:
    return target.with_name(f".{target.name}.tmp{os.getpid()}")


def _write_workdir(target: pathlib.Path, described: Described, params: dict, facts: dict) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _temporary(target)
    try:
        written = checkpoints.Checkpoints(unfinished)
        try:
            written.save(0, manifest=described.manifest, ema=params)
            written.wait()
        except ValueError as error:  # what Orbax makes of a full disk
            reason = str(error).strip().splitlines()[0].rsplit(": ", 1)[-1]
            raise OSError(
                f"out: got {str(target)!r}, allowed a disk with room ({reason})"
            ) from error
        finally:
            # Its threads go on after a failure, and would write into what is being removed.
            with contextlib.suppress(ValueError, OSError):
                written.close()
        checkpoints.write_json(unfinished / "report.json", facts)
        checkpoints.write_json(unfinished / "config.json", described.config)
        os.replace(unfinished, target)
    finally:
        _remove(unfinished)


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
