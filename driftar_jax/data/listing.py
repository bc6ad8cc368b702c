"""What lies in a folder of classes: class folders, their files, and what is neither."""

import collections
import dataclasses
import os
import re
import unicodedata
from collections.abc import Sequence

# Parts of a set. A class of such a name alone is one too many: these are its splits.
_PARTS = (
    "train training trainset trainval valset testset val valid validation validate minival dev "
    "test testing eval evaluation holdout heldout unlabeled unlabelled"
).split()
_FILLERS = "a b c data dataset folder image images img imgs imagenet ilsvrc pictures set split"
_FILLERS = (*_FILLERS.split(), "new", "final", "clean", "full", "of", "out", "held", "hold")
# What operating systems, file servers and editors leave beside the files of their users.
_SYSTEM = {
    "__macosx",
    "@eadir",
    "$recycle.bin",
    "recycler",
    "system volume information",
    "lost+found",
    "__pycache__",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "icon\r",
}


# Captions of the pictures beside them (`captioned`).
TABLES = ("metadata.jsonl", "metadata.csv")
SYSTEM = "hidden or of the system"  # what a line calls them
_PIPE = "pipes and devices"
_FOLDER, _FILE = "folder", "file"
_SHOWN = 8  # kinds that a line counts
# Name of the class of pictures that lie in no class folder.
ONE_CLASS = "picture"


@dataclasses.dataclass(frozen=True)
class Listing:
    """Classes and files of a folder, in order.

    Attributes:
      classes: names as text; labels follow them.
      files: path and label of every file that belongs to a class.
      left_out: one line that counts what is neither; "" where there is nothing.
    """

    classes: tuple[str, ...]
    files: tuple[tuple[str, int], ...]
    left_out: str


def text_of(name: str) -> str:
    r"""Return a file name that any terminal and any JSON file can hold; `\xff` for what is not
    UTF-8.
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def is_part(name: str) -> bool:
    """Say whether a folder of this name is a part of a set, as `val2017` is, and not a class."""
    words = re.findall(r"[a-z]+", unicodedata.normalize("NFKC", name).lower())
    known = all(word in _PARTS or word in _FILLERS for word in words)
    return known and any(word in _PARTS for word in words)


def parts_among(names: Sequence[str]) -> list[str]:
    """Find those of these classes that are parts of a set; none where they can be classes.

    One `train` among others is a class of trains. Two parts are a set's, and so are names that say
    parts and differ in nothing else, `coco_train` and `coco_val`.
    """
    parts = [name for name in names if is_part(name)]
    if len(parts) > 1 or len(parts) == len(names):
        return parts
    split = [re.findall(r"[a-z]+", unicodedata.normalize("NFKC", n).lower()) for n in names]
    rests = {tuple(word for word in words if word not in _PARTS) for words in split}
    said = {tuple(word for word in words if word in _PARTS) for words in split}
    return list(names) if len(rests) == 1 and len(said) > 1 and () not in said else []


def is_system(name: str) -> bool:
    """Say whether a file or folder is hidden, or no user's own."""
    return name.startswith(".") or name.lower() in _SYSTEM


def of(
    field: str,
    source: str,
    root: str,
    endings: Sequence[str],
    *,
    known: Sequence[str] | None = None,
) -> Listing:
    """Find the classes below `root`, each a folder with files of these endings at any depth.

    A folder without such a file is no class, nor is one that is hidden or the system's. Where there
    is no class, the files of `root` itself are one, called `ONE_CLASS`.

    Args:
      field: for the message.
      source: what the user named, for the message.
      root: an existing folder.
      endings: of the files, lower case, such as `.png`.
      known: names that labels follow, where they are another folder's; others are refused.

    Raises:
      ValueError: no class in it, one that is not `known`, or parts of a set in their place; one
        line.
    """
    counts: collections.Counter[str] = collections.Counter()
    by_class: dict[str, list[str]] = {}
    empty: list[str] = []
    loose: list[str] = []
    for entry in _entries(field, source, root):
        if is_system(entry.name):
            counts[SYSTEM] += 1
        elif (kind := _kind(entry)) != _FOLDER:
            if kind == _PIPE:
                counts[_PIPE] += 1
            else:
                loose.append(entry.path)
        elif files := _files(field, source, entry.path, endings, counts):
            by_class[entry.name] = files
        else:
            empty.append(entry.name)
    _check_parts(field, source, root, by_class)
    pictures = [path for path in loose if path.lower().endswith(tuple(endings))]
    if not by_class and pictures:
        by_class[ONE_CLASS] = pictures
        loose = [path for path in loose if path not in set(pictures)]
    loose = [path for path in loose if os.path.basename(path) not in TABLES]
    if others := _without_captions(loose, by_class.get(ONE_CLASS, [])):
        counts["files outside of class folders"] = len(others)
    if not by_class:
        here = line(counts, empty) or "nothing"
        raise ValueError(
            f"{field}: got {source!r} with {here} and no class folders in {text_of(root)}, allowed "
            f"class/picture{endings[0]}"
        )
    # Entries were sorted by name, so that labels do not depend on the file system's order.
    names = [text_of(entry) for entry in by_class]
    if known is not None and (extra := sorted(set(names) - set(known))):
        raise ValueError(
            f"{field}: got {source!r} with classes {extra} in {os.path.basename(root)} alone, "
            "allowed those of train"
        )
    # The labels of a test part follow the training part's classes, whichever of them it holds.
    labels = {source: i for i, source in enumerate(names if known is None else known)}
    rows = [(p, labels[text_of(entry)]) for entry, files in by_class.items() for p in files]
    return Listing(tuple(labels), tuple(rows), line(counts, empty))


def _entries(field: str, source: str, folder: str) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(
            f"{field}: got {source!r}, allowed folders that can be read "
            f"({text_of(folder)}: {error.strerror})"
        ) from None


def _kind(entry: os.DirEntry) -> str:
    """Tell folders, files, and what would be waited for without end when it is opened.

    A link that leads nowhere, or to itself, counts as a file: whoever reads it names it.
    """
    try:
        if entry.is_dir():
            return _FOLDER
        return _FILE if entry.is_file() or not os.path.exists(entry) else _PIPE
    except OSError:
        return _FILE


def walk(field: str, source: str, top: str, counts: collections.Counter) -> list[str]:
    """Return files below a folder, those of a folder before its folders', each in the order of
    names.

    What is hidden or the system's is counted and not looked into.

    Raises:
      ValueError: a folder that cannot be read; one line.
    """
    files, walked, waiting = [], {os.path.realpath(top)}, [top]
    while waiting:
        place = waiting.pop(0)
        folders = []
        for entry in _entries(field, source, place):
            kind = SYSTEM if is_system(entry.name) else _kind(entry)
            if kind == _FOLDER:
                folders.append(entry.path)
            elif kind == _FILE:
                files.append(entry.path)
            else:
                counts[kind] += 1
        # A link to a folder above would be walked without end.
        new = [path for path in folders if os.path.realpath(path) not in walked]
        walked.update(map(os.path.realpath, new))
        # In front: the folders of a folder come right after it.
        waiting[:0] = new
    return files


def count_ending(name: str, counts: collections.Counter, what: str = "files") -> None:
    """Count a file that is not read by its ending."""
    ending = os.path.splitext(text_of(name))[1].lower()[:13] or "no ending"
    counts[f"{what} with {ending}"] += 1


def _files(
    field: str, source: str, top: str, endings: Sequence[str], counts: collections.Counter
) -> list[str]:
    """Sorted files of a class folder; what else lies there is counted."""
    files, texts = [], []
    for path in walk(field, source, top, counts):
        name = os.path.basename(path)
        if name.lower().endswith(tuple(endings)):
            files.append(path)
        elif name.lower().endswith(".txt"):
            texts.append(path)
        elif name not in TABLES:
            count_ending(name, counts)
    if bare := len(_without_captions(texts, files)):
        counts["files with .txt"] += bare
    return files


def _without_captions(files: Sequence[str], pictures: Sequence[str]) -> list[str]:
    """The files that are no `picture.txt` beside `picture.png`."""
    stems = {os.path.splitext(path)[0] for path in pictures}
    return [p for p in files if not (p.lower().endswith(".txt") and p[:-4] in stems)]


def _check_parts(field: str, source: str, root: str, by_class: dict[str, list[str]]) -> None:
    """Refuse parts of a set where classes belong: they would be trained as classes."""
    texts = {text_of(name): name for name in by_class}
    wrong = [texts[text] for text in parts_among(list(texts))]
    if wrong:
        named = ", ".join(f"{text_of(name)}/" for name in wrong[:4])
        raise ValueError(
            f"{field}: got {source!r} whose folders {named} are parts of a set, not classes, "
            "allowed train/ and test/ with class folders in each, or class folders alone (rename "
            "the held-out part to test)"
        )
    for name, files in by_class.items():
        place = os.path.join(root, name)
        below = {os.path.relpath(path, place).split(os.sep)[0] for path in files}
        inside = [part for part in sorted(below) if is_part(text_of(part))]
        if inside and len(inside) == len(below) and os.path.isdir(os.path.join(place, inside[0])):
            raise ValueError(
                f"{field}: got {source!r} with {text_of(inside[0])}/ inside of its folder "
                f"{text_of(name)}/, allowed a folder of classes, or one with train/ and test/ in it"
            )


def line(counts: collections.Counter, empty: Sequence[str] = ()) -> str:
    """Return what is counted, in words, and folders without any file of a class; "" for nothing."""
    kinds = sorted(counts.items())
    words = [f"{count} {what}" for what, count in kinds[:_SHOWN]]
    if rest := sum(count for _, count in kinds[_SHOWN:]):
        words.append(f"{rest} of other kinds")
    if empty:
        words.append(f"{len(empty)} folders without any ({shown(empty)})")
    return ", ".join(words)


def shown(names: Sequence[str]) -> str:
    """Return the first names of several."""
    return ", ".join(text_of(name)[:40] for name in names[:3]) + (", ..." if len(names) > 3 else "")
