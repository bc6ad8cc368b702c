"""Classes as people write them: by name or number, with commas in it or in another spelling."""

import os
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from driftar_jax.config import nearest, wrong

_LONGEST = 40
_SHOWN = 20  # classes that a message names


def numbers(labels: Sequence, names: Sequence[str]) -> list[int]:
    """Return the class numbers of what is asked for.

    Args:
      labels: numbers, -1 for none; or names. A text is a name where a class has it, else a number:
        classes called 2, 10 and 1 are asked for by these names.
      names: of all classes.

    Raises:
      ValueError: no class has the name or number; the nearest name is offered.
    """
    known = {_plain(name): number for number, name in reversed(list(enumerate(names)))}
    known |= {name: number for number, name in reversed(list(enumerate(names)))}
    return [_number(a, known, names) for a in labels]


def words(text: str, names: Sequence[str]) -> list[str]:
    """Return the names and numbers of a list that commas divide, where names may hold commas too.

    A part that is a class or a number stands for itself; other parts are put together again to the
    longest name that they make.
    """
    if _plain(text) in map(_plain, names):
        return [text]
    known = {_plain(name) for name in names}
    parts, entries, at = [part.strip() for part in text.split(",")], [], 0
    while at < len(parts):
        end = at + 1
        if _plain(parts[at]) not in known:
            for last in range(len(parts), at + 1, -1):
                if _plain(",".join(parts[at:last])) in known:
                    end = last
                    break
        entries.append(",".join(parts[at:end]))
        at = end
    return [word for word in entries if word]


def for_file(number: int, name: str) -> str:
    """Name a class in a part of a file's name, by number and name: `class3_ankle-boot`.

    By its number alone where names of files on this machine cannot hold its letters.
    """
    safe = re.sub(r"[^\w.+-]+", "-", unicodedata.normalize("NFC", name)).strip("-.")[:_LONGEST]
    try:
        os.fsencode(safe)
    except UnicodeEncodeError:
        safe = ""
    return f"class{number}" if number < 0 or safe in ("", str(number)) else f"class{number}_{safe}"


def _plain(name: str) -> str:
    """The same for two spellings of a name: composed letters, spaces around commas."""
    return re.sub(r"\s*,\s*", ",", unicodedata.normalize("NFC", name)).strip()


def _number(label, known: dict[str, int], names: Sequence[str]) -> int:
    count = len(names)
    if isinstance(label, str):
        number = known.get(label, known.get(_plain(label)))
        if number is not None:
            return number
        digits = re.fullmatch(r"-?[0-9]{1,9}", label.strip())
        if not digits or not -1 <= int(label) < count:
            # A name may hold what ends a line.
            shown = [" ".join(name.split()) for name in names[:_SHOWN]]
            words = ", ".join(shown) + (", ..." if count > _SHOWN else "")
            allowed = f"-1 to {count - 1} or a class name: {words}{nearest(label, known)}"
            raise wrong("labels", label, allowed)
        return int(label)
    try:
        whole = int(label)
        if whole == label and -1 <= whole < count and not isinstance(label, bool | np.bool_):
            return whole
    except (TypeError, ValueError, OverflowError):
        pass
    raise wrong("labels", label, f"-1 to {count - 1} or a class name")
