"""A moving picture of heads at work: their images side by side, growing AR step by AR step.

Every head plays at the pace that was measured, all by one clock; the AR steps of a head share its
seconds evenly. Under each picture stands the entropy of the same moment, bright where the backbone
is unsure.
"""

import dataclasses
import math
import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from driftar_jax.data import pictures
from driftar_jax.sampling import traces
from driftar_jax.sampling.settings import Settings, read_by

MOST_PICTURES = 4  # of a head
_MOMENTS = 24  # different pictures of a head
_PICTURE = 104  # pixels of its side, about
_GAP = 8
_FRAMES = 10  # a second
# Seconds that the slowest head plays; others play slower or faster than measured, and it is said.
_PLAYS = 3.0, 6.0
_REST = 2500  # milliseconds of the last frame
_INK, _PAPER, _FAINT = (28, 32, 38), (255, 255, 255), (120, 128, 138)


@dataclasses.dataclass(frozen=True)
class Side:
    """A head and what it made.

    Attributes:
      title: what it is called.
      moments: uint8 `[S, n, H, W, C]`, S pictures of each image, the first of nothing.
      entropy: float32 `[S, n, h, w]`, NaN where there is none.
      seconds: that it took.
      calls: of the backbone; `evaluations` of the head.
    """

    title: str
    moments: np.ndarray
    entropy: np.ndarray
    seconds: float
    calls: float
    evaluations: float


@dataclasses.dataclass(frozen=True)
class Head:
    """What draws: a `Generator`, checked settings, and conditions of its `conditions`."""

    generator: Any
    settings: Settings
    condition: Any


def beside(baseline, changes: dict, subjects: Sequence, seed: int) -> Head:
    """Return the own head that is shown beside another one, as its checkpoint samples.

    Args:
      baseline: its `Generator`.
      changes: of the settings; what it does not read is for the other head.
      subjects, seed: as of `Generator.sample`.

    Raises:
      ValueError: it does not take what is asked, or a change does not fit.
    """
    settings = baseline.checked(**baseline_changes(baseline.model, changes))
    return Head(baseline, settings, baseline.conditions(subjects, seed, settings))


def own_changes(baseline, model, changes: dict) -> dict:
    """Return the changes without those that `baseline` reads and `model` does not."""
    if baseline is None:
        return changes
    others = baseline_changes(baseline.model, changes).keys() - read_by(model)
    return {name: value for name, value in changes.items() if name not in others}


def show(out: pathlib.Path, heads: Sequence[Head], names: Sequence[str], seed: int) -> str:
    """Write `growth.gif` of all heads and `growth.png` of the last; return a line for each."""
    sides, lines = [], []
    for head in heads:
        few = jax.tree.map(lambda a: a[:MOST_PICTURES], head.condition)
        settings = head.generator.with_draft_count(head.settings, few, None)
        grown = traces.grow(head.generator, settings, few, seed, fresh=True)
        sides.append(side(head.generator, settings, grown))
        number = len(grown.samples.images)
        lines.append(f"{sides[-1].title}: {number} images in {grown.seconds:.3f} s")
    write(out / "growth.gif", sides, names)
    strip(out / "growth.png", sides[-1])
    return "\n".join(lines)


def title_of(settings: Settings) -> str:
    """Return what a head is called: `own head, 50 evaluations`."""
    names = {"own": "own head", "drift": "Drift-AR", "mean": "prior mean"}
    number = settings.evaluations
    return f"{names[settings.method]}, {number:g} evaluation{'' if number == 1 else 's'} per step"


def side(generator, settings: Settings, grown: traces.Grown) -> Side:
    """Return the side of a head.

    Args:
      generator: its `Generator`.
      settings: checked ones.
      grown: of `traces.grow`, with a trace.
    """
    trace, counts = grown.samples.trace, grown.samples.counts
    steps = traces.moments(trace, _MOMENTS)
    grid = generator.model.images.grid
    entropy = np.stack([traces.entropy(trace, step).reshape(-1, *grid) for step in steps])
    return Side(
        title_of(settings),
        traces.pictures(generator, trace, steps),
        entropy,
        grown.seconds,
        float(counts.backbone_calls),
        float(counts.head_evaluations),
    )


def baseline_changes(model, changes: dict) -> dict:
    """Return the changes of the settings that the other head reads, which is sampled plainly."""
    apart = {"method", "gamma", "lookahead", "rule", "delta", "stop", "bound", "guidance_form"}
    return {k: v for k, v in changes.items() if v is not None and k in read_by(model) - apart}


def write(path: str | pathlib.Path, sides: Sequence[Side], names: Sequence[str]) -> None:
    """Write the sides as one GIF that begins anew when it ends.

    Args:
      path: of the file.
      sides: one or two of the same number of pictures.
      names: what stands under each picture.
    """
    slowest = max(side.seconds for side in sides)
    playing = min(max(slowest, _PLAYS[0]), _PLAYS[1])
    # One scale of colours for all sides: they are compared with each other.
    entropies = np.concatenate([side.entropy.ravel() for side in sides])
    span = float(np.nanmin(entropies)), float(np.nanmax(entropies))
    number = max(2, math.ceil(playing * _FRAMES) + 1)
    clocks = np.linspace(0.0, slowest, number).tolist()
    frames = [_frame(sides, names, clock, slowest / playing, span) for clock in clocks]
    # One palette for all frames: each with its own would flicker.
    palette = frames[-1].quantize(255, method=Image.Quantize.MEDIANCUT)
    frames = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    # A GIF counts in hundredths of a second.
    durations = [round(1000 * playing / (number - 1) / 10) * 10] * (number - 1) + [_REST]
    first, *others = frames
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0, optimize=True)


def strip(path: str | pathlib.Path, side: Side, most: int = 8) -> None:
    """Write the growth of a head as PNG: a row of moments for each picture, its entropy below."""
    steps = np.unique(np.linspace(0, len(side.moments) - 1, most).round().astype(int))
    span = float(np.nanmin(side.entropy)), float(np.nanmax(side.entropy))
    rows = []
    for image in range(side.moments.shape[1]):
        rows.append([_enlarged(side.moments[step, image]) for step in steps])
        size = rows[0][0].size
        rows.append([_map(side.entropy[step, image], size, span) for step in steps])
    width, height = rows[0][0].size
    sheet = Image.new("RGB", (len(steps) * (width + 4), len(rows) * (height + 4)), _PAPER)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * (width + 4) + 2, y * (height + 4) + 2))
    sheet.save(path)


def _frame(sides, names, clock: float, pace: float, span: tuple[float, float]) -> Image.Image:
    """The picture of all sides at `clock` seconds."""
    panels = [_panel(side, names, clock, pace, span) for side in sides]
    width = sum(panel.width for panel in panels) + 3 * _GAP * (len(panels) - 1) + 2 * _GAP
    frame = Image.new("RGB", (width, panels[0].height + 2 * _GAP), _PAPER)
    left = _GAP
    for panel in panels:
        frame.paste(panel, (left, _GAP))
        left += panel.width + 3 * _GAP
    return frame


def _panel(side: Side, names, clock: float, pace: float, span) -> Image.Image:
    number = min(side.moments.shape[1], MOST_PICTURES)
    share = 1.0 if side.seconds <= 0 else min(clock / side.seconds, 1.0)
    # The end must be reached, although shares are rounded.
    moment = int(share * (len(side.moments) - 1) + 1e-9)
    shown = [_enlarged(side.moments[moment, i]) for i in range(number)]
    maps = [_map(side.entropy[moment, i], shown[0].size, span) for i in range(number)]
    width, height = shown[0].size
    label, large, small = (ImageFont.load_default(size) for size in (15, 30, 11))
    of_names = pictures.letters(10)
    lines = [textwrap.wrap(name, max(8, width // 6))[:2] for name in names[:number]]
    below = 14 * max((len(line) for line in lines), default=0)
    # Title and counts want some room above a single small picture, too.
    total = max(number * (width + _GAP) - _GAP, 300)
    top = 74
    panel = Image.new("RGB", (total, top + 2 * height + _GAP + below + 18), _PAPER)
    draw = ImageDraw.Draw(panel)
    draw.text((0, 0), side.title, _INK, label)
    seconds = f"{min(clock, side.seconds):.2f} s"
    draw.text((0, 22), seconds, _INK, large)
    done = share >= 1
    said = f"{side.calls:g} backbone calls, {side.evaluations:g} head evaluations"
    draw.text((130, 32), said if done else "...", _FAINT, small)
    draw.rectangle((0, top - 14, total - 1, top - 10), (232, 234, 238))
    draw.rectangle((0, top - 14, int(share * (total - 1)), top - 10), (46, 125, 96))
    for i, (picture, entropies) in enumerate(zip(shown, maps, strict=True)):
        left = i * (width + _GAP)
        panel.paste(picture, (left, top))
        for row, line in enumerate(lines[i] if i < len(lines) else ()):
            draw.text((left, top + height + 3 + 14 * row), line, _INK, of_names)
        panel.paste(entropies, (left, top + height + _GAP + below))
    said = f"the backbone's entropy, {span[0]:.2f} (dark, sure) to {span[1]:.2f}"
    if not 0.95 < pace < 1.05:
        said += f"; {pace:.2g} of the measured pace"
    draw.text((0, panel.height - 14), said, _FAINT, small)
    return panel


def _enlarged(image: np.ndarray) -> Image.Image:
    scale = max(1, round(_PICTURE / image.shape[0]))
    return pictures.to_pil(image, scale).convert("RGB")


def _map(entropy: np.ndarray, size: tuple[int, int], span: tuple[float, float]) -> Image.Image:
    """`entropy [h, w]` as a picture, dark at the low end of `span`, grey where there is none."""
    value = (np.nan_to_num(entropy, nan=span[0])[..., None] - span[0]) / max(
        span[1] - span[0], 1e-6
    )
    dark, middle, bright = (np.array(c) for c in ((34, 22, 82), (190, 55, 82), (252, 231, 120)))
    low, high = np.clip(2 * value, 0, 1), np.clip(2 * value - 1, 0, 1)
    colours = dark + low * (middle - dark) + high * (bright - middle)
    colours = np.where(np.isnan(entropy)[..., None], traces.BLANK, colours).astype(np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.NEAREST)
