"""Checkpoints to give away: one safetensors file with its config, on disk or on a hub.

A folder of `export --layout=hub` holds

  model.safetensors       the averaged parameters, `host.encoder.layer_0.kernel`
  config.json             resolved config of the run
  manifest.json           what sampling needs beside them: classes, sizes, step
  tokenizer.json, captions.json   of hosts that read text; sources.npz, of edits
  digests.json            of all files above
  README.md               the model card

and is read wherever a workdir is; `hf://OWNER/NAME[@REVISION]` names such a folder on the hub. What
is fetched are these files and no others: nothing in them is run.
"""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from driftar_jax.storage import digests, paths, reasons
from driftar_jax.storage.jsons import read_json, write_json
from driftar_jax.storage.reasons import reason

WEIGHTS, MANIFEST, CARD = *paths.RELEASED, "README.md"
_SEALED = (WEIGHTS, MANIFEST, "config.json", *digests.BESIDE)
FILES = (*_SEALED, digests.DIGESTS, CARD)
FORMAT = 1
# What arrays may be stored as: another type is no export of ours, whatever its numbers.
_TYPES = ("F32", "BF16")
_LONGEST = 200  # letters of a value that a message repeats
_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def _wrong(field: str, value: str, allowed: str) -> ValueError:
    return ValueError(f"{field}: got {value[:_LONGEST]!r}, allowed {allowed}")


def local(workdir: str | os.PathLike) -> str:
    """Return the folder on this machine of a workdir; of an address on the hub, once it was
    fetched.

    `HF_HUB_OFFLINE` is honoured: then it has to be in the cache.

    Raises:
      ValueError: a bad address, no such repository or revision, no network, or the library
        huggingface_hub is missing; one line.
    """
    text = os.fspath(workdir)
    if not paths.is_hub(text):
        return paths.local("workdir", workdir)
    match = _NAME.fullmatch(text.removeprefix(paths.HUB))
    if not text.startswith(paths.HUB) or match is None:
        raise _wrong("workdir", text, f"{paths.HUB}OWNER/NAME or {paths.HUB}OWNER/NAME@REVISION")
    try:
        import huggingface_hub
    except ImportError:
        allowed = "an environment with huggingface_hub (pip install huggingface_hub)"
        raise _wrong("workdir", text, allowed) from None
    try:
        # A repository may hold anything else; no more than a release consists of is fetched.
        folder = huggingface_hub.snapshot_download(
            match["repo"], revision=match["revision"], allow_patterns=list(FILES)
        )
    except Exception as error:  # the library and its transport have dozens of their own
        why = reason(error)
        allowed = f"a repository that can be had ({type(error).__name__}: {why})"
        raise _wrong("workdir", text, allowed) from None
    for name in (WEIGHTS, MANIFEST, "config.json"):
        if not (pathlib.Path(folder) / name).is_file():
            raise _wrong("workdir", text, f"one that export --format=hub wrote (it has no {name})")
    return folder


class Released:
    """Read the checkpoint of such a folder, with what `Checkpoints` has for readers."""

    def __init__(self, folder: str | os.PathLike):
        """Nothing is read yet."""
        self._folder = pathlib.Path(folder)

    def latest_step(self) -> int | None:
        """Return the step it is of."""
        step = self._manifest().get("step")
        return step if type(step) is int and step >= 0 else None

    def restore(self, step: int, *, widen: bool = False, ema: Any = None) -> dict[str, Any]:
        """Read `manifest`, and `ema` where a tree of `ShapeDtypeStruct` with shardings is given.

        Arrays come as that tree says, whatever `widen`: the file may hold shorter numbers.

        Raises:
          ValueError: another step, or arrays that do not fit; one line.
        """
        manifest = self._manifest()
        if (form := manifest.get("format")) != FORMAT or type(form) is not int:
            raise _wrong("checkpoint format", str(form), str(FORMAT))
        if step != manifest.get("step"):
            raise _wrong(
                "step", str(step), f"{manifest.get('step')}, the only one of {self._folder}"
            )
        read = {"manifest": manifest}
        if ema is not None:
            read["ema"] = self._read(ema)
        return read

    def close(self) -> None:
        """Do nothing: nothing is open."""

    def _manifest(self) -> dict[str, Any]:
        return read_json("workdir", self._folder / MANIFEST, "the manifest that export wrote")

    def _read(self, wanted: Any) -> Any:
        path = self._folder / WEIGHTS
        leaves, tree = jax.tree_util.tree_flatten_with_path(wanted)
        names = [_name(keys) for keys, _ in leaves]
        try:
            from safetensors import safe_open

            with safe_open(path, framework="numpy") as file:
                # Of the header alone: what does not fit is refused before an array is read.
                held = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
                need = {n: tuple(leaf.shape) for n, (_, leaf) in zip(names, leaves, strict=True)}
                for name in sorted(held.keys() | need.keys()):
                    if held.get(name) != need.get(name):
                        there = f"{name} {held.get(name, 'missing')} in {path}"
                        allowed = f"{need.get(name, 'no such array')} as its config says"
                        raise _wrong("checkpoint", there, allowed)
                    if (kind := file.get_slice(name).get_dtype()) not in _TYPES:
                        allowed = " or ".join(_TYPES)
                        raise _wrong("checkpoint", f"{name} of {kind} in {path}", allowed)
                if wrong := digests.changed_file(self._folder, _SEALED):
                    allowed = f"the files that export wrote ({wrong})"
                    raise _wrong("checkpoint", str(self._folder), allowed)
                arrays = [
                    jax.device_put(file.get_tensor(name).astype(leaf.dtype), leaf.sharding)
                    for name, (_, leaf) in zip(names, leaves, strict=True)
                ]
        except ValueError:
            raise
        except Exception as error:  # the library raises bare exceptions of its own
            line = reasons.of_file(path) or reason(error)
            raise _wrong("checkpoint", str(path), f"the file that export wrote ({line})") from None
        return jax.tree_util.tree_unflatten(tree, arrays)


def write(
    folder: pathlib.Path,
    params: Any,
    manifest: Mapping[str, Any],
    step: int,
    config: Mapping,
) -> None:
    """Write such a folder, which exists and holds the texts of its host, but for its card.

    Args:
      folder: where to.
      params: tree of arrays.
      manifest: JSON-able facts stored beside them.
      step: they are of.
      config: of the run.
    """
    from safetensors.numpy import save_file

    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    # safetensors writes the bytes as they lie, whatever the strides say of them.
    arrays = {_name(keys): np.ascontiguousarray(leaf) for keys, leaf in leaves}
    save_file(arrays, folder / WEIGHTS, metadata={"format": "np"})
    write_json(folder / MANIFEST, {**manifest, "format": FORMAT, "step": step})
    write_json(folder / "config.json", dict(config))
    digests.seal_files(folder, [name for name in _SEALED if (folder / name).exists()])


def _name(keys) -> str:
    return ".".join(str(getattr(key, "key", key)) for key in keys)
