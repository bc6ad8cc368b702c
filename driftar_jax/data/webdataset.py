"""WebDataset archives: tar files whose members belong together by their name up to the first dot.

`0001.jpg`, `0001.cls` (class number or name), `0001.txt` (caption) and `0001.json` (`caption` or
`text`, `label` or `class`) are one sample. Pictures are read where they lie, at random, so the
archives have to be uncompressed.
"""

import concurrent.futures
import dataclasses
import os
import tarfile
from typing import Any

from driftar_jax.config import wrong
from driftar_jax.data import own
from driftar_jax.data.source import READ_THREADS, ImageSource
from driftar_jax.storage import jsons

PREFIX = "webdataset:"
CLASS_NAMES = "classnames.txt"  # beside the archives, a name a line
_PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm")
_TEXTS = ("txt", "text", "caption")
_LARGEST = {"cls": 256, "json": 2**20} | dict.fromkeys(_TEXTS, 2**16)


@dataclasses.dataclass
class _Sample:
    """What the members of one name hold; `place` is where the picture's bytes are."""

    key: str
    place: tuple[str, int, int] | None = None
    label: int | str | None = None
    caption: str | None = None


def open_webdataset(
    name: str, split: str, *, image_size: int | None, center_crop: bool
) -> ImageSource:
    """The split of `webdataset:PATH`; see `own.files` for paths and `own.source_of` for splits.

    Raises:
      ValueError: no archives, a compressed or damaged one, a sample that lacks what others have.
        One line each.
    """
    given = name.removeprefix(PREFIX)
    archives = own.files(name, given, ".tar")
    with concurrent.futures.ThreadPoolExecutor(READ_THREADS) as pool:
        indexed = list(pool.map(lambda item: _index(name, item[0]), archives))
    samples, parts, bare = [], [], 0
    for (_, part), found in zip(archives, indexed, strict=True):
        with_picture = [sample for sample in found if sample.place]
        bare += len(found) - len(with_picture)
        samples += with_picture
        parts += [part] * len(with_picture)
    if not samples:
        endings = " ".join(_PICTURES)
        raise wrong("data.name", name, f"archives with pictures ({endings}); they hold none")

    def encoded(indices: list[int]) -> list[bytes]:
        return [_bytes(name, samples[i]) for i in indices]

    pictures = own.Pictures(
        keys=[sample.key for sample in samples],
        parts=parts,
        labels=_all_or_none(name, samples, "label", "a class (.cls, or label in .json)"),
        class_names=_class_names(archives[0][0]),
        captions=_all_or_none(name, samples, "caption", "a caption (.txt, or caption in .json)"),
        encoded=encoded,
        left_out=f"{bare} samples without a picture" if bare else "",
    )
    return own.source_of(name, split, pictures, image_size=image_size, center_crop=center_crop)


def _index(name: str, path: str) -> list[_Sample]:
    """The samples of an archive, in its order."""
    stem = os.path.splitext(os.path.basename(path))[0]
    found: dict[str, _Sample] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            size, end = os.path.getsize(path), 0
            for member in archive:
                end = member.offset_data + member.size
                if end > size:
                    raise tarfile.ReadError(f"{member.name} is cut off")
                base = os.path.basename(member.name)
                if not member.isfile() or base.startswith("."):
                    continue
                # Up to the first dot, not the last: `0001.seg.png` belongs to sample 0001, with
                # ending `seg.png`.
                key, _, ending = base.partition(".")
                key = os.path.join(os.path.dirname(member.name), key)
                sample = found.setdefault(key, _Sample(f"{stem}/{key}"))
                _take(sample, ending.lower(), path, member, archive)
            # A file that was cut between two members has no other mark.
            # Members are padded to whole blocks of 512 bytes, and a whole archive ends in blocks of
            # zeros.
            if _block(path, -(-end // 512) * 512) != bytes(512):
                raise tarfile.ReadError("no end mark: it is cut off")
    except (tarfile.TarError, OSError, ValueError) as error:
        line = " ".join(str(error).split())[:200]
        raise wrong("data.name", name, f"whole uncompressed archives ({path}: {line})") from None
    return list(found.values())


def _block(path: str, start: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(512)


def _take(sample: _Sample, ending: str, path: str, member, archive) -> None:
    if ending in _PICTURES:
        if sample.place:
            raise ValueError(f"{member.name}: the sample has two pictures")
        # Where the bytes lie and not the bytes: archives are larger than memory, and are read at
        # random.
        sample.place = path, member.offset_data, member.size
        return
    if ending not in _LARGEST:
        return
    if member.size > _LARGEST[ending]:
        raise ValueError(f"{member.name} has {member.size} bytes, at most {_LARGEST[ending]}")
    data = archive.extractfile(member).read()
    if ending == "json":
        facts = jsons.parse(data)
        if not isinstance(facts, dict):
            raise ValueError(f"{member.name} holds no JSON object")
        _set(sample, member, label=_first(facts, "label", "class", "cls"))
        _set(sample, member, caption=_first(facts, "caption", "text"))
    elif ending == "cls":
        _set(sample, member, label=_label(data.decode("utf-8").strip()))
    else:
        _set(sample, member, caption=data.decode("utf-8").strip())


def _first(facts: dict[str, Any], *names: str) -> Any:
    return next((facts[name] for name in names if facts.get(name) is not None), None)


def _set(sample: _Sample, member, **found) -> None:
    ((field, value),) = found.items()
    if value is None:
        return
    kinds = (int, str) if field == "label" else str
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise ValueError(f"{member.name}: {field} is {str(value)[:40]!r}")
    # A caption may stand in the .json and in the .txt; two different ones are a mistake in the set.
    if getattr(sample, field) not in (None, value):
        raise ValueError(f"{member.name}: two values of {field}")
    setattr(sample, field, value)


def _label(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() else text


def _all_or_none(name: str, samples: list[_Sample], field: str, what: str) -> list | None:
    found = [getattr(sample, field) for sample in samples]
    lacking = [s.key for s, value in zip(samples, found, strict=True) if value is None]
    if len(lacking) == len(found):
        return None
    if lacking:
        allowed = f"{what} for every picture or for none ({len(lacking)} lack it: {lacking[0]})"
        raise wrong("data.name", name, allowed)
    if field == "label" and len({type(value) for value in found}) > 1:
        raise wrong("data.name", name, "class numbers or class names, not both")
    return found


def _class_names(first: str) -> list[str] | None:
    for folder in (os.path.dirname(first), os.path.dirname(os.path.dirname(first))):
        path = os.path.join(folder, CLASS_NAMES)
        if os.path.isfile(path):
            with open(path, encoding="utf-8") as file:
                return file.read().split("\n")[:-1] or None
    return None


def _bytes(name: str, sample: _Sample) -> bytes:
    path, offset, size = sample.place
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise wrong("data.name", name, f"archives that stay ({path}: {error.strerror})") from None
    if len(data) < size:
        raise wrong("data.name", name, f"archives that stay ({path} has become shorter)")
    return data
