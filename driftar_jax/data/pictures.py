"""Pictures on disk: image grids and curves as PNG."""

import importlib.util
import math
import pathlib
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_LETTERS = 13  # height of the names beside a grid, in pixels
_PICTURE, _CAPTION = 160, 11  # side of a picture and height of the letters under it, in pixels


def to_pil(image: np.ndarray, scale: int = 1) -> Image.Image:
    """Return uint8 `[H, W, 1 or 3]`, enlarged by whole pixels so that small images can be seen."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    size = (image.shape[1] * scale, image.shape[0] * scale)
    return picture.resize(size, Image.Resampling.NEAREST)


def grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Map uint8 `[n, H, W, C]` -> one uint8 image, row by row, white where there is none."""
    n, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    # A white line around every picture: without it dark ones would run into each other.
    padded = np.full((rows * columns, height + 2, width + 2, channels), 255, np.uint8)
    padded[:n, 1:-1, 1:-1] = images
    padded = padded.reshape(rows, columns, height + 2, width + 2, channels)
    padded = padded.transpose(0, 2, 1, 3, 4)
    return padded.reshape(rows * (height + 2), columns * (width + 2), channels)


def save_grid(path: str | pathlib.Path, images: np.ndarray, columns: int | None = None) -> None:
    """Write a grid as PNG, small images enlarged to about 64 pixels."""
    to_pil(grid(images, columns), scale=max(1, 64 // images.shape[1])).save(path)


def save_by_class(
    path: str | pathlib.Path, images: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> None:
    """Write a row for each class, its name before it, as PNG.

    Args:
      path: of the file.
      images: uint8 `[n, H, W, C]`, enlarged to about 64 pixels; where no class has two, their names
        stand under them instead.
      labels: `[n]` classes; -1 is none.
      names: of the classes.
    """
    labels = np.asarray(labels)
    rows = [(label, images[labels == label]) for label in np.unique(labels).tolist()]
    title = lambda label: names[label] if label >= 0 else "no class"  # noqa: E731
    most = max(len(row) for _, row in rows)
    if most == 1 and len(rows) > 1:
        save_captioned(path, images, [title(label) for label in labels.tolist()])
        return
    font = letters(_LETTERS)
    before = 2 * _LETTERS + max(int(font.getlength(title(label))) for label, _ in rows)
    scale = max(1, 64 // images.shape[1])
    strips = [to_pil(grid(row, most), scale).convert("RGB") for _, row in rows]
    width, height = before + strips[0].width, sum(row.height for row in strips)
    sheet, top = Image.new("RGB", (width, height), "white"), 0
    for (label, _), row in zip(rows, strips, strict=True):
        sheet.paste(row, (before, top))
        middle = (before - _LETTERS, top + row.height // 2)
        ImageDraw.Draw(sheet).text(middle, title(label), "black", font, anchor="rm")
        top += row.height
    sheet.save(path)


def save_captioned(
    path: str | pathlib.Path, images: np.ndarray, texts: list[str], columns: int = 6
) -> None:
    """Write images with a text under each as PNG; the first 60 of them.

    Args:
      path: of the file.
      images: uint8 `[n, H, W, C]`, enlarged by whole pixels or made smaller, to at most 160 pixels.
      texts: n of them; three lines of each are shown.
      columns: images in a row, if there are as many.
    """
    images, texts = images[:60], texts[:60]
    scale = max(1, _PICTURE // max(images.shape[1:3]))
    tiles = [to_pil(image, scale).convert("RGB") for image in images]
    captions = ["\n".join(textwrap.wrap(text, 24)[:3]) for text in texts]
    for tile in tiles:
        tile.thumbnail((_PICTURE, _PICTURE))  # those alone that are larger
    columns, font = min(columns, len(tiles)), letters(_CAPTION)
    lines = max((caption.count("\n") for caption in captions), default=0) + 1
    width = _PICTURE + 2 * _CAPTION
    height = tiles[0].height + _CAPTION + lines * (_CAPTION + 4)
    sheet = Image.new("RGB", (columns * width, math.ceil(len(tiles) / columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        left, top = number % columns * width, number // columns * height
        sheet.paste(tile, (left + (width - tile.width) // 2, top + _CAPTION // 2))
        under = left + width // 2, top + _CAPTION // 2 + tile.height + 2
        draw.multiline_text(under, caption, "black", font, anchor="ma", align="center")
    sheet.save(path)


def letters(size: int) -> ImageFont.FreeTypeFont:
    """Return a font of `size` pixels, with the letters of matplotlib: Pillow's own has no accents.

    Found as a file, for matplotlib itself takes a second to import.
    """
    library = importlib.util.find_spec("matplotlib").origin
    font = pathlib.Path(library).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(font, size)


def save_curves(path: str | pathlib.Path, curves: dict[str, list[dict]], names: list[str]) -> None:
    """Draw one panel per metric of `names`, one line per run of `curves` (records of
    metrics.jsonl).
    """
    plt = pyplot()
    figure, axes = plt.subplots(1, len(names), figsize=(5.5 * len(names), 4), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for label, records in curves.items():
            # A line that somebody edited costs a point, no run.
            points = [(r["step"], r[name]) for r in records if isinstance(r.get(name), int | float)]
            if points:
                axis.plot(*zip(*points, strict=True), label=label)
        axis.set(title=name, xlabel="step")
        if len(curves) > 1:
            axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def pyplot():
    """Import matplotlib without a screen; imported late, for it is slow to load."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    # Captions and names of runs are text, never formulas.
    plt.rcParams["text.parse_math"] = False
    return plt
