"""`lookahead=auto`: how far to look ahead with this checkpoint, on this machine, in this batch.

How many tokens a call settles and what a longer call costs are both in the time of a batch, so that
batches are what is timed: plain, then with one window after another as long as that helps.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from driftar_jax import seeds
from driftar_jax.hosts.base import Model
from driftar_jax.sampling import drafted, plain
from driftar_jax.sampling.draft_count import fastest
from driftar_jax.sampling.settings import Settings

CANDIDATES = (4, 8, 16, 32)
# What a window has to win: less is what one measurement differs from the next.
MARGIN = 0.97
# Batches of the winner and of plain decoding by turns, before it is believed, and how many of them
# it has to win. Where a window is 5 % slower and times scatter by 10 %, the median alone is below
# the margin in 15 % of all cases, with most turns won in 5 %.
TURNS, WINS = 5, 4


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was found out.

    Attributes:
      settings: with the chosen window.
      seconds: of generating a batch, by window; plain decoding is 0.
      finding_out: seconds that all this took.
    """

    settings: Settings
    seconds: dict[int, float]
    finding_out: float


# Seeds that no window was chosen with.
_UNSEEN = 1000


def choose(
    model: Model,
    settings: Settings,
    params: Mapping[str, Any],
    batch_size: int,
    condition: Any,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Choice:
    """Find the fastest window for a checkpoint and its settings; 0 where none pays.

    Args:
      model, params: of a host that makes one token after another.
      settings: checked; its window is not read.
      batch_size: of the calls to come, at least 1.
      condition: of some images, leaves `[n, ...]`; what it is tried with, in turn.
      clock: seconds; another one for tests.
    """
    begin = clock()
    index = np.arange(batch_size, dtype=np.int32)
    condition = jax.tree.map(lambda a: np.asarray(a)[index % len(a)], condition)
    args = params, condition, index

    def with_window(size):
        ahead = dataclasses.replace(settings, lookahead=size)
        if not size:
            return lambda seed: plain.generate(model, ahead, *args, seeds.argument(seed))
        rule, plainly = ahead.speculation, ahead.plainly
        return lambda seed: drafted.generate(model, rule, plainly, *args, seeds.argument(seed))

    seconds, best = {}, 0
    for size in (0, *(w for w in CANDIDATES if w <= settings.ar_steps)):
        call = with_window(size)
        # Once unmeasured: it compiles.
        jax.block_until_ready(call(0))
        seconds[size] = fastest(call, clock)
        # Longer windows cost more and settle hardly more, so the first that does not win ends the
        # search. The smallest may lose where a longer one wins, and does not end it.
        if seconds[size] >= seconds[best] and size > CANDIDATES[0]:
            break
        if seconds[size] < seconds[best]:
            best = size
    chosen = best if best and _holds(with_window(0), with_window(best), clock) else 0
    settings = dataclasses.replace(settings, lookahead=chosen)
    return Choice(settings, seconds, clock() - begin)


def _holds(plainly, ahead, clock) -> bool:
    """Whether a window wins on images that did not choose it, by turns with plain decoding.

    The fastest of a few batches may have been a lucky one: seeds differ in how much they settle,
    and a busy machine slows one call and not the next.
    """
    ratios = []
    for turn in range(TURNS):
        taken = []
        for call in (plainly, ahead):
            start = clock()
            jax.block_until_ready(call(_UNSEEN + turn))
            taken.append(clock() - start)
        ratios.append(taken[1] / taken[0])
    won = sum(ratio < 1 for ratio in ratios)
    return won >= WINS and float(np.median(ratios)) < MARGIN
