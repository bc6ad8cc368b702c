"""Paths as users write them: `~` means their home, and an address of a bucket is no path."""

import os
import re

# With one slash is what path libraries make of two.
_ADDRESS = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]*://|(gs|gcs|s3[an]?|r2|hdfs|abfss?|wasbs?|az|dbfs|https?|s?ftp|file):/"
)


def is_address(text: str) -> bool:
    """Whether this names a place on a network, such as `gs://bucket/runs`."""
    return _ADDRESS.match(text) is not None


def local(field: str, given: str | os.PathLike) -> str:
    """The path on this machine, `~` expanded.

    Raises:
      ValueError: an address, a home that is not known, or what no path can hold; one line.
    """
    text = os.fspath(given)
    if is_address(text):
        raise ValueError(
            f"{field}: got {text!r}, allowed a folder of this machine: mount the bucket (gcsfuse, "
            "mountpoint-s3, rclone mount) and give the folder where it is mounted"
        )
    if "\0" in text:
        raise ValueError(f"{field}: got {text!r}, allowed a path without zero bytes")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise ValueError(
            f"{field}: got {text!r} whose home folder is not known here, allowed a path without ~ "
            "in front (./~ for a folder of that name)"
        )
    return expanded
