"""Copy what sampling needs of a run, the averaged parameters, into a small folder of its own.

python -m driftar_jax.export --workdir=runs/drift_fashion28 --out=models/mar_fashion28
python -m driftar_jax.export --workdir=runs/drift_fashion28 --out=to_upload --format=hub
python -m driftar_jax.export --workdir=runs/adapted --apart --format=hub --out=adapter
python -m driftar_jax.export --workdir=adapter --host=models/mar_fashion28 --out=merged
"""

import os
import pathlib
import re
import shutil

import jax
from absl import flags

from driftar_jax.cli import program as cli
from driftar_jax.config import CONVERTED, lasting, wrong
from driftar_jax.data import LATENTS, latents
from driftar_jax.layers import low_rank
from driftar_jax.sampling import load
from driftar_jax.storage import cards, checkpoints, digests, hub, jsons
from driftar_jax.storage.jsons import read_json
from driftar_jax.storage.pages import write_page
from driftar_jax.storage.reasons import reason
from driftar_jax.training import journal
from driftar_jax.vae import stored

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder written by train.")
_OUT = flags.DEFINE_string("out", None, "New workdir that sample, evaluate and init_from read.")
_DTYPE = flags.DEFINE_enum(
    "dtype", "bfloat16", ["bfloat16", "float32"], "Of the stored arrays; they are read as float32."
)
_FORMAT = flags.DEFINE_enum(
    "format",
    "workdir",
    ["workdir", "hub"],
    "workdir: a checkpoint of one step; hub: model.safetensors and config.json; both a model card.",
)
_REPORT = flags.DEFINE_string(
    "report", None, "report.json of evaluate, whose figures the model card shall hold."
)
_APART = flags.DEFINE_bool(
    "apart", False, "Of a run with adapters: all but its host, which it needs again (--host)."
)
_HOST = flags.DEFINE_string(
    "host", None, "Of an export that is apart: workdir of its host; both are merged."
)
flags.mark_flags_as_required(["workdir", "out"])


def main(_) -> None:
    """Write the export under a temporary name, then rename it: `--out` is whole or absent."""
    with cli.user_errors():
        target = pathlib.Path(_OUT.value).absolute()
        source = pathlib.Path(hub.local(_WORKDIR.value))
        if target.exists():
            raise wrong("out", _OUT.value, "a new folder")
        config = checkpoints.read_config(source)
        if _FORMAT.value == "hub" and config["task"] == CONVERTED:
            raise wrong("format", "hub", "workdir (convert --back writes the official files)")
        report = None if _REPORT.value is None else _report(_REPORT.value)
        rank = config.get("adapter", {}).get("rank", 0)
        if _APART.value and not rank:
            raise wrong("apart", True, "false for a run without adapters (adapter.rank)")
        if _APART.value and _FORMAT.value != "hub":
            raise wrong("format", _FORMAT.value, "hub with --apart")
        whole = {"host": _HOST.value, "merged": not _APART.value}
        params, manifest, step = load.read_weights(source, **whole)
    if _APART.value:
        # By these the right host is told from another when both are put together again.
        manifest[load.APART] = load.projections(params.pop(low_rank.OF))
    if config["task"] in ("autoencoder", stored.TASK):
        # Rounded arrays have another one, and sets of latents name that of the run.
        manifest.setdefault(stored.FINGERPRINT, stored.fingerprint(params))
    if pictures := _encoded(config.get("data", {}).get("name", "")):
        manifest["pictures"] = pictures
    params = jax.tree.map(lambda a: a.astype(_DTYPE.value), params)
    manifest.pop("format")
    begun = pathlib.PurePath(config.get("init_from") or "").name
    config, manifest = _without_paths(config, manifest)
    if rank and not _APART.value:  # it is in the host now
        config["adapter"]["rank"] = 0
    # Under another name until it is whole: whatever bears the right one is a finished export.
    unfinished = target.with_name(f".{target.name}.tmp{os.getpid()}")
    try:
        unfinished.mkdir(parents=True)
        # Before the arrays, whose digests hold those of the text files.
        for name in digests.BESIDE:
            if (source / name).exists():
                shutil.copyfile(source / name, unfinished / name)
        number = sum(leaf.size for leaf in jax.tree.leaves(params))
        of_hub = _FORMAT.value == "hub"
        held_out = source / "held_out.jsonl"
        records = journal.read_metrics(held_out) if held_out.exists() else []
        more = dict(begun=begun, held_out=records[-1] if records else None)
        more |= dict(seconds=_seconds(source), report=report, hub=of_hub)
        with cli.user_errors():
            text = _card((target.name, config, manifest, step, number), more)
        write_page(unfinished / hub.CARD, text)
        if of_hub:
            hub.write(unfinished, params, manifest, step, config)
        else:
            jsons.write_json(unfinished / "config.json", config)
            written = checkpoints.Checkpoints(unfinished)
            first, *layers = load.stored_trees(source, params).items()
            written.save(step, manifest=manifest, config=lasting(config), **dict([first]))
            written.wait()
            for name, tree in layers:
                written.add(step, name, tree)
            written.close()
            written.forget_place(step)
        os.replace(unfinished, target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    size = sum(f.stat().st_size for f in target.rglob("*") if f.is_file())
    print(f"{target}: step {step}, {size / 1e6:.1f} MB")


def _report(path: str) -> dict:
    """Return a `report.json`; ValueError where it is none."""
    report = read_json("report", pathlib.Path(path), "the report.json of evaluate")
    if not isinstance(report, dict) or not isinstance(report.get("rows"), list):
        raise wrong("report", path, "the report.json of evaluate")
    return report


def _card(facts: tuple, more: dict) -> str:
    """The model card; ValueError where the report's figures are none."""
    try:
        return cards.card(*facts, **more)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        if _REPORT.value is None:
            raise
        why = f"{type(error).__name__}: {reason(error)}"
        raise wrong("report", _REPORT.value, f"the report.json of evaluate ({why})") from error


def _encoded(name: str) -> str | None:
    """Return the set that a set of latents was encoded from; None where it cannot be said."""
    folder = pathlib.Path(name.removeprefix(LATENTS))
    if not name.startswith(LATENTS) or not (folder / latents.FACTS).is_file():
        return None
    source = latents.read_facts(folder).get("source")
    # The fingerprints of its splits: the name comes first.
    return re.split(r"[/|]", source[0])[0] if source else None


def _seconds(workdir: pathlib.Path) -> float | None:
    """Return what a run took, of all its starts; None where it kept no time."""
    path = workdir / "goodput.jsonl"
    records = journal.read_metrics(path) if path.exists() else []
    # A start writes its time again and again: the last of its records counts.
    ends = {record.get("start"): record.get("wall", 0.0) for record in records}
    return sum(ends.values()) if ends else None


def _without_paths(config: dict, manifest: dict) -> tuple[dict, dict]:
    """Config and manifest without absolute paths: of such folders the last name alone stays."""
    # Folders of this machine would name nothing on another, and tell of what lies here.
    if "init_from" in config:
        config["init_from"] = ""
    for section in ("drift", "autoencoder"):
        if "features_from" in config.get(section, {}):
            config[section]["features_from"] = ""
    if "data_dir" in config.get("data", {}):
        config["data"]["data_dir"] = ""
    kind, colon, path = config.get("data", {}).get("name", "").partition(":")
    if colon and os.path.isabs(path):
        config["data"]["name"] = f"{kind}:{pathlib.PurePath(path).name}"
    if os.path.isabs(manifest.get("vae") or ""):
        manifest = manifest | {"vae": pathlib.PurePath(manifest["vae"]).name}
    return config, manifest


if __name__ == "__main__":
    cli.run(main)
