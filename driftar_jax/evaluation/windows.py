"""What a call costs by its window: measured, and for chips that are not here by arithmetic.

Together with the tokens that a call settles it says where looking ahead pays. A cost needs no
trained weights; what a call settles does.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from driftar_jax import seeds
from driftar_jax.config import wrong
from driftar_jax.evaluation import speed
from driftar_jax.sampling import drafted, plain
from driftar_jax.sampling.generator import Generator
from driftar_jax.sampling.lookahead import Window
from driftar_jax.sampling.settings import Settings


def check(subject: Generator, settings: Settings, words: Sequence[str]) -> tuple[int, ...]:
    """Return windows in digits as numbers; ValueError where the subject cannot do so."""
    if not all(word.isdecimal() and int(word) > 1 for word in words):
        raise wrong("windows", ",".join(words), "whole numbers of at least 2")
    windows = tuple(int(word) for word in words)
    for window in windows:
        subject.check(settings.plainly.changed(lookahead=window))
    return windows


def costs(
    subject: Generator,
    settings: Settings,
    windows: Sequence[int],
    *,
    batch_sizes: Sequence[int],
    rounds: int,
    tell: Callable[[str], None] = print,
) -> list[dict]:
    """Time calls of several windows and of plain decoding by turns.

    Args:
      subject: what is timed; random weights will do.
      settings: checked, plain ones.
      windows: tokens made in a call.
      batch_sizes: images per call.
      rounds: timed batches of each.
      tell: takes a line for each record.

    Returns:
      Records: `batch_size`, `window`, `contexts` of a call, `seconds` of it (median), and its cost
      beside a call of plain decoding in the same round: `ratio` (median), `ratio_low`,
      `ratio_high`.
    """
    records = []
    for size in batch_sizes:
        for record in _of_batch(subject, settings.plainly, windows, size, rounds):
            records.append(record)
            tell(line(record))
    return records


def _of_batch(subject, settings, windows, size: int, rounds: int) -> list[dict]:
    condition = subject.reader.trial(subject.model, settings, size)
    args = subject.params, condition, np.arange(size, dtype=np.int32), seeds.argument(0)

    def road(window):
        if window == 1:
            return plain.generate(subject.model, settings, *args)
        # No guess may move: a call costs the same, and most calls share the reading of the prompt.
        ahead = dataclasses.replace(settings, lookahead=window, delta=0.0)
        return drafted.generate(subject.model, ahead.speculation, settings, *args)

    # The first call compiles; its counts say how many calls the seconds are for.
    calls = [settings.ar_steps] + [int(road(window)[1].batch_calls) for window in windows]
    windows = (1, *windows)
    roads = [lambda w=window: jax.block_until_ready(road(w)) for window in windows]
    records = []
    for window, number, one in zip(
        windows, calls, speed.alternate(roads, 1, rounds=rounds), strict=True
    ):
        # `ratios` are of speeds of whole batches; the cost of a call is the other way round.
        ratios = [calls[0] / number / r for r in one.ratios]
        records.append(
            {
                "batch_size": size,
                "window": window,
                "contexts": min(Window(window).contexts, settings.ar_steps),
                "seconds": 1 / one.median / number,
                "ratio": float(np.median(ratios)),
                "ratio_low": min(ratios),
                "ratio_high": max(ratios),
            }
        )
    return records


def line(record: dict) -> str:
    """Write one record for a reader."""
    return (
        f"batch {record['batch_size']}: a call that makes {record['window']} tokens takes "
        f"{1000 * record['seconds']:.2f} ms, {record['ratio']:.2f} times a plain one "
        f"({record['ratio_low']:.2f} to {record['ratio_high']:.2f})"
    )


def size_in_words(subject: Generator) -> str:
    """Return the parameters that decoding reads, in millions: of the backbone and of its head."""
    counts = {
        name: sum(int(np.size(leaf)) for leaf in jax.tree.leaves(group)) / 1e6
        for name, group in subject.params.items()
    }
    head = counts.get("head", counts.get("prior", 0) + counts.get("decoder", 0))
    return f"{counts['host']:.3g} and {head:.2g} million parameters"


# --- arithmetic --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a maker states: bytes per second of memory, operations per second of products."""

    name: str
    bandwidth: float
    operations: float


@dataclasses.dataclass(frozen=True)
class Size:
    """A host and its head.

    Attributes:
      name: for a reader.
      backbone, head: parameters that a call reads, two bytes each.
      evaluations: of the head, for a token.
    """

    name: str
    backbone: float
    head: float
    evaluations: int = 1


# bfloat16 without sparsity, of the SXM module.
H100 = Chip("H100", 3.35e12, 989e12)
# The largest is the released host of 48 layers of width 5120 (embeddings are looked up, not read)
# with its flow head of 12 layers of width 1536.
SIZES = (
    Size("1.3 billion, one evaluation", 1.3e9, 0.05e9),
    Size("14 billion, one evaluation", 13.2e9, 0.157e9),
    Size("14 billion, own head at 28", 13.2e9, 0.157e9, 28),
)


def seconds(size: Size, chip: Chip, *, contexts: int, tokens: int, batch: int) -> float:
    """Estimate the least seconds of a call that reads `contexts` of each image and makes `tokens`
    tokens.

    The larger of reading all weights once and of the products, for the backbone and for each
    evaluation of the head. Keys and values, and whatever a program wastes, are left out.
    """

    def least(weights, rows):
        return max(2 * weights / chip.bandwidth, 2 * weights * rows / chip.operations)

    backbone = least(size.backbone, contexts * batch)
    return backbone + size.evaluations * least(size.head, tokens * batch)


def ratio(size: Size, chip: Chip, window: int, batch: int) -> float:
    """Return the cost of a call of a window beside a plain one, by arithmetic."""
    ahead = seconds(size, chip, contexts=Window(window).contexts, tokens=window, batch=batch)
    return ahead / seconds(size, chip, contexts=1, tokens=1, batch=batch)
