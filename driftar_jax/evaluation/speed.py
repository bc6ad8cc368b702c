"""How fast methods are: alternating in one process, compilation apart, with their spread."""

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np

ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class Speed:
    """Images per second of one method at one batch size.

    Attributes:
      median, low, high: over the rounds.
      compile_s: seconds of the first call, less a later one.
      ratios: this method's speed over the reference's, round by round.
    """

    median: float
    low: float
    high: float
    compile_s: float
    ratios: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Return the median of `ratios`."""
        return float(np.median(self.ratios))


def alternate(
    methods: Sequence[Callable[[], object]], batch_size: int, *, rounds: int = ROUNDS
) -> list[Speed]:
    """Time every method once per round, in turn, so that a slow moment hits all of them.

    Args:
      methods: each makes `batch_size` images and returns when they are there; the first is the
        reference of the ratios.
      batch_size: images per call.
      rounds: at least 1.

    Returns:
      One `Speed` per method, in order.
    """
    first = [_seconds(method) for method in methods]
    seconds = np.array([[_seconds(method) for method in methods] for _ in range(rounds)])
    speeds = batch_size / seconds
    return [
        Speed(
            median=float(np.median(speeds[:, i])),
            low=float(speeds[:, i].min()),
            high=float(speeds[:, i].max()),
            compile_s=float(max(first[i] - np.median(seconds[:, i]), 0.0)),
            ratios=tuple(float(r) for r in speeds[:, i] / speeds[:, 0]),
        )
        for i in range(len(methods))
    ]


def _seconds(method: Callable[[], object]) -> float:
    start = time.perf_counter()
    method()
    return time.perf_counter() - start
