"""Paths as users write them: `~` means their home, and an address of a bucket is no path."""

import os
import pathlib
import re

# How an address on the hub begins (`hub.py`), and what a folder from there holds.
HUB = "hf://"
RELEASED = ("model.safetensors", "manifest.json")
# With one slash is what path libraries make of two.
_ADDRESS = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]*://|(gs|gcs|s3[an]?|r2|hdfs|abfss?|wasbs?|az|dbfs|https?|s?ftp|file):/"
)


# `host:/folder` of scp, and a drive of Windows, which here would be a folder of that odd name.
_OTHER_MACHINE = re.compile(r"[\w.@-]+:[/\\]|\\\\[\w.]")
_VARIABLE = re.compile(r"\$(\w+)|\$\{(\w+)\}")


def is_address(text: str) -> bool:
    """Say whether this names a place on a network, such as `gs://bucket/runs`."""
    return _ADDRESS.match(text) is not None


def is_hub(text: str) -> bool:
    """Say whether this means an address on the hub, also one that `hub.local` will refuse.

    A path library makes one slash of two, and people write capitals.
    """
    return text[:4].lower() == "hf:/"


def is_released(folder: str | os.PathLike) -> bool:
    """Say whether a folder is one of the hub's form, not a workdir with checkpoints."""
    return all((pathlib.Path(folder) / name).is_file() for name in RELEASED)


def half_released(folder: str | os.PathLike) -> str | None:
    """Return the file that a folder of the hub's form lacks; None: it is whole, or none of it."""
    lacking = [name for name in RELEASED if not (pathlib.Path(folder) / name).is_file()]
    run = (pathlib.Path(folder) / "checkpoints").exists()
    return lacking[0] if not run and len(lacking) == 1 else None


def local(field: str, path: str | os.PathLike) -> str:
    """Return the path on this machine: `~` and `$NAME` expanded where they are a whole part of it.

    Where no shell has read a path, such as in a config or behind `=`, both stand there as typed.

    Raises:
      ValueError: an address, a home or variable that is not known, or what no path can hold; one
        line.
    """
    text = os.fspath(path)
    if is_address(text) or _OTHER_MACHINE.match(text):
        raise ValueError(
            f"{field}: got {text!r}, allowed a folder of this machine: mount the bucket (gcsfuse, "
            "mountpoint-s3, rclone mount) and give the folder where it is mounted"
        )
    if "\0" in text:
        raise ValueError(f"{field}: got {text!r}, allowed a path without zero bytes")
    expanded = os.path.expanduser("/".join(_filled(field, text, p) for p in text.split("/")))
    if expanded.startswith("~"):
        raise ValueError(
            f"{field}: got {text!r} whose home folder is not known here, allowed a path without ~ "
            "in front (./~ for a folder of that name)"
        )
    return expanded


def _filled(field: str, path: str, part: str) -> str:
    """A part of a path; the value of the variable that it names."""
    variable = _VARIABLE.fullmatch(part)
    if variable is None:
        return part
    value = os.environ.get(variable[1] or variable[2])
    if not value:
        raise ValueError(
            f"{field}: got {path!r} whose variable {part} is not set, allowed one that is, or a "
            "path without it"
        )
    return value.rstrip("/") if len(value) > 1 else value
