"""Pictures of anybody, to be measured: a folder, or the `.npz` that evaluators exchange."""

import collections
import pathlib
import zipfile
from collections.abc import Callable, Iterator

import numpy as np

from driftar_jax.config import wrong
from driftar_jax.data import images, listing, npz
from driftar_jax.storage import paths, reasons
from driftar_jax.storage.reasons import reason

ARRAY = "arr_0"  # what ADM's evaluator reads
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
_PART = 256


class PictureSet:
    """Pictures of one size, read part by part.

    Attributes:
      name: as it was asked for.
      shape: `(n, H, W, 1 or 3)`.
      left_out: one line that counts what lies in the folder and is no picture, or "".
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        read: Callable[[slice], np.ndarray],
        left_out: str = "",
    ):
        """`read(slice)` gives uint8 `[k, H, W, C]`."""
        self.name, self.shape, self._read = name, shape, read
        self.left_out = left_out

    def __len__(self) -> int:
        return self.shape[0]

    def parts(self) -> Iterator[np.ndarray]:
        """Yield all pictures in order, uint8 `[k, H, W, C]` at a time."""
        for first in range(0, len(self), _PART):
            yield self._read(slice(first, first + _PART))


def open_pictures(field: str, name: str) -> PictureSet:
    """Open a folder of pictures of one size, or a `.npz` with `arr_0`, uint8 `[n, H, W, 1 or 3]`.

    Folders are read with all that is below them, in the order of their paths; grey if every picture
    is.

    Raises:
      ValueError: nothing there, pictures of several sizes, damaged ones or another kind of array;
        one line that names `field`.
    """
    path = pathlib.Path(paths.local(field, name))
    if path.is_dir():
        return _folder(field, name, path)
    if path.is_file() and path.suffix == ".npz":
        return _array(field, name, path)
    raise wrong(field, name, "a folder of pictures, or a .npz with arr_0")


def holds(path: str, *members: str) -> bool:
    """Say whether a path is a `.npz` with all these members."""
    try:
        with zipfile.ZipFile(path) as archive:
            return set(members) <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _array(field: str, name: str, path: pathlib.Path) -> PictureSet:
    try:
        (array,) = npz.read(path, [ARRAY])
    except Exception as error:  # a damaged zip can raise nearly anything
        line = reason(error)
        line = reasons.of_file(path) or line
        raise wrong(field, name, f"a .npz with {ARRAY} ({line})") from None
    if (
        array.dtype != np.uint8
        or array.ndim != 4
        or array.shape[-1] not in (1, 3)
        or not array.size
    ):
        got = f"{array.dtype} {list(array.shape)}"
        raise wrong(field, name, f"{ARRAY} of uint8 [n, H, W, 1 or 3], not {got}")
    return PictureSet(name, array.shape, lambda part: array[part])


def _folder(field: str, name: str, folder: pathlib.Path) -> PictureSet:
    counts: collections.Counter[str] = collections.Counter()
    files = []
    for path in map(pathlib.Path, listing.walk(field, name, str(folder), counts)):
        if path.suffix.lower() in ENDINGS:
            files.append(path)
        else:
            listing.count_ending(path.name, counts)
    files.sort()
    left_out = listing.line(counts)
    if not files:
        held = f"; it holds {left_out}" if left_out else ""
        raise wrong(field, name, f"a folder with pictures ({' '.join(ENDINGS)}{held})")
    # All headers before any picture: a long evaluation must not end at its last file.
    first, grey = None, True
    for file in files:
        try:
            height, width, is_grey = images.header(file)
        except images.BadImage as error:
            raise wrong(field, name, f"pictures that can be read ({file.name}: {error})") from None
        first, grey = first or (height, width), grey and is_grey
        if (height, width) != first:
            sizes = f"{files[0].name} is {first[0]}x{first[1]}, {file.name} {height}x{width}"
            raise wrong(field, name, f"pictures of one size ({sizes})")
    channels = 1 if grey else 3

    def read(part: slice) -> np.ndarray:
        try:
            return np.stack(
                [
                    images.decode(file, channels=channels, size=None, center_crop=True)
                    for file in files[part]
                ]
            )
        except images.BadImage as error:
            raise wrong(field, name, f"pictures that can be read ({error})") from None

    return PictureSet(name, (len(files), *first, channels), read, left_out)
