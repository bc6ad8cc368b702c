"""WebDataset archives: tar files whose members belong together by their name up to the first dot.

`0001.jpg`, `0001.cls` (class number or name), `0001.txt` (caption) and `0001.json` (`caption` or
`text`, `label` or `class`) are one sample. Pictures are read where they lie, at random, so the
archives have to be uncompressed.
"""

import collections
import concurrent.futures
import dataclasses
import os
import tarfile
from typing import Any

from driftar_jax.config import wrong
from driftar_jax.data import WEBDATASET, listing, own
from driftar_jax.data.source import READ_THREADS, ImageSource
from driftar_jax.storage import jsons, reasons
from driftar_jax.storage.reasons import reason

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
    """Open the split of `webdataset:PATH`; see `own.files` for paths and `own.source_of` for
    splits.

    Raises:
      ValueError: no archives, a compressed or damaged one, a sample that lacks what others have.
        One line each.
    """
    place = name.removeprefix(WEBDATASET)
    counts: collections.Counter[str] = collections.Counter()
    archives = own.files(name, place, ".tar", counts)
    with concurrent.futures.ThreadPoolExecutor(READ_THREADS) as pool:
        indexed = list(pool.map(lambda item: _index(name, item[0]), archives))
    samples, parts = [], []
    for (_, part), (of_archive, others) in zip(archives, indexed, strict=True):
        with_picture = [sample for sample in of_archive if sample.place]
        others["samples without a picture"] += len(of_archive) - len(with_picture)
        others["archives without a picture"] += not with_picture
        counts.update({what: count for what, count in others.items() if count})
        samples += with_picture
        parts += [part] * len(with_picture)
    if not samples:
        held = listing.line(counts)
        allowed = f"archives with pictures ({' '.join(_PICTURES)}); they hold none but {held}"
        raise wrong("data.name", name, allowed)
    folders = _folders(name, samples)
    labels = _all_or_none(name, samples, "label", "a class (.cls, or label in .json)")
    if labels is None and len(folders) > 1:
        counts[f"folders inside, which are no classes without .cls ({listing.shown(folders)})"] += (
            len(folders)
        )
    if labels is None:
        own.count_folders([path for path, _ in archives], counts)

    def encoded(indices: list[int]) -> list[bytes]:
        return [_bytes(name, samples[i]) for i in indices]

    pictures = own.Pictures(
        keys=[sample.key for sample in samples],
        parts=parts,
        labels=labels,
        class_names=None if labels is None else own.names_beside(name, archives[0][0]),
        captions=_all_or_none(name, samples, "caption", "a caption (.txt, or caption in .json)"),
        encoded=encoded,
        left_out=listing.line(counts),
    )
    return own.source_of(name, split, pictures, image_size=image_size, center_crop=center_crop)


def _folders(name: str, samples: list[_Sample]) -> list[str]:
    """Folders of the pictures inside of the archives, which may not be parts of a set."""
    keys = (sample.key.partition("/")[2] for sample in samples)
    inside = {os.path.normpath(os.path.dirname(key)) for key in keys}
    parts = {next(filter(listing.is_part, folder.split("/")), "") for folder in inside}
    if len(parts) > 1 and "" not in parts:
        held = ", ".join(f"{part}/" for part in sorted(parts))
        raise wrong("data.name", name, f"archives of one part each (they hold {held} inside)")
    return sorted(inside)


def _index(name: str, path: str) -> tuple[list[_Sample], collections.Counter]:
    """The samples of an archive, in its order, and what else it holds."""
    stem = os.path.splitext(os.path.basename(path))[0]
    by_key: dict[str, _Sample] = {}
    counts: collections.Counter[str] = collections.Counter()
    try:
        with tarfile.open(path, "r:") as archive:
            size, end = os.path.getsize(path), 0
            for member in archive:
                end = member.offset_data + member.size
                if end > size:
                    raise tarfile.ReadError(f"{member.name} is cut off")
                if member.isdir():
                    continue
                if not member.isfile() or member.issparse():
                    # The holes of a sparse file do not lie in the archive, so nor do its bytes.
                    kind = "sparse files" if member.issparse() else "links and devices"
                    counts[kind] += 1
                    continue
                folder, base = os.path.split(member.name)
                words = [w for w in member.name.split("/") if w not in ("", ".", "..")]
                if any(map(listing.is_system, words)):
                    counts[listing.SYSTEM] += 1
                    continue
                # Up to the first dot, not the last: `0001.seg.png` belongs to sample 0001, with
                # ending `seg.png`.
                key, _, ending = base.partition(".")
                ending = ending.lower()
                if ending not in (*_PICTURES, *_LARGEST):
                    counts[
                        f"members with .{ending[:12]}" if ending else "members with no ending"
                    ] += 1
                    continue
                key = os.path.join(folder, key)
                sample = by_key.setdefault(key, _Sample(f"{stem}/{key}"))
                if unread := _take(sample, ending, path, member, archive):
                    counts[unread] += 1
            # A file that was cut between two members has no other mark.
            # Members are padded to whole blocks of 512 bytes, and a whole archive ends in blocks of
            # zeros.
            _check_end(path, -(-end // 512) * 512)
    except (tarfile.TarError, OSError, ValueError) as error:
        line = reasons.of_file(path) or reason(error)
        raise wrong("data.name", name, f"whole uncompressed archives ({path}: {line})") from None
    return list(by_key.values()), counts


def _check_end(path: str, start: int) -> None:
    """Refuse an archive whose members are followed by anything but zeros, at least a block."""
    with open(path, "rb") as file:
        file.seek(start)
        chunk = file.read(512)
        if chunk != bytes(512):
            raise tarfile.ReadError("no end mark: it is cut off")
        # Readers of tar files stop at the mark: of two that were joined, the second would be lost.
        while chunk := file.read(2**20):
            if chunk.count(0) != len(chunk):
                raise tarfile.ReadError("more lies behind its end mark (two archives in one?)")


def _take(sample: _Sample, ending: str, path: str, member, archive) -> str | None:
    """Add what a member says to its sample; return what of it is not read, in words."""
    if ending in _PICTURES:
        if sample.place:
            raise ValueError(f"{member.name}: the sample has two pictures")
        # Where the bytes lie and not the bytes: archives are larger than memory, and are read at
        # random.
        sample.place = path, member.offset_data, member.size
        return None
    if member.size > _LARGEST[ending]:
        raise ValueError(f"{member.name} has {member.size} bytes, at most {_LARGEST[ending]}")
    data = archive.extractfile(member).read()
    if ending == "json":
        facts = jsons.parse(data)
        if not isinstance(facts, dict):
            raise ValueError(f"{member.name} holds no JSON object")
        label, caption = _first(facts, "label", "class", "cls"), _first(facts, "caption", "text")
        _set(sample, member, label=label)
        _set(sample, member, caption=caption)
        if label is None and caption is None:
            return f".json without class and caption (but {listing.shown(sorted(facts))})"
    elif ending == "cls":
        _set(sample, member, label=_label(data.decode("utf-8").strip()))
    else:
        _set(sample, member, caption=data.decode("utf-8"))
    return None


def _first(facts: dict[str, Any], *names: str) -> Any:
    return next((facts[name] for name in names if facts.get(name) is not None), None)


def _set(sample: _Sample, member, **facts) -> None:
    ((field, value),) = facts.items()
    if value is None:
        return
    kinds = (int, str) if field == "label" else str
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise ValueError(f"{member.name}: {field} is {str(value)[:40]!r}")
    if isinstance(value, str):
        value = value.strip()
        if field == "label" and len(value.splitlines()) != 1:
            raise ValueError(f"{member.name}: {field} is {value[:40]!r}")
        if not value:  # no words are no caption
            return
    # A caption may stand in the .json and in the .txt; two different ones are a mistake in the set.
    if getattr(sample, field) not in (None, value):
        raise ValueError(f"{member.name}: two values of {field}")
    setattr(sample, field, value)


def _label(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() else text


def _all_or_none(name: str, samples: list[_Sample], field: str, what: str) -> list | None:
    values = [getattr(sample, field) for sample in samples]
    lacking = [s.key for s, value in zip(samples, values, strict=True) if value is None]
    if len(lacking) == len(values):
        return None
    if lacking:
        allowed = f"{what} for every picture or for none ({len(lacking)} lack it: {lacking[0]})"
        raise wrong("data.name", name, allowed)
    if field == "label" and len({type(value) for value in values}) > 1:
        raise wrong("data.name", name, "class numbers or class names, not both")
    return values


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
