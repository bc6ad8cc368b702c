"""How far to draft: the number of groups that makes the most of measured costs and acceptance."""

from collections.abc import Mapping, Sequence

import numpy as np


def acceptance(lengths: np.ndarray) -> np.ndarray:
    """Chance that a draft stands, given that all before it in its round do.

    Args:
      lengths: `[gamma + 1]` rounds by their number of accepted groups, drafts going to gamma.

    Returns:
      `[gamma]` float64; of a draft that was never reached, that of the one before it.
    """
    reached = np.cumsum(lengths[::-1])[::-1].astype(np.float64)  # rounds with at least j accepted
    chances = []
    for j in range(1, len(lengths)):
        before = chances[-1] if chances else 0.0
        chances.append(reached[j] / reached[j - 1] if reached[j - 1] else before)
    return np.array(chances)


def groups_per_call(chances: Sequence[float], gamma: int) -> float:
    """Expected groups that a backbone call yields: the accepted ones and the target's own."""
    return 1.0 + float(np.cumprod(np.asarray(chances)[:gamma]).sum())


def best(chances: Sequence[float], seconds: Mapping[int, float]) -> int:
    """The gamma with the most expected groups per second; the smaller one where they are equal.

    Args:
      chances: of `acceptance`, at least as long as the largest gamma.
      seconds: gamma, 0 among them, to the seconds of a round with so many drafts.
    """
    rate = {g: groups_per_call(chances, g) / s for g, s in sorted(seconds.items())}
    return max(rate, key=rate.get)
