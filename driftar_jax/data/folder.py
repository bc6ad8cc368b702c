"""A plain folder of pictures, `class/picture.png`, as a labelled set."""

import concurrent.futures
import hashlib
import os

from driftar_jax.data import images
from driftar_jax.data.source import READ_THREADS, ImageSource

PREFIX = "folder:"
SPLITS = ("train", "test")
HELD_OUT = 0.1  # share of each class that becomes `test` where the folder has no split of its own
_HELD_OUT_SEED = 0
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def open_folder(name: str, split: str, *, image_size: int | None, center_crop: bool) -> ImageSource:
    """The split of `folder:PATH` as an `ImageSource`; labels follow the sorted class folders.

    `PATH/train/class/...` with `PATH/test/class/...` if both exist; otherwise `PATH/class/...`, of
    which a fixed tenth of each class is held out. That choice depends on file names alone, so it
    stays when pictures are added. Headers of all pictures are read; colour is kept unless every
    picture is grey. Files with other endings and hidden ones are ignored.

    Raises:
      ValueError: no such folder or split, a class without pictures, pictures that cannot be read
        (named), or sizes that differ while `image_size` is None. One line each.
    """
    root = os.path.expanduser(name.removeprefix(PREFIX))
    if split not in SPLITS:
        raise ValueError(f"data.split: got {split!r} for {name!r}, allowed {list(SPLITS)}")
    if not os.path.isdir(root):
        raise ValueError(f"data.name: got {name!r}, allowed folder:PATH with PATH a folder")
    if all(os.path.isdir(os.path.join(root, s)) for s in SPLITS):
        class_names = _classes(name, os.path.join(root, "train"))
        root = os.path.join(root, split)
        extra = sorted(set(_classes(name, root)) - set(class_names))
        if extra:
            raise ValueError(
                f"data.name: got {name!r} with classes {extra} in test alone, allowed "
                "those of train"
            )
        rows = _listing(name, root, class_names, every_class=split == "train")
    else:
        class_names = _classes(name, root)
        if class_names in (["train"], ["test"]):
            raise ValueError(
                f"data.name: got {name!r} with {class_names[0]}/ alone, allowed both "
                "train/ and test/, or class folders"
            )
        rows = _share(_listing(name, root, class_names, every_class=True), split)
    paths = [path for path, _ in rows]
    shape = _common_shape(name, paths, image_size)

    def read(indices: list[int]):
        return [(decode(rows[i][0]), rows[i][1]) for i in indices]

    def decode(path: str):
        try:
            return images.decode(path, channels=shape[-1], size=image_size, center_crop=center_crop)
        except images.BadImage as error:
            raise _bad(name, [(path, error)]) from None

    listing = "\n".join(f"{os.path.relpath(path, root)}\t{label}" for path, label in rows)
    digest = hashlib.sha256(listing.encode()).hexdigest()[:16]
    return ImageSource(
        read,
        len(rows),
        name=name,
        split=split,
        image_shape=shape,
        class_names=class_names,
        fingerprint=f"folder|{split}|{len(rows)}|{digest}|{shape}|{center_crop}",
    )


def _classes(name: str, root: str) -> list[str]:
    entries = sorted(e for e in os.listdir(root) if not e.startswith("."))
    found = [e for e in entries if os.path.isdir(os.path.join(root, e))]
    if not found:
        raise ValueError(
            f"data.name: got {name!r} with {len(entries)} files and no class folders in {root}, "
            "allowed class/picture.png"
        )
    return found


def _listing(
    name: str, root: str, class_names: list[str], *, every_class: bool
) -> list[tuple[str, int]]:
    """Sorted (path, label) of every picture below the class folders of `root`."""
    rows = []
    for label, class_name in enumerate(class_names):
        pictures = []
        for place, folders, files in os.walk(os.path.join(root, class_name), followlinks=True):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            pictures += [
                os.path.join(place, f)
                for f in sorted(files)
                if f.lower().endswith(_ENDINGS) and not f.startswith(".")
            ]
        if every_class and not pictures:
            raise ValueError(
                f"data.name: got {name!r} whose class {class_name!r} holds no pictures, allowed "
                f"at least one of {' '.join(_ENDINGS)}"
            )
        rows += [(path, label) for path in pictures]
    return rows


def _share(rows: list[tuple[str, int]], split: str) -> list[tuple[str, int]]:
    """The rows of one split: of each class, the tenth whose names hash lowest is held out."""
    by_class: dict[int, list] = {}
    for row in rows:
        by_class.setdefault(row[1], []).append(row)
    held_out = set()
    for members in by_class.values():
        count = max(1, round(HELD_OUT * len(members))) if len(members) > 1 else 0
        held_out.update(sorted(members, key=_draw)[:count])
    return [row for row in rows if (row in held_out) == (split == "test")]


def _draw(row: tuple[str, int]) -> bytes:
    # Names, not labels: a class that is added later leaves the choice in the others alone.
    names = row[0].split(os.sep)[-2:]
    return hashlib.sha256("/".join([str(_HELD_OUT_SEED), *names]).encode()).digest()


def _common_shape(name: str, paths: list[str], image_size: int | None) -> tuple[int, int, int]:
    def look(path):
        try:
            return images.header(path)
        except images.BadImage as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(READ_THREADS) as pool:
        seen = list(pool.map(look, paths))
    bad = [(p, s) for p, s in zip(paths, seen, strict=True) if isinstance(s, Exception)]
    if bad:
        raise _bad(name, bad)
    if not seen:
        return image_size or 1, image_size or 1, 3
    channels = 1 if all(grey for _, _, grey in seen) else 3
    if image_size is not None:
        return image_size, image_size, channels
    sizes = sorted({(height, width) for height, width, _ in seen})
    if len(sizes) > 1:
        raise ValueError(
            f"data.image_size: got None, allowed an int >= 1: pictures of {name!r} differ in size, "
            f"{sizes[0][0]}x{sizes[0][1]} to {sizes[-1][0]}x{sizes[-1][1]}"
        )
    return *sizes[0], channels


def _bad(name: str, bad: list) -> ValueError:
    shown = "; ".join(f"{path} ({error})" for path, error in bad[:3])
    more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
    return ValueError(f"data.name: got {name!r} with bad pictures, mend or remove: {shown}{more}")
