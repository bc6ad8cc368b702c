"""Checkpoints on disk: Orbax arrays, a JSON manifest, and a workdir that belongs to one config.

Layout of a workdir:

  config.json             resolved config of the run
  checkpoints/STEP/params, ema, train, manifest, position

`ema` is what sampling reads; a converted checkpoint holds `ema` and `manifest` alone.
"""

import json
import os
import pathlib

import jax
import orbax.checkpoint as ocp
from etils import epath

FORMAT = 1


class Checkpoints:
    """Numbered checkpoints of one workdir: async, atomic, the last `keep` kept."""

    def __init__(self, workdir: str | os.PathLike, *, keep: int = 2, create: bool = True):
        # Orbax takes relative paths and says so only when the save has failed.
        self.workdir = pathlib.Path(workdir).absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, create=False
        )
        folder = self.workdir / "checkpoints"
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        elif not folder.is_dir():
            raise ValueError(
                f"workdir: got {str(workdir)!r}, allowed a folder with checkpoints/ in it"
            )
        self._manager = ocp.CheckpointManager(folder, options=options)

    def latest_step(self) -> int | None:
        """Newest complete step on disk, or None."""
        return self._manager.latest_step()

    def save(self, step: int, *, manifest: dict, position: dict | None = None, **trees) -> None:
        """Write `trees` (params, ema, train) in the background; raises if the last save failed."""
        self._manager.check_for_errors()
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        items["manifest"] = ocp.args.JsonSave({"format": FORMAT, **manifest})
        if position is not None:
            items["position"] = ocp.args.JsonSave(position)
        self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, step: int, **abstract) -> dict:
        """Read trees by name; each value is a tree of `ShapeDtypeStruct` with shardings.

        Returns:
          The trees, and `manifest` and `position` as dictionaries where they exist.

        Raises:
          ValueError: a name, shape or format does not fit; one line.
        """
        for name, tree in abstract.items():
            self._check_fits(step, name, tree)
        items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        items["manifest"] = ocp.args.JsonRestore()
        if (self.workdir / "checkpoints" / str(step) / "position").exists():
            items["position"] = ocp.args.JsonRestore()
        try:
            read = dict(self._manager.restore(step, args=ocp.args.Composite(**items)))
        except (ValueError, KeyError, FileNotFoundError) as error:
            first = str(error).strip().splitlines()[0]
            raise ValueError(
                f"checkpoint: got step {step} of {self.workdir}, "
                f"allowed one that fits this config ({first})"
            ) from error
        if read["manifest"].get("format") != FORMAT:
            raise ValueError(
                f"checkpoint format: got {read['manifest'].get('format')}, allowed {FORMAT}"
            )
        return read

    def _check_fits(self, step: int, name: str, wanted) -> None:
        """Orbax reads everything before it complains of one array, and at length."""
        folder = self.workdir / "checkpoints" / str(step) / name
        if not folder.is_dir():
            return
        stored = ocp.StandardCheckpointHandler().metadata(epath.Path(folder)).tree
        have, want = _shapes(stored), _shapes(wanted)
        for path in sorted(have.keys() | want.keys()):
            if have.get(path) != want.get(path):
                raise ValueError(
                    f"checkpoint: got {name} {path} {have.get(path, 'missing')} in step {step} of "
                    f"{self.workdir}, allowed {want.get(path, 'no such array')} as its config says"
                )

    def wait(self) -> None:
        """Block until the last save is on disk; raises if it failed."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

    def close(self) -> None:
        """Finish and release the manager."""
        self._manager.close()


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    """Shape of every array by its path; tuples and their like count from 0."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        ".".join(
            str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path
        ): tuple(leaf.shape)
        for path, leaf in leaves
    }


def abstract_like(tree, shardings):
    """`ShapeDtypeStruct` tree with shardings, what `restore` wants for each tree."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )


def read_config(workdir: str | os.PathLike) -> dict:
    """The resolved config that a workdir was made with.

    Raises:
      ValueError: there is no readable `config.json`.
    """
    path = pathlib.Path(workdir) / "config.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"workdir: got {str(workdir)!r}, allowed a folder written by train or convert "
            f"(no readable {path.name})"
        ) from error


def write_json(path: str | os.PathLike, value) -> None:
    """Write JSON under a temporary name, then rename, so that no reader sees half of it."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    os.replace(temporary, path)
