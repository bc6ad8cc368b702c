"""Config files as `train --config` reads them: where they are, and what they say.

The files of the folder `configs` come with the package: beside it in a checkout, inside it where it
is installed. Every program takes them by name from any folder, `mar_small:digits8`, and by the path
that they have in a checkout, `configs/mar_small.py:digits8`; a file of that path comes first.
"""

import pathlib
import runpy
import sys
import types
from collections.abc import Sequence
from typing import Any

import ml_collections

import driftar_jax
from driftar_jax import config
from driftar_jax.config import wrong

_PACKAGE = pathlib.Path(driftar_jax.__file__).parent


def home() -> pathlib.Path:
    """Return the folder of the config files that come with the package."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def names(room: str = "") -> list[str]:
    """Return names of the configs that come with the package, those of `room` (`sweeps`) if it is
    given.

    What only others import (`small`, `mar_full`) is not among them.
    """
    function = "def get_sweep(" if room else "def get_config("
    files = sorted((home() / room).glob("*.py"))
    return [file.stem for file in files if function in file.read_text(encoding="utf-8")]


def find(source: str, field: str = "config", room: str = "") -> str:
    """Return `FILE.py[:SIZE]` with an existing file for what a user wrote.

    It also lets the file say `from configs import small`, wherever it is run from.

    Args:
      source: a path or the name of a config of the package, then perhaps `:SIZE`.
      field: what a message calls it.
      room: folder below `configs`, for names.

    Raises:
      ValueError: there is no such file; the nearest name is offered.
    """
    written, colon, size = source.partition(":")
    file = pathlib.Path(written)
    if not file.is_file():
        bare = written.removeprefix("configs/").removeprefix(f"{room}/").removesuffix(".py")
        file = home() / room / f"{bare}.py"
        if not bare or not file.is_file():
            near = config.nearest(bare, names(room))
            here = f"a NAME of the package's {f'configs/{room}' if room else 'configs'}"
            raise wrong(field, source, f"FILE.py[:SIZE] with an existing file, or {here}{near}")
    _let_import(file.resolve())
    return f"{file}{colon}{size}"


def _let_import(file: pathlib.Path) -> None:
    """`import configs` finds the folder `configs` that holds `file` first, then the package's."""
    folders = [str(folder) for folder in file.parents if folder.name == "configs"][:1]
    package = sys.modules.setdefault("configs", types.ModuleType("configs"))
    package.__path__ = list(dict.fromkeys([*folders, str(home())]))


def load(source: str, field: str = "config") -> ml_collections.ConfigDict:
    """Load the config of `FILE.py[:SIZE]`; raises ValueError, which names `field`."""
    return result(source, "get_config", field)


def result(source: str, function: str, field: str) -> Any:
    """Return what a function of a Python file returns for the word after the colon.

    Raises:
      ValueError: there is no such file, or it does not load; the message names `field`.
    """
    path, _, size = find(source, field, "sweeps" if function == "get_sweep" else "").partition(":")
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
        if not equals or name not in config.fields() or name not in config.flatten(settings):
            near = config.nearest(name, config.flatten(settings))
            raise wrong("set", word, f"FIELD=VALUE of a field of the config{near}")
        assign(settings, name, _value(name, text))


def assign(settings: ml_collections.ConfigDict, name: str, value) -> None:
    """Set the field `section.name`."""
    section, _, field = name.rpartition(".")
    (settings[section] if section else settings)[field] = value


def _value(name: str, text: str):
    kind = config.fields()[name].kind
    if kind is bool:
        if text not in ("true", "false"):
            raise wrong(name, text, config.fields()[name].allowed)
        return text == "true"
    try:
        return kind(text)
    except ValueError:
        raise wrong(name, text, config.fields()[name].allowed) from None
