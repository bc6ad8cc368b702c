"""Samples beside real pictures of the same class or caption, for a reader to judge by eye.

The real ones are held out of the training, chosen once and for all: nobody picks them.
"""

import dataclasses
import math
import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from driftar_jax.config import wrong
from driftar_jax.data import is_latents, pictures, pipeline
from driftar_jax.sampling import inpaint

PAIRS = 12
_SIDE, _GAP, _COLUMNS = 96, 14, 4


@dataclasses.dataclass(frozen=True)
class Originals:
    """Real pictures.

    Attributes:
      images: uint8 `[n, H, W, C]`.
      request: what shall be drawn: classes `[n]` int32 and None, or None and captions.
      names: what stands under each.
    """

    images: np.ndarray
    request: tuple[np.ndarray | None, list[str] | None]
    names: list[str]


def real(generator: Any, name: str | None, number: int) -> Originals:
    """Choose held-out pictures, each of another class as far as there are classes.

    Args:
      generator: the `Generator` that shall draw beside them.
      name: of the image set; None: the one that it was trained on.
      number: of pictures.

    Raises:
      ValueError: no set of that name, or one of other pictures or classes.
    """
    if generator.model.images.edits:
        raise wrong("sheet", True, "false for a run on pairs (held-out edits are drawn without it)")
    trained = generator.manifest.get("pictures", generator.config.data.name)
    called = trained if name is None else name
    if is_latents(called):
        raise wrong("real", name, f"--real=NAME: pictures, for {called} holds latents")
    height, width, channels = inpaint.pixel_shape(generator)
    source = pipeline.load_source(called, "test", image_size=height)
    pipeline.tell_left_out(source)
    if source.image_shape != (height, width, channels):
        shape = "x".join(map(str, source.image_shape))
        raise wrong("real", f"{called} of {shape}", f"pictures of {height}x{width}x{channels}")
    classes = generator.model.images.class_names
    if tuple(source.class_names) != tuple(classes):
        raise wrong("real", called, f"a set of the checkpoint's {len(classes)} classes")
    images, labels = pipeline.all_images(source)
    chosen = _spread(labels, number)
    if generator.reader.takes == "captions":
        if source.captions is None:
            raise wrong("real", called, "a set with captions")
        texts = [source.captions[i] for i in chosen]
        return Originals(images[chosen], (None, texts), texts)
    labels = labels[chosen].astype(np.int32)
    return Originals(images[chosen], (labels, None), [classes[label] for label in labels])


def _spread(labels: np.ndarray, number: int) -> np.ndarray:
    """Indices of `number` pictures, from all classes in turn, in an order that never changes."""
    order = np.random.default_rng(0).permutation(len(labels))
    of_class: dict[int, int] = {}
    turns = []
    for i in order.tolist():
        turns.append(of_class.setdefault(int(labels[i]), 0))
        of_class[int(labels[i])] += 1
    first = order[np.argsort(turns, kind="stable")][:number]
    if len(first) < number:
        raise wrong("num", number, f"1 to {len(first)} held-out pictures")
    return first


def write(
    path: str | pathlib.Path, originals: np.ndarray, samples: np.ndarray, names: Sequence[str]
) -> None:
    """Write pairs as PNG: the real picture at the left, the sample at the right, the name below.

    Args:
      path: of the file.
      originals, samples: uint8 `[n, H, W, C]`.
      names: n of them.
    """
    scale = max(1, round(_SIDE / originals.shape[1]))
    width, height = originals.shape[2] * scale, originals.shape[1] * scale
    font, small = pictures.letters(11), ImageFont.load_default(11)
    lines = [textwrap.wrap(name, max(10, 2 * width // 6))[:2] for name in names]
    cell = 2 * width + 4 + _GAP, height + 36 + _GAP
    columns = min(_COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    sheet = Image.new("RGB", (columns * cell[0] + _GAP, rows * cell[1] + 2 * _GAP + 8), "white")
    draw = ImageDraw.Draw(sheet)
    for column in range(columns):
        left = _GAP + column * cell[0]
        draw.text((left + width // 2, 8), "real, held out", (90, 98, 108), small, anchor="mt")
        draw.text((left + 4 + 3 * width // 2, 8), "made", (31, 122, 90), small, anchor="mt")
    for i, pair in enumerate(zip(originals, samples, strict=True)):
        left, top = _GAP + i % columns * cell[0], 2 * _GAP + i // columns * cell[1]
        for side, image in enumerate(pair):
            picture = pictures.to_pil(image, scale).convert("RGB")
            sheet.paste(picture, (left + side * (width + 4), top))
        for row, line in enumerate(lines[i]):
            draw.text((left, top + height + 3 + 15 * row), line, (28, 32, 38), font)
    sheet.save(path)
