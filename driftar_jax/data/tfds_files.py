"""What stands beside the shards of a prepared set: judged before TFDS reads it, and counted."""

import collections
import os
import pathlib
from collections.abc import Sequence

from driftar_jax.data import listing
from driftar_jax.storage.jsons import read_json

_OURS = "tensorflow_datasets."


def check(folder) -> None:
    """Refuse a prepared set whose files TFDS did not write: it imports any module they name.

    Args:
      folder: of one version, with `dataset_info.json` and `features.json`.

    Raises:
      ValueError: a file is absent, damaged or of another kind; one line that names it.
    """
    folder = pathlib.Path(folder)
    read_json("data.name", folder / "dataset_info.json", "the facts of a prepared set")
    path = folder / "features.json"
    allowed = "the features of a prepared set"
    for name in _classes(read_json("data.name", path, allowed)):
        if not name.startswith(_OURS):
            raise ValueError(
                f"data.name: got {str(path)!r} which names {name[:80]!r}, allowed classes of "
                f"{_OURS}*"
            )


def left_out(folder, info, features: Sequence[str], beside: Sequence[str] = ()) -> str:
    """Return one line that counts what a prepared set holds and nobody reads; "" for nothing.

    Args:
      folder: of one version.
      info: its `tfds.core.DatasetInfo`.
      features: those that are read.
      beside: names of further files that belong to it.
    """
    counts: collections.Counter[str] = collections.Counter()
    known = {"dataset_info.json", "features.json", "metadata.json", "LICENSE", *beside}
    known |= {os.path.basename(f) for split in info.splits.values() for f in split.filenames}
    for path in listing.walk("data.name", str(folder), str(folder), counts):
        name = os.path.basename(path)
        # Names of classes, which TFDS keeps beside its features.
        if name not in known and not name.endswith(".labels.txt"):
            listing.count_ending(name, counts)
    if others := sorted(set(info.features) - set(features)):
        counts[f"features ({listing.shown(others)})"] = len(others)
    return listing.line(counts)


def _classes(tree) -> list[str]:
    """Every `pythonClassName` of nested JSON, and `type` of what older versions wrote."""
    names, waiting = [], [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            named = [node.get("pythonClassName"), node.get("python_class_name"), node.get("type")]
            names += [name for name in named if isinstance(name, str)]
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return names
