"""Pictures of one's own in archives and tables: what the readers of both share."""

import collections
import concurrent.futures
import dataclasses
import glob
import hashlib
import io
import itertools
import os
import re
from collections.abc import Callable, Sequence

from driftar_jax.config import wrong
from driftar_jax.data import images, listing
from driftar_jax.data.source import READ_THREADS, ImageSource
from driftar_jax.storage import paths

SPLITS = ("train", "test")
CLASS_NAMES = "classnames.txt"  # beside the files, a name a line
# Files that belong to a set and are no part of its pictures.
BESIDE = (CLASS_NAMES, "README.md", "dataset_info.json", "dataset_infos.json", "state.json")
# Classes of a set that says none of their names: a number beyond is no class.
_MOST_CLASSES = 2**17
HELD_OUT = 0.1  # share of each class that becomes `test` where the set has no part of its own
# Whole sets up to this many pictures are looked at before the first is decoded.
LOOKED_AT = 4096
# In the order in which they stand for `test`.
_PARTS = {"test": ("test", "testing"), "val": ("validation", "valid", "val", "dev", "eval")}
_TRAIN = ("train", "training")


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Every picture of a set, in a fixed order, none of them decoded.

    Attributes:
      keys: a name for each; decides what is held out, and stays when others are added.
      parts: the part each belongs to: `train`, `test`, `val`, or "" where the set has no parts.
      labels: class numbers or names of classes; None: the set has no classes.
      class_names: of class numbers, where the set says them.
      captions: a text for each; None: the set has none.
      encoded: `encoded([i, ...])` gives their files' bytes.
      left_out: one line that counts what is no picture, or "".
    """

    keys: Sequence[str]
    parts: Sequence[str]
    labels: Sequence[int] | Sequence[str] | None
    class_names: Sequence[str] | None
    captions: Sequence[str] | None
    encoded: Callable[[list[int]], list[bytes]]
    left_out: str = ""


def files(name: str, place: str, ending: str, counts: collections.Counter) -> list[tuple[str, str]]:
    """Find the files of `place` with the part that each belongs to, sorted by path.

    Args:
      name: of the set, for messages.
      place: a folder, a file, or a pattern with `*` and `{000..012}`.
      ending: of the files, such as `.tar`.
      counts: gets what else a folder holds.

    Returns:
      `(path, part)`: the part is read from words of the path below the folder, `train-0001.tar` or
      `data/test/7.tar`; "" where no file has such a word.

    Raises:
      ValueError: there is no such file, or some have a part and others none.
    """
    path = paths.local("data.name", place)
    if os.path.isdir(path):
        members, root = [], path
        for file in listing.walk("data.name", name, path, counts):
            if file.lower().endswith(ending):
                members.append(file)
            elif os.path.basename(file) not in BESIDE:
                listing.count_ending(file, counts)
        members.sort()
        _count_lacking(members, counts)
    else:
        named = {one: [p for p in glob.glob(one) if os.path.isfile(p)] for one in _braces(path)}
        members = sorted({p for paths_ in named.values() for p in paths_})
        if gaps := [one for one, paths_ in named.items() if members and not paths_]:
            shown = listing.shown([os.path.basename(one) for one in gaps])
            allowed = f"names of files that are there ({len(gaps)} are not: {shown})"
            raise wrong("data.name", name, allowed)
        # `commonprefix` goes letter by letter; the folder of what it finds is the one that all
        # share.
        root = os.path.dirname(os.path.commonprefix(members))
    if not members:
        held = listing.line(counts)
        allowed = f"a folder, file or pattern with files *{ending}"
        raise wrong("data.name", name, f"{allowed} (it holds {held})" if held else allowed)
    with_parts = [(p, _part(os.path.relpath(p, root or "."))) for p in members]
    named = {part for _, part in with_parts}
    if "" in named and len(named) > 1:
        odd = next(p for p, part in with_parts if not part)
        raise wrong("data.name", name, f"files of train and test alone (which is {odd}?)")
    return with_parts


def _count_lacking(members: Sequence[str], counts: collections.Counter) -> None:
    """Count the files that others say there are, as `a-00001-of-00005` does."""
    numbers = collections.defaultdict(set)
    for path in members:
        folder, base = os.path.split(path)
        # What follows may be a hash of each file's own.
        if counted := re.match(r"(.*?)(\d+)-of-(\d{1,6})(?!\d)", base):
            numbers[folder, counted[1], counted[3]].add(int(counted[2]))
    for (_, before, count), held in numbers.items():
        if (lacking := int(count) - len(held)) > 0:
            counts[f"files of {listing.text_of(before)}*-of-{count} that are not there"] += lacking


def count_folders(files_: Sequence[str], counts: collections.Counter) -> None:
    """Count the folders that files lie in, but for parts of the set: a reader may take them for
    classes.
    """
    folders = {os.path.abspath(os.path.dirname(path)) for path in files_}
    root = os.path.commonpath(folders)
    folders = sorted(os.path.relpath(folder, root) for folder in folders)
    folders = [f for f in folders if f != "." and not listing.is_part(f.rpartition("/")[2])]
    if len(folders) > 1:
        counts[f"folders of files, which are no classes ({listing.shown(folders)})"] += len(folders)


def names_beside(name: str, first: str) -> list[str] | None:
    """Read the names of classes beside the files of a set, or one folder above; None: not there.

    Raises:
      ValueError: a line without a name, or no text; one line.
    """
    for folder in (os.path.dirname(first), os.path.dirname(os.path.dirname(first))):
        path = os.path.join(folder, CLASS_NAMES)
        if os.path.isfile(path):
            try:
                with open(path, encoding="utf-8-sig") as file:
                    names = [word.strip() for word in file.read().rstrip("\n").split("\n")]
            except (OSError, ValueError) as error:
                allowed = f"a {CLASS_NAMES} in UTF-8 ({path}: {error})"
                raise wrong("data.name", name, allowed) from None
            if not all(names):
                raise wrong("data.name", name, f"a name in every line of {path}")
            return names
    return None


def _braces(pattern: str) -> list[str]:
    """`a-{00..02}.tar` as the names that it stands for."""
    pieces = re.split(r"\{(\d+)\.\.(\d+)\}", pattern)
    choices: list[list[str]] = []
    for i, piece in enumerate(pieces):
        if i % 3 == 0:
            choices.append([piece])
        elif i % 3 == 1:
            first, last = piece, pieces[i + 1]
            # A slip such as {0..99999999999} would fill the memory with names.
            numbers = range(int(first), min(int(last), int(first) + 10**6) + 1)
            choices.append([str(n).zfill(len(first)) for n in numbers])
    return ["".join(words) for words in itertools.product(*choices)]


def _part(relative: str) -> str:
    # Whole words: `train-0001` is of the part train, `trainers` is not.
    for word in re.findall(r"[a-z]+", relative.lower()):
        if word in _TRAIN:
            return "train"
        for part, words in _PARTS.items():
            if word in words:
                return part
    return ""


def source_of(
    name: str,
    split: str,
    pictures: Pictures,
    *,
    image_size: int | None,
    center_crop: bool,
    channels: int | None = None,
) -> ImageSource:
    """Open one split of the pictures as an `ImageSource`.

    `test` is the set's own test part, else its validation part, else a fixed tenth of each class
    that depends on keys alone. Sets of up to `LOOKED_AT` pictures are grey if all of them are;
    larger ones are read in colour. `channels` says it in their place.

    Raises:
      ValueError: the set has no such split, pictures of several sizes while `image_size` is None,
        or a bad picture (named).
    """
    if split not in SPLITS:
        raise wrong("data.split", split, f"{' | '.join(SPLITS)} of {name}")
    labels, class_names = _classes(name, pictures)
    rows = _rows(name, split, pictures, labels)
    # What is trained on says whether the set is in colour, and its other part follows.
    first = _rows(name, "train", pictures, labels) if split == "test" else []
    shape, sizes = _shape(name, pictures, rows, image_size, first)
    shape = (*shape[:2], channels or shape[2])

    def read(indices: list[int]):
        chosen = [rows[i] for i in indices]
        data = pictures.encoded(chosen)
        return [(decode(i, one), labels[i]) for i, one in zip(chosen, data, strict=True)]

    def decode(i: int, data: bytes):
        try:
            return images.decode(data, channels=shape[-1], size=image_size, center_crop=center_crop)
        except images.BadImage as error:
            raise _bad(name, pictures.keys[i], error) from None

    # Keys and labels in order: a set that changed under a run is told from what it was.
    lines = "\n".join(f"{pictures.keys[i]}\t{labels[i]}" for i in rows)
    digest = hashlib.sha256(os.fsencode(lines)).hexdigest()[:16]
    kind = name.partition(":")[0]
    texts = pictures.captions
    return ImageSource(
        read,
        len(rows),
        name=name,
        split=split,
        image_shape=shape,
        class_names=class_names,
        fingerprint=f"{kind}|{split}|{len(rows)}|{digest}|{shape}|{center_crop}",
        captions=None if texts is None else lambda: [texts[i] for i in rows],
        sizes=sizes,
        left_out=_left_out(pictures, labels, class_names),
    )


def _classes(name: str, pictures: Pictures) -> tuple[list[int], tuple[str, ...]]:
    """A number for each picture, and what the numbers are called."""
    labels = pictures.labels
    if labels is None:
        return [0] * len(pictures.keys), (listing.ONE_CLASS,)
    kinds = {isinstance(label, str) for label in labels}
    if len(kinds) > 1:
        raise wrong("data.name", name, "class numbers or class names, not both")
    if True in kinds:
        names = tuple(sorted(set(labels)))
        _check_parts(name, names)
        numbers = {label: i for i, label in enumerate(names)}
        return [numbers[label] for label in labels], names
    known = pictures.class_names
    if known is not None and not (
        isinstance(known, list) and known and all(isinstance(n, str) and n.strip() for n in known)
    ):
        raise wrong("data.name", name, f"names of classes, not {str(known)[:60]!r}")
    count = _MOST_CLASSES if known is None else len(known)
    if (
        odd := next((i for i, label in enumerate(labels) if not 0 <= label < count), None)
    ) is not None:
        got = str(labels[odd])[:20]
        raise wrong("data.name", name, f"labels 0..{count - 1} ({pictures.keys[odd]} has {got})")
    names = known or [str(i) for i in range(max(labels, default=0) + 1)]
    _check_parts(name, names)
    return list(labels), tuple(names)


def _check_parts(name: str, names: Sequence[str]) -> None:
    """Refuse parts of a set where classes belong, as in folders."""
    if parts := listing.parts_among(names):
        raise wrong("data.name", name, f"classes, not parts of a set ({listing.shown(parts)})")


def _left_out(pictures: Pictures, labels: Sequence[int], names: Sequence[str]) -> str:
    """What is no picture, the classes that have none, and a part that nobody reads."""
    held = set(labels)
    empty = [word for number, word in enumerate(names) if number not in held]
    words = f"{len(empty)} classes without a picture ({listing.shown(empty)})" if empty else ""
    # It stands for the test part only where there is none.
    beside = sum(part == "val" for part in pictures.parts) if "test" in pictures.parts else 0
    unread = f"{beside} pictures of val beside train and test" if beside else ""
    return ", ".join(filter(None, (pictures.left_out, words, unread)))


def _rows(name: str, split: str, pictures: Pictures, labels: Sequence[int]) -> list[int]:
    every = range(len(pictures.keys))
    parts = set(pictures.parts)
    own_test = next((part for part in _PARTS if part in parts), "")
    if own_test and "train" not in parts:
        raise wrong("data.name", name, f"a set with a part train, not {own_test} alone")
    if own_test:
        wanted = own_test if split == "test" else "train"
        return [i for i in every if pictures.parts[i] == wanted]
    by_class: dict[int, list[int]] = {}
    for i in every:
        by_class.setdefault(labels[i], []).append(i)
    held_out: set[int] = set()
    for members in by_class.values():
        # At least one of each class that has two, so that every class can be judged.
        count = max(1, round(HELD_OUT * len(members))) if len(members) > 1 else 0
        # By a hash of the key and not by position: pictures that are added later move few of the
        # others between the splits.
        held_out.update(sorted(members, key=lambda i: _draw(pictures.keys[i]))[:count])
    return [i for i in every if (i in held_out) == (split == "test")]


def _draw(key: str) -> bytes:
    return hashlib.sha256(os.fsencode(f"0/{key}")).digest()


def _shape(
    name: str, pictures: Pictures, rows: list[int], image_size: int | None, first: list[int]
) -> tuple[tuple[int, int, int], list[tuple[int, int]]]:
    """Shape of every image, and the different sizes of the pictures that were looked at."""
    # Of a large set pictures from all of it, and few enough to look at.
    parts = [part[:: -(-len(part) // LOOKED_AT)] if part else [] for part in (rows, first)]
    own, before = (_headers(name, pictures, part) for part in parts)
    headers, deciding = [*before, *own], before or own
    # Of a large set most pictures are unseen, and one in colour among them would lose it.
    few = len(first or rows) <= LOOKED_AT
    channels = 1 if few and deciding and all(grey for _, _, grey in deciding) else 3
    sizes = sorted({(height, width) for height, width, _ in headers}) or [(1, 1)]
    if image_size is not None:
        return (image_size, image_size, channels), sizes
    if len(sizes) > 1:
        differ = f"{sizes[0][0]}x{sizes[0][1]} to {sizes[-1][0]}x{sizes[-1][1]}"
        raise ValueError(
            f"data.image_size: got None, allowed an int >= 1: pictures of {name!r} differ in size, "
            f"{differ}"
        )
    return (*sizes[0], channels), sizes


def _headers(name: str, pictures: Pictures, rows: Sequence[int]) -> list[tuple[int, int, bool]]:
    """`(height, width, is grey)` of these pictures; raises ValueError, which names a bad one."""

    def look(part: list[int]):
        headers = []
        for i, data in zip(part, pictures.encoded(part), strict=True):
            try:
                headers.append(images.header(io.BytesIO(data)))
            except images.BadImage as error:
                raise _bad(name, pictures.keys[i], error) from None
        return headers

    # Some at a time: a reader can open a file once for several pictures.
    parts = [list(rows[k : k + 64]) for k in range(0, len(rows), 64)]
    with concurrent.futures.ThreadPoolExecutor(READ_THREADS) as pool:
        return [item for headers in pool.map(look, parts) for item in headers]


def _bad(name: str, key: str, error: Exception) -> ValueError:
    return ValueError(f"data.name: got {name!r} with bad pictures, mend or remove: {key} ({error})")
