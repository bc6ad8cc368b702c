"""From an encoded picture to a uint8 array of the wanted size and channels."""

import io
import os

import numpy as np
from PIL import Image, UnidentifiedImageError

from driftar_jax.config import wrong
from driftar_jax.storage import reasons

_ORIENTATION = 0x0112
# EXIF orientation -> what sets the picture upright; 1 is upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
# Others run programs of their own (EPS, WMF) or hold no pixels.
_FORMATS = ("PNG", "JPEG", "MPO", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM")
# A picture may declare so many pixels; more need a file that can hold them, up to the most.
_ALWAYS, _PER_BYTE, _MOST = 2**24, 256, 2**27
_LONG = 8  # times the short side, up to which a picture is scaled whole
_GREY_MODES = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N")
_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")


class BadImage(Exception):
    """A picture that cannot be used; the text says why and fits in a line."""


def header(file) -> tuple[int, int, bool]:
    """Read height, width (as the picture is meant to be looked at) and "is grey", without decoding.

    `file` is a path or a binary stream. Raises `BadImage`.
    """
    return _read(file, _look)


def _look(picture: Image.Image) -> tuple[int, int, bool]:
    width, height = picture.size
    if _orientation(picture) in _SIDEWAYS:
        width, height = height, width
    return height, width, picture.mode in _GREY_MODES


def decode(
    file, *, channels: int, size: int | None, center_crop: bool, background: int = 255
) -> np.ndarray:
    """Read one picture as uint8 `[H, W, channels]`.

    Args:
      file: path, bytes or binary stream of a PNG, JPEG, GIF, BMP, WebP, TIFF or PPM.
      channels: 1 (grey) or 3 (RGB). 16-bit grey keeps its high byte, transparency is put on
        `background`, CMYK becomes RGB, the EXIF orientation is applied.
      size: side of the result; None keeps the picture's own size.
      center_crop: crop the middle square (`crop_to`); otherwise the whole picture is squeezed
        to `size` x `size`.
      background: grey level behind what is transparent.

    Raises:
      BadImage: damaged, of a kind that has no faithful 8-bit form (float, 32-bit), or of more
        pixels than its bytes can hold.
    """

    def make(picture: Image.Image) -> Image.Image:
        turn = _UPRIGHT.get(_orientation(picture))
        picture.load()
        array = _to_channels(picture, channels, background)
        return array if turn is None else array.transpose(turn)

    picture = _read(io.BytesIO(file) if isinstance(file, bytes) else file, make)
    if size is not None and picture.size != (size, size):
        picture = crop_to(picture, size) if center_crop else _squeeze_to(picture, size)
    return np.asarray(picture, np.uint8).reshape(picture.height, picture.width, channels)


def fitted(image: np.ndarray, *, channels: int, size: int) -> np.ndarray:
    """Return the middle square of uint8 `[h, w, 1 or 3]` as `[size, size, channels]`, by `crop_to`.

    Raises:
      ValueError: it is no such array.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3) or not image.size:
        got = f"{image.dtype} {list(image.shape)}"
        raise wrong("image", got, "uint8 of height, width and 1 or 3 channels")
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    picture = _to_channels(picture, channels, 255)
    if picture.size != (size, size):
        picture = crop_to(picture, size)
    return np.asarray(picture, np.uint8).reshape(size, size, channels)


def _read(file, use):
    """What `use` makes of the picture; once more without metadata where these are in the way.

    Damaged files have Pillow raise nearly anything, and each means the same to a user.
    """
    try:
        return _open(file, use)
    except BadImage:
        raise
    except Exception as error:
        try:
            if (bare := _without_metadata(file)) is not None:
                return _open(bare, use)
        except Exception as second:
            if isinstance(second, BadImage):
                raise
        raise BadImage(reasons.of_head(_head(file)) or _line(error)) from None


def _head(file) -> bytes:
    if isinstance(file, (str, os.PathLike)):
        try:
            with open(file, "rb") as stream:
                return stream.read(64)
        except OSError:
            return b""
    file.seek(0)
    return file.read(64)


def _open(file, use):
    Image.init()
    # A build of Pillow may lack a format; asked for one that it does not know, `open` would fail
    # for all.
    formats = [name for name in _FORMATS if name in Image.OPEN]
    with Image.open(file, formats=formats) as picture:
        _check_mode(picture)
        _check_pixels(picture, file)
        return use(picture)


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation; 1 where there is none that can be understood."""
    # Pillow sets a TIFF upright by itself, its size when it is opened and its pixels when loaded.
    if picture.format == "TIFF":
        return 1
    # It decodes a whole PNG to look for EXIF behind the pixels; nobody puts it there.
    if picture.format == "PNG" and "exif" not in picture.info:
        return 1
    try:
        value = picture.getexif().get(_ORIENTATION, 1)
        # Some cameras write the orientation as a list of one number.
        return int(value[0] if isinstance(value, tuple) else value)
    except Exception:  # odd metadata, of a picture whose pixels are fine
        return 1


def _check_pixels(picture: Image.Image, file) -> None:
    """Refuse what declares more pixels than memory, or than its bytes can hold."""
    pixels = picture.width * picture.height
    if pixels <= _ALWAYS:
        return
    # A file of a few bytes may declare a picture of gigabytes; real ones hold less than this many
    # pixels a byte.
    most = min(_MOST, max(_ALWAYS, _PER_BYTE * _length(file)))
    if pixels > most:
        raise BadImage(
            f"{picture.height}x{picture.width} pixels, allowed {most} in a file of its length"
        )


def _length(file) -> int:
    if isinstance(file, (str, os.PathLike)):
        return os.path.getsize(file)
    place = file.tell()
    end = file.seek(0, io.SEEK_END)
    file.seek(place)
    return end


def _without_metadata(file) -> io.BytesIO | None:
    """The picture without what is no pixels: text, profiles, cameras' notes; None: not such a file.

    Of a PNG its critical chunks and its transparency stay, of a JPEG all but its application
    segments, save those that say how its colours are coded.
    """
    if isinstance(file, (str, os.PathLike)):
        with open(file, "rb") as stream:
            data = stream.read()
    else:
        file.seek(0)
        data = file.read()
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return io.BytesIO(data[:8] + b"".join(_chunks(data)))
    if data.startswith(b"\xff\xd8"):
        return io.BytesIO(b"\xff\xd8" + b"".join(_segments(data)))
    return None


def _chunks(data: bytes):
    at = 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"tRNS", b"IEND"):
            yield data[at : at + 12 + length]
        at += 12 + length


def _segments(data: bytes):
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        mark = data[at + 1]
        if not (0xE1 <= mark <= 0xED or mark in (0xEF, 0xFE)):
            yield data[at:end]
        at = end
    # From the start of the scan on everything is pixels, in whose bytes no marker can be told
    # apart.
    yield data[at:]


def crop_to(picture: Image.Image, size: int) -> Image.Image:
    """Cut out the middle `size` x `size` square, scaled as ADM does (guided-diffusion,
    `image_datasets`).

    The box filter halves while the short side is at least twice `size`; bicubic does the rest, so
    that it never shrinks by more than two and does not alias. Of a strip that would become very
    long only the square is scaled.
    """
    picture = _halve(picture, size)
    scale = size / min(picture.size)
    width, height = (round(side * scale) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    if max(width, height) <= _LONG * size:
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        return picture.crop((left, top, left + size, top + size))
    # The same square before it is scaled. Pillow rounds it another way, so others stay as they are.
    wide, high = picture.width / width, picture.height / height
    box = (left * wide, top * high, (left + size) * wide, (top + size) * high)
    return picture.resize((size, size), Image.Resampling.BICUBIC, box=box)


def _squeeze_to(picture: Image.Image, size: int) -> Image.Image:
    return _halve(picture, size).resize((size, size), Image.Resampling.BICUBIC)


def _halve(picture: Image.Image, size: int) -> Image.Image:
    while min(picture.size) >= 2 * size:
        width, height = picture.size
        # Halves exactly, as ADM does, whose published statistics are of images made so.
        picture = picture.resize((width // 2, height // 2), Image.Resampling.BOX)
    return picture


def _check_mode(picture: Image.Image) -> None:
    if picture.mode not in _GREY_MODES + _COLOUR_MODES:
        raise BadImage(f"pixel format {picture.mode!r}, allowed 8-bit, or 16-bit grey")


def _to_channels(picture: Image.Image, channels: int, background: int) -> Image.Image:
    if picture.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255 instead of scaling, and forgets the one value that a
        # PNG may call transparent.
        values = np.asarray(picture).astype(np.uint16)
        clear = values == picture.info.get("transparency", -1)
        picture = Image.fromarray(np.where(clear, background, values >> 8).astype(np.uint8))
    elif picture.has_transparency_data:
        picture = picture.convert("RGBA")
        behind = Image.new("RGBA", picture.size, (background, background, background, 255))
        picture = Image.alpha_composite(behind, picture)
    mode = "L" if channels == 1 else "RGB"
    return picture if picture.mode == mode else picture.convert(mode)


def _line(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image that can be read"
    return " ".join(str(error).split()) or type(error).__name__
