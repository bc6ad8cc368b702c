"""A plain folder of pictures, `class/picture.png`, as a labelled set."""

import concurrent.futures
import hashlib
import os
from collections.abc import Sequence

from driftar_jax.data import FOLDER, captioned, images, listing
from driftar_jax.data.source import READ_THREADS, ImageSource
from driftar_jax.storage import paths

SPLITS = ("train", "test")
HELD_OUT = 0.1  # share of each class that becomes `test` where the folder has no split of its own
_HELD_OUT_SEED = 0
ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
ENDINGS += (".pgm", ".jpe")


def open_folder(name: str, split: str, *, image_size: int | None, center_crop: bool) -> ImageSource:
    """Open the split of `folder:PATH` as an `ImageSource`; labels follow the sorted class folders.

    `PATH/train/class/...` with `PATH/test/class/...` if both exist; otherwise `PATH/class/...`, of
    which a fixed tenth of each class is held out. That choice depends on file names alone, so it
    stays when pictures are added. Pictures in no class folder are one class where there is no
    other. Captions are those that `captioned` finds. Headers of all pictures are read; colour is
    kept unless every picture is grey. Files with other endings, hidden ones and folders without a
    picture are counted in `left_out`.

    Raises:
      ValueError: no such folder or split, folders that are parts of a set where classes belong,
        pictures that cannot be read (named), or sizes that differ while `image_size` is None. One
        line each.
    """
    root = top = paths.local("data.name", name.removeprefix(FOLDER))
    if split not in SPLITS:
        raise ValueError(f"data.split: got {split!r} for {name!r}, allowed {list(SPLITS)}")
    if not os.path.isdir(root):
        raise ValueError(f"data.name: got {name!r}, allowed folder:PATH with PATH a folder")
    if all(os.path.isdir(os.path.join(root, s)) for s in SPLITS):
        beside = _beside(root)
        listed = listing.of("data.name", name, os.path.join(root, "train"), ENDINGS)
        # Training's: the test part may lack a class, and numbers must not shift.
        class_names, trained_on = listed.classes, listed.files
        root = os.path.join(root, split)
        if split == "test":
            listed = listing.of("data.name", name, root, ENDINGS, known=class_names)
        rows, left_out = list(listed.files), ", ".join(filter(None, (listed.left_out, beside)))
    else:
        listed = listing.of("data.name", name, root, ENDINGS)
        class_names, left_out = listed.classes, listed.left_out
        trained_on = _share(list(listed.files), "train", root)
        rows = _share(list(listed.files), split, root)
    paths_, first = ([path for path, _ in part] for part in (rows, trained_on))
    shape, sizes = _common_shape(name, paths_, image_size, first if split == "test" else ())

    def read(indices: list[int]):
        return [(decode(rows[i][0]), rows[i][1]) for i in indices]

    def decode(path: str):
        try:
            return images.decode(path, channels=shape[-1], size=image_size, center_crop=center_crop)
        except images.BadImage as error:
            raise _bad(name, [(path, error)]) from None

    lines = "\n".join(f"{os.path.relpath(path, root)}\t{label}" for path, label in rows)
    digest = hashlib.sha256(os.fsencode(lines)).hexdigest()[:16]
    return ImageSource(
        read,
        len(rows),
        name=name,
        split=split,
        image_shape=shape,
        class_names=class_names,
        fingerprint=f"folder|{split}|{len(rows)}|{digest}|{shape}|{center_crop}",
        captions=lambda: captioned.read(name, top, [path for path, _ in rows]),
        sizes=sizes,
        left_out=left_out,
    )


def _beside(root: str) -> str:
    """What lies beside `train/` and `test/`, in words."""
    beside = [e for e in os.listdir(root) if e not in SPLITS and not listing.is_system(e)]
    shown = ", ".join(sorted(map(listing.text_of, beside))[:3])
    return f"{len(beside)} beside train/ and test/ ({shown})" if beside else ""


def _share(rows: list[tuple[str, int]], split: str, root: str) -> list[tuple[str, int]]:
    """The rows of one split: of each class, the tenth whose names hash lowest is held out."""
    by_class: dict[int, list] = {}
    for row in rows:
        by_class.setdefault(row[1], []).append(row)
    held_out = set()
    for members in by_class.values():
        count = max(1, round(HELD_OUT * len(members))) if len(members) > 1 else 0
        held_out.update(sorted(members, key=lambda row: _draw(row, root))[:count])
    return [row for row in rows if (row in held_out) == (split == "test")]


def _draw(row: tuple[str, int], root: str) -> bytes:
    # Names, not labels: a class that is added later leaves the choice in the others alone.
    names = os.path.relpath(row[0], root).split(os.sep)[-2:]
    return hashlib.sha256(os.fsencode("/".join([str(_HELD_OUT_SEED), *names]))).digest()


def _common_shape(
    name: str, pictures: list[str], image_size: int | None, first: Sequence[str]
) -> tuple[tuple[int, int, int], list[tuple[int, int]]]:
    """Shape of every image, and the different sizes of the pictures.

    `first`: what is trained on. It says whether the set is in colour, and this part follows.
    """
    pictures = [*first, *pictures] if pictures else []

    def look(path):
        try:
            return images.header(path)
        except images.BadImage as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(READ_THREADS) as pool:
        headers = list(pool.map(look, pictures))
    bad = [(p, s) for p, s in zip(pictures, headers, strict=True) if isinstance(s, Exception)]
    # All were looked at before the first complaint, so that one message names several.
    if bad:
        raise _bad(name, bad)
    if not headers:
        return (image_size or 1, image_size or 1, 3), [(1, 1)]
    deciding = headers[: len(first) or None]
    channels = 1 if all(grey for _, _, grey in deciding) else 3
    sizes = sorted({(height, width) for height, width, _ in headers})
    if image_size is not None:
        return (image_size, image_size, channels), sizes
    if len(sizes) > 1:
        raise ValueError(
            f"data.image_size: got None, allowed an int >= 1: pictures of {name!r} differ in size, "
            f"{sizes[0][0]}x{sizes[0][1]} to {sizes[-1][0]}x{sizes[-1][1]}"
        )
    return (*sizes[0], channels), sizes


def _bad(name: str, bad: list) -> ValueError:
    shown = "; ".join(f"{listing.text_of(path)} ({error})" for path, error in bad[:3])
    more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
    return ValueError(f"data.name: got {name!r} with bad pictures, mend or remove: {shown}{more}")
