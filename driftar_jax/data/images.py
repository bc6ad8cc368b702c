"""From an encoded picture to a uint8 array of the wanted size and channels."""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_ORIENTATION = 0x0112
_GREY_MODES = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N")
_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
# What Pillow raises on damaged or hostile files, and nothing wider.
_DAMAGE = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    SyntaxError,
    EOFError,
    ValueError,
)


class BadImage(Exception):
    """A picture that cannot be used; the text says why and fits in a line."""


def header(file) -> tuple[int, int, bool]:
    """Height, width (as the picture is meant to be looked at) and "is grey", without decoding.

    `file` is a path or a binary stream. Raises `BadImage`.
    """
    try:
        with Image.open(file) as picture:
            _check_mode(picture)
            width, height = picture.size
            # Pillow decodes a whole PNG to look for EXIF behind the pixels; nobody puts it there.
            has_exif = picture.format != "PNG" or "exif" in picture.info
            if has_exif and picture.getexif().get(_ORIENTATION) in _SIDEWAYS:
                width, height = height, width
            return height, width, picture.mode in _GREY_MODES
    except _DAMAGE as error:
        raise BadImage(_line(error)) from None


def decode(file, *, channels: int, size: int | None, center_crop: bool) -> np.ndarray:
    """One picture as uint8 `[H, W, channels]`.

    Args:
      file: path, bytes or binary stream of any format that Pillow reads.
      channels: 1 (grey) or 3 (RGB). 16-bit grey keeps its high byte, transparency is put on
        white, CMYK becomes RGB, the EXIF orientation is applied.
      size: side of the result; None keeps the picture's own size.
      center_crop: crop the middle square (`crop_to`); otherwise the whole picture is squeezed
        to `size` x `size`.

    Raises:
      BadImage: damaged, or of a kind that has no faithful 8-bit form (float, 32-bit).
    """
    if isinstance(file, bytes):
        file = io.BytesIO(file)
    try:
        with Image.open(file) as picture:
            _check_mode(picture)
            picture.load()
            ImageOps.exif_transpose(picture, in_place=True)
            picture = _to_channels(picture, channels)
    except _DAMAGE as error:
        raise BadImage(_line(error)) from None
    if size is not None and picture.size != (size, size):
        picture = crop_to(picture, size) if center_crop else _squeeze_to(picture, size)
    return np.asarray(picture, np.uint8).reshape(picture.height, picture.width, channels)


def crop_to(picture: Image.Image, size: int) -> Image.Image:
    """The middle `size` x `size` square, scaled as ADM does (guided-diffusion, `image_datasets`).

    The box filter halves while the short side is at least twice `size`; bicubic does the rest, so
    that it never shrinks by more than two and does not alias.
    """
    picture = _halve(picture, size)
    scale = size / min(picture.size)
    width, height = (round(side * scale) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return picture.crop((left, top, left + size, top + size))


def _squeeze_to(picture: Image.Image, size: int) -> Image.Image:
    return _halve(picture, size).resize((size, size), Image.Resampling.BICUBIC)


def _halve(picture: Image.Image, size: int) -> Image.Image:
    while min(picture.size) >= 2 * size:
        width, height = picture.size
        picture = picture.resize((width // 2, height // 2), Image.Resampling.BOX)
    return picture


def _check_mode(picture: Image.Image) -> None:
    if picture.mode not in _GREY_MODES + _COLOUR_MODES:
        raise BadImage(f"pixel format {picture.mode!r}, allowed 8-bit, or 16-bit grey")


def _to_channels(picture: Image.Image, channels: int) -> Image.Image:
    if picture.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255 instead of scaling.
        picture = Image.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8))
    elif picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture)
    mode = "L" if channels == 1 else "RGB"
    return picture if picture.mode == mode else picture.convert(mode)


def _line(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image that can be read"
    return " ".join(str(error).split()) or type(error).__name__
