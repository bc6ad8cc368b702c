"""What `--help` prints: the program's text, and every flag of it in groups."""

import shutil
import sys
import textwrap

from absl import flags

from driftar_jax import config
from driftar_jax.cli import files

WORDS = ("help", "h", "helpfull", "helpshort")
_COLUMN = 30


def wanted(argv: list[str]) -> bool:
    """Say whether these words ask for help."""
    return any(word.startswith("-") and word.lstrip("-") in WORDS for word in argv[1:])


def groups(program: str) -> dict[str, list[flags.Flag]]:
    """Return flags by heading, in the order of their definition.

    Args:
      program: the module that absl takes for the main one, `sys.argv[0]`.

    Returns:
      The program's own flags first, then those of each module of the package that defines some.
    """
    by_heading: dict[str, list[flags.Flag]] = {"flags": []}
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        own = [flag for flag in defined if not flag.name.startswith("config.")]
        if module == program:
            by_heading["flags"] = own
        elif module.startswith("driftar_jax."):
            text = sys.modules[module].__doc__ or module
            by_heading[text.split("\n\n")[0].split(":")[0].rstrip(".")] = own
    return {heading: own for heading, own in by_heading.items() if own}


def names(program: str) -> list[str]:
    """Return names of all these flags."""
    return [flag.name for own in groups(program).values() for flag in own]


def text(argv: list[str], about: str) -> str:
    """Write the whole help; `about` is the program's own text."""
    width = min(max(shutil.get_terminal_size().columns, 60), 100)
    lines = [about.strip(), ""]
    for heading, own in groups(argv[0]).items():
        lines.append(f"{heading}:")
        for flag in own:
            lines += _flag(flag, width)
        lines.append("")
    if "config" in flags.FLAGS:
        lines += _config(width)
    return "\n".join(lines).rstrip()


def _flag(flag: flags.Flag, width: int) -> list[str]:
    default = flag.default_as_str
    value = "" if flag.boolean else f"={flag.name.upper()}"
    if default not in (None, "", "''") and not flag.boolean:
        value = f"={default.strip(chr(39))}"
    words = textwrap.wrap(" ".join(str(flag.help).split()), width - _COLUMN, break_on_hyphens=False)
    start = f"  --{flag.name}{'' if flag.boolean else value}"
    if len(start) >= _COLUMN:
        return [start, *(" " * _COLUMN + line for line in words)]
    return [start.ljust(_COLUMN) + words[0], *(" " * _COLUMN + line for line in words[1:])]


def _config(width: int) -> list[str]:
    """Configs of the package, and the fields that `--config.FIELD=VALUE` changes."""
    rooms: dict[str, list[str]] = {}
    for field, spec in config.fields().items():
        if spec.former:
            continue
        room, _, name = field.rpartition(".")
        rooms.setdefault(room, []).append(name)
    indent = " " * 18

    def row(start: str, words: list[str]) -> list[str]:
        wrapped = textwrap.wrap(" ".join(words), width - len(indent), break_on_hyphens=False)
        return [f"  {start}".ljust(18) + wrapped[0], *(indent + line for line in wrapped[1:])]

    lines = ["configs that come with the package, --config=NAME:SIZE:"]
    lines += row("", files.names()) + ["", "fields of a config, --config.FIELD=VALUE:"]
    for room, fields in rooms.items():
        lines += row(f"{room}." if room else "", fields)
    return lines
