"""The hosts: one table of families, by the name that `host.name` of a config gives."""

import importlib
from typing import Any

# File of this folder that holds the `FAMILY` (`base.py`) of a host.
FILES = {"mar": "mar_host", "transdiff": "transdiff_host", "nextstep": "nextstep_host"}


def family(name: str) -> Any:
    """Return the `Family` of that name; only its own file is imported."""
    return importlib.import_module(f"driftar_jax.hosts.{FILES[name]}").FAMILY
