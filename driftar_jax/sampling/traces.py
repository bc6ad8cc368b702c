"""How pictures grew: tokens and entropy after every AR step, and pictures of them.

The numbers are a second output of the program that made the pictures (`types.Trace`), so that what
is shown is what was sampled. A token never changes once it is made: one array of tokens and the
step that made each say all.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from driftar_jax.config import wrong
from driftar_jax.data.pixels import unpatchify
from driftar_jax.hosts.base import Model
from driftar_jax.sampling.settings import Settings
from driftar_jax.types import Trace

# What a picture shows where nothing is made yet.
BLANK = 226


def check(model: Model, settings: Settings) -> None:
    """Raise ValueError where nothing can be traced: whole grids, and drafts."""
    if can(model, settings):
        return
    if model.family.order == "grid":
        raise wrong("trace", True, "false: this host makes whole grids, nothing grows")
    if settings.draft_steps:
        raise wrong("trace", True, "false with a draft model: some of its tokens are replaced")
    why = f"false with gamma {settings.gamma}: drafts are taken back, --lookahead is traced"
    raise wrong("trace", True, why)


def joined(parts: Sequence[Trace]) -> Trace:
    """Join the traces of several batches; arrays `[n, ...]`."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def calls(trace: Trace) -> int:
    """Return T, the backbone calls of the slowest image that made tokens."""
    return int(trace.turn.max()) + 1


def known(trace: Trace, step: int) -> np.ndarray:
    """Say which tokens stand after `step` (-1: before the first), `[n, N]` bool."""
    return np.asarray(trace.turn) <= step


def tokens(trace: Trace, step: int) -> np.ndarray:
    """Return the tokens as they are after `step`, `[n, N, C]` float32, 0 where there is none."""
    return np.where(known(trace, step)[..., None], trace.tokens, np.float32(0))


def entropy(trace: Trace, step: int) -> np.ndarray:
    """Return `E` as it is after `step`, `[n, N]` float32.

    A host that sees the whole grid has an entropy for every token, made or not. One that makes
    token after token has them for those that it made: NaN elsewhere.
    """
    entropies = np.asarray(trace.entropy)
    # More than one array: the host saw the whole grid in each step, and the trace kept them all.
    if entropies.shape[1] > 1:
        return entropies[:, min(max(step, 0), entropies.shape[1] - 1)]
    return np.where(known(trace, step), entropies[:, 0], np.float32(np.nan))


def moments(trace: Trace, most: int) -> list[int]:
    """Choose at most `most` steps, evenly spread, -1 (nothing is made) and the last among them."""
    last = calls(trace) - 1
    # From -1 to `last` there are `last + 2` different steps: asking for more would repeat some.
    return np.unique(np.round(np.linspace(-1, last, min(most, last + 2))).astype(int)).tolist()


def pictures(generator: Any, trace: Trace, steps: Sequence[int]) -> np.ndarray:
    """Make pictures of the growth.

    Args:
      generator: the `Generator` whose trace it is; its autoencoder decodes, if it has one.
      trace: of n images.
      steps: S of them; -1 is before the first.

    Returns:
      uint8 `[S, n, H, W, C]`, grey where no token is made yet; the last step is the picture itself.
    """
    images, frames = generator.model.images, []
    for step in steps:
        grid = unpatchify(tokens(trace, step), *images.image_shape[:2], images.patch_size)
        # Decoded anew at each step and not cut out of the last picture: an autoencoder mixes
        # neighbours, and later tokens would shine through.
        picture = np.asarray(generator.to_pixels(grid))
        stands = known(trace, step).reshape(-1, *images.grid)
        for axis in (1, 2):
            stands = np.repeat(stands, picture.shape[axis] // images.grid[axis - 1], axis=axis)
        frames.append(np.where(stands[..., None], picture, np.uint8(BLANK)))
    return np.stack(frames)


@dataclasses.dataclass(frozen=True)
class Grown:
    """Samples with their trace, and what they took.

    Attributes:
      samples: `generator.Samples`.
      seconds: of the call.
      compiling: what the first call took beyond that; 0 where the program was there.
    """

    samples: Any
    seconds: float
    compiling: float


def grow(generator: Any, settings: Settings, condition: Any, seed: int, fresh: bool) -> Grown:
    """Sample with a trace where the model has one, and measure it.

    Args:
      generator: a `Generator`.
      settings: checked ones.
      condition: of `generator.conditions`, all made in one call.
      seed: as of `Generator.sample`.
      fresh: whether the program may have to be compiled; then a first call is not counted.
    """
    trace = can(generator.model, settings)
    batch = len(jax.tree.leaves(condition)[0])

    def make():
        return generator.collect(settings, condition, seed, batch, trace=trace)

    return timed(make, fresh)


def timed(make: Callable[[], Any], fresh: bool) -> Grown:
    """Make samples and measure it; `fresh`: by a second call, the first of which may compile."""
    times = [time.perf_counter()]
    for _ in range(1 + fresh):
        samples = make()
        times.append(time.perf_counter())
    # A first call compiles and runs once; less a run it is the compiler's share. Where nothing had
    # to be compiled the difference is noise, and may be negative.
    *compiling, seconds = np.diff(times).tolist()
    return Grown(samples, seconds, max(sum(compiling) - seconds, 0.0))


def can(model: Model, settings: Settings) -> bool:
    """Say whether pictures made so can be traced."""
    return model.family.order != "grid" and not (settings.drafts or settings.draft_steps)
