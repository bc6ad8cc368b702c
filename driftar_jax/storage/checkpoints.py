"""Checkpoints on disk: Orbax arrays, a JSON manifest, and a workdir that belongs to one config.

Layout of a workdir:

  config.json             resolved config of the run
  tokenizer.json, captions.json   of hosts that read text; sources.npz, of edits
  checkpoints/STEP/params, ema, train, manifest, position, digests.json
  damaged/STEP            what `set_aside` moved away
  run.lock                of the process that writes (`locks.py`)

`ema` is what sampling reads; a converted checkpoint holds `ema` and `manifest` alone. The digests
are of every file in those folders, and of the text files of the workdir (`digests.py`). A step also
knows its own number, and the fields of the config that must not change.
"""

import contextlib
import difflib
import json
import os
import pathlib
import re

import jax
import orbax.checkpoint as ocp
from etils import epath

from driftar_jax.storage import digests, paths

FORMAT = 1


class SaveFailed(RuntimeError):
    """A checkpoint could not be written; those before it are whole."""


class Checkpoints:
    """Numbered checkpoints of one workdir: async, atomic, the last `keep` kept.

    With several processes all must make the same calls; the first alone writes and checks digests.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        keep: int = 2,
        create: bool = True,
        in_flight: int | None = None,
    ):
        """Open a workdir.

        Args:
          workdir: the folder that holds, or will hold, `checkpoints/`.
          keep: newest checkpoints that stay.
          create: whether to make the folder.
          in_flight: bytes that may be on their way to the disk at once, more than those of any
            array; None sets no limit: a save then takes as much again as its arrays.

        Raises:
          ValueError: there is no such folder, and `create` is False.
        """
        # Orbax takes relative paths and says so only when the save has failed.
        self.workdir = pathlib.Path(paths.local("workdir", workdir)).absolute()
        self._saving: int | None = None
        self._closed = False
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=True,
            create=False,
            # Called when all is written, before the step gets its final name.
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        folder = self.workdir / "checkpoints"
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        elif not folder.is_dir():
            raise ValueError(
                f"workdir: got {str(workdir)!r}, allowed a folder with checkpoints/ in it"
            )
        handlers = None if in_flight is None else _limited(in_flight)
        self._manager = ocp.CheckpointManager(folder, options=options, handler_registry=handlers)

    def latest_step(self) -> int | None:
        """Return the newest complete step on disk, or None."""
        return self._manager.latest_step()

    def newest_whole(self) -> tuple[int | None, dict[int, str]]:
        """Find the newest step without damage, or None, and what is wrong with those after it."""
        bad = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            if (wrong := self.damage(step)) is None:
                return step, bad
            bad[step] = wrong
        return None, bad

    def damage(self, step: int, names: tuple[str, ...] | None = None) -> str | None:
        """See `digests.damage`."""
        return digests.damage(self.workdir, step, names)

    def set_aside(self, step: int) -> pathlib.Path:
        """Move a step to `damaged/`, so that it is neither read nor lost; its new place."""
        place = self.workdir / "damaged" / str(step)
        number = 1
        while place.exists():
            place = place.with_name(f"{step}.{number}")
            number += 1
        place.parent.mkdir(exist_ok=True)
        os.replace(self._step_folder(step), place)
        self._manager.reload()
        return place

    def strangers(self) -> list[str]:
        """See `digests.strangers`."""
        return digests.strangers(self.workdir)

    def reload(self) -> None:
        """Look at the disk again."""
        self._manager.reload()

    def _step_folder(self, step: int) -> pathlib.Path:
        return digests.step_folder(self.workdir, step)

    def _seal(self) -> None:
        """Write the digests of the step that is about to be complete."""
        if jax.process_index():
            return
        # Sealed while the step still has its temporary name: a step is never visible without its
        # digests.
        for folder in (self.workdir / "checkpoints").glob(f"{self._saving}.*tmp*"):
            digests.seal(self.workdir, folder)

    def forget_place(self, step: int) -> None:
        """Take this machine's folders out of a finished step: Orbax writes them into its marks."""
        folder = self._step_folder(step)
        for mark in folder.rglob("commit_success.txt"):
            mark.write_text("Checkpoint commit was successful\n")
        digests.seal(self.workdir, folder)

    def save(
        self,
        step: int,
        *,
        manifest: dict,
        position: dict | None = None,
        config: dict | None = None,
        **trees,
    ) -> None:
        """Write `trees` (params, ema, train) in the background.

        Args:
          step: above all that are there.
          manifest, position: facts, JSON-able.
          config: `config.json` as far as it must not change; None: nothing is compared.
          **trees: arrays.

        Raises:
          SaveFailed: the save before this one failed, or there is a step that is not below.
        """
        # One save in flight at a time: `_seal` must know which step it seals, and a second save
        # would need a second copy of the arrays.
        self.wait()
        self._saving = step
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        facts = {"format": FORMAT, "step": step, **manifest}
        if config is not None:
            # Kept in the step as well: `config.json` may be edited, and the arrays would mean
            # something else.
            facts["config"] = config
        items["manifest"] = ocp.args.JsonSave(facts)
        if position is not None:
            items["position"] = ocp.args.JsonSave(position)
        try:
            written = self._manager.save(step, args=ocp.args.Composite(**items))
        except Exception as error:
            raise self._failed(error) from error
        if not written:
            raise SaveFailed(
                f"checkpoint: got step {step} beside step {self.latest_step()} of {self.workdir}, "
                "allowed steps above those that are there; nothing was written"
            )

    def add(self, step: int, name: str, tree) -> None:
        """Write one more tree into a finished step and wait for it.

        What is too large to stand in memory as one tree is saved in several, one after another.

        Raises:
          SaveFailed: it could not be written.
        """
        try:
            with ocp.StandardCheckpointer() as writer:
                writer.save(epath.Path(self._tree(step, name)), tree)
            if not jax.process_index():
                digests.add_to_seal(self._step_folder(step), self._tree(step, name))
        except Exception as error:
            raise self._failed(error) from error

    def stored(self, step: int, name: str):
        """Return `ShapeDtypeStruct` of every array of a tree, as it lies on the disk.

        Raises:
          ValueError: the step has no such tree.
        """
        folder = self._tree(step, name)
        if not folder.is_dir():
            raise ValueError(f"checkpoint: got step {step} without {name}, allowed a whole one")
        metadata = ocp.StandardCheckpointHandler().metadata(epath.Path(folder)).tree
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), metadata)

    def restore(self, step: int, *, widen: bool = False, **abstract) -> dict:
        """Read trees by name; each value is a tree of `ShapeDtypeStruct` with shardings.

        Args:
          step: to read.
          widen: whether bfloat16 arrays become float32 where they are asked for, of a step that
            `export` wrote; every other change of a type is refused.
          **abstract: what is read.

        Returns:
          The trees, and `manifest` and `position` as dictionaries where they exist.

        Raises:
          ValueError: a name, shape, type or format does not fit, a file is damaged, or
            `config.json` is not the one of the step; one line.
        """
        # Damage first: Orbax reads flipped bits without a word.
        self._check_whole(step, (*abstract, "manifest", "position"))
        widen = widen and not self._tree(step, "params").exists()
        for name, tree in abstract.items():
            self._check_fits(step, name, tree, widen)
        items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        items["manifest"] = ocp.args.JsonRestore()
        if self._tree(step, "position").exists():
            items["position"] = ocp.args.JsonRestore()
        try:
            read = dict(self._manager.restore(step, args=ocp.args.Composite(**items)))
        except Exception as error:  # damaged files have the store raise nearly anything
            first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise ValueError(
                f"checkpoint: got step {step} of {self.workdir}, "
                f"allowed one that fits this config ({first})"
            ) from error
        for name in ("manifest", "position"):
            if not isinstance(read.get(name, {}), dict):
                kind = type(read[name]).__name__
                raise ValueError(
                    f"checkpoint: got step {step} of {self.workdir} with a {name} of type {kind}, "
                    "allowed one written by train or convert"
                )
        if read["manifest"].get("format") != FORMAT:
            raise ValueError(
                f"checkpoint format: got {read['manifest'].get('format')}, allowed {FORMAT}"
            )
        read["manifest"].pop("step", None)
        self._check_config(step, read["manifest"].pop("config", None))
        return read

    def _check_config(self, step: int, then) -> None:
        """Refuse a `config.json` that says something else than when the step was written."""
        if not isinstance(then, dict) or not (self.workdir / "config.json").exists():
            return
        now = _flat(read_config(self.workdir))
        for name, value in _flat(then).items():
            if name in now and now[name] != value:
                raise ValueError(
                    f"workdir: got {name} {now[name]!r} in config.json of {self.workdir}, "
                    f"allowed {value!r} as step {step} was made with"
                )

    def _tree(self, step: int, name: str) -> pathlib.Path:
        return self._step_folder(step) / name

    def _check_fits(self, step: int, name: str, wanted, widen: bool) -> None:
        """Orbax reads everything before it complains of one array, and at length."""
        folder = self._tree(step, name)
        if not folder.is_dir():
            return
        have, want = _shapes(self.stored(step, name)), _shapes(wanted)
        for path in sorted(have.keys() | want.keys()):
            if have.get(path) != want.get(path):
                raise ValueError(
                    f"checkpoint: got {name} {path} {have.get(path, 'missing')} in step {step} of "
                    f"{self.workdir}, allowed {want.get(path, 'no such array')} as its config says"
                )
        have, want = _dtypes(self.stored(step, name)), _dtypes(wanted)
        for path in sorted(have):
            wider = widen and (have[path], want[path]) == ("bfloat16", "float32")
            if have[path] != want[path] and not wider:
                raise ValueError(
                    f"checkpoint: got {name} {path} of type {have[path]} in step {step} of "
                    f"{self.workdir}, allowed {want[path]}"
                )

    def _check_whole(self, step: int, names: tuple[str, ...]) -> None:
        # One process reads for all: digests cost as much as reading the arrays.
        if jax.process_index() or (wrong := self.damage(step, names)) is None:
            return
        # Looked for only when there is damage: digests of every step take as long as reading them
        # all.
        before = [s for s in self._manager.all_steps() if s < step and self.damage(s) is None]
        offer = "no earlier step is whole"
        if before:
            offer = f"step {max(before)} is whole: train --restore=whole goes on from it"
        raise ValueError(
            f"checkpoint: got step {step} of {self.workdir} with {wrong}, "
            f"allowed files as they were written ({offer})"
        )

    def check(self) -> None:
        """Raise `SaveFailed` if a save in the background has failed; never blocks."""
        try:
            self._manager.check_for_errors()
        except Exception as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Block until the last save is on disk; raises `SaveFailed` if it failed."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> SaveFailed:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        # What the operating system said stands at the end of a long line: no space, read-only.
        if code := re.search(r"os_error_code='(\d+)'", line):
            line = os.strerror(int(code[1]))
        done, _ = self.newest_whole()
        last = "there is none before it" if done is None else f"step {done} is whole"
        return SaveFailed(
            f"checkpoint: got {line!r} while step {self._saving} of {self.workdir} was "
            f"written, allowed a disk with room that can be written ({last})"
        )

    def close(self) -> None:
        """Finish and release the manager. Safe to call twice; raises `SaveFailed` as `wait`."""
        if self._closed:
            return
        self._closed = True
        try:
            self._manager.close()
        except Exception as error:
            raise self._failed(error) from error


def _limited(in_flight: int) -> ocp.handlers.CheckpointHandlerRegistry:
    """Orbax's own handlers, for trees one with a limit."""
    trees = ocp.StandardCheckpointHandler(save_concurrent_gb=in_flight / 1e9)
    facts = ocp.JsonCheckpointHandler()
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for handler, kinds in (
        (trees, (ocp.args.StandardSave, ocp.args.StandardRestore)),
        (facts, (ocp.args.JsonSave, ocp.args.JsonRestore)),
    ):
        for kind in kinds:
            registry.add(None, kind, handler)
    return registry


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    """Shape of every array by its path; tuples and their like count from 0."""
    return {path: tuple(leaf.shape) for path, leaf in _leaves(tree)}


def _dtypes(tree) -> dict[str, str]:
    return {path: str(leaf.dtype) for path, leaf in _leaves(tree)}


def _leaves(tree):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        keys = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path)
        yield ".".join(map(str, keys)), leaf


def _flat(tree: dict, prefix: str = "") -> dict:
    """`{"host.width": 96, ...}` of nested JSON."""
    flat = {}
    for name, value in tree.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


def abstract_like(tree, shardings):
    """Return `ShapeDtypeStruct` tree with shardings, what `restore` wants for each tree."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )


def read_config(workdir: str | os.PathLike) -> dict:
    """Read the resolved config that a workdir was made with, or an address on the hub holds.

    Raises:
      ValueError: there is no readable `config.json`.
    """
    if paths.is_hub(os.fspath(workdir)):
        from driftar_jax.storage import hub  # for the few who read from there

        workdir = hub.local(workdir)
    path = pathlib.Path(paths.local("workdir", workdir)) / "config.json"
    try:
        config = json.loads(path.read_bytes())
        if not isinstance(config, dict):
            raise ValueError(f"{path.name} holds no config")
        return config
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"workdir: got {str(workdir)!r}, allowed a folder written by train or convert "
            f"(no readable {path.name}){_near(path.parent)}"
        ) from error


def _near(workdir: pathlib.Path) -> str:
    """The workdir of nearly this name that stands beside it, as the end of a message."""
    with contextlib.suppress(OSError):
        beside = [p for p in workdir.parent.iterdir() if (p / "config.json").is_file()]
        close = difflib.get_close_matches(workdir.name, [p.name for p in beside], n=1)
        if close and close[0] != workdir.name:
            return f" (did you mean {str(workdir.parent / close[0])!r}?)"
    return ""
