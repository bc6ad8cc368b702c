"""Config files as `train --config` reads them, for programs that read several."""

import pathlib
import runpy
from collections.abc import Sequence
from typing import Any

import ml_collections

from driftar_jax import config
from driftar_jax.config import wrong


def load(source: str, field: str = "config") -> ml_collections.ConfigDict:
    """The config of `FILE.py[:SIZE]`; raises ValueError, which names `field`."""
    return result(source, "get_config", field)


def result(source: str, function: str, field: str) -> Any:
    """What a function of a Python file returns for the word after the colon.

    Raises:
      ValueError: there is no such file, or it does not load; the message names `field`.
    """
    path, _, size = source.partition(":")
    if not pathlib.Path(path).is_file():
        raise wrong(field, source, "FILE.py[:SIZE] with an existing file")
    try:
        return runpy.run_path(path)[function](*([size] if size else []))
    except Exception as error:  # the file is a program, and may raise anything
        if isinstance(error, ValueError) and ", allowed " in str(error):
            raise
        why = f"{type(error).__name__}: {error}"
        raise wrong(field, source, f"a file that loads, with {function} ({why})") from error


def change(settings: ml_collections.ConfigDict, changes: Sequence[str]) -> None:
    """Set `field=value` words, as on the command line of `train`.

    Raises:
      ValueError: a field is unknown or the value is of another type.
    """
    for word in changes:
        name, equals, text = word.partition("=")
        if not equals or name not in config.FIELDS or name not in config.flatten(settings):
            near = config.nearest(name, config.flatten(settings))
            raise wrong("set", word, f"FIELD=VALUE of a field of the config{near}")
        assign(settings, name, _value(name, text))


def assign(settings: ml_collections.ConfigDict, name: str, value) -> None:
    """Set the field `section.name`."""
    section, _, field = name.rpartition(".")
    (settings[section] if section else settings)[field] = value


def _value(name: str, text: str):
    kind = config.FIELDS[name].kind
    if kind is bool:
        if text not in ("true", "false"):
            raise wrong(name, text, config.FIELDS[name].allowed)
        return text == "true"
    try:
        return kind(text)
    except ValueError:
        raise wrong(name, text, config.FIELDS[name].allowed) from None
