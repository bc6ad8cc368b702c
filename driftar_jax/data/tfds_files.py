"""What stands beside the shards of a prepared TFDS set, judged before TFDS reads it."""

import pathlib

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


def _classes(tree) -> list[str]:
    """Every `pythonClassName` of nested JSON, and `type` of what older versions wrote."""
    found, waiting = [], [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            named = [node.get("pythonClassName"), node.get("python_class_name"), node.get("type")]
            found += [name for name in named if isinstance(name, str)]
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return found
