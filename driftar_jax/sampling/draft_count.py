"""`gamma=auto`: how far to draft on this machine, with this checkpoint, at this batch size.

A probe generates one batch with the most drafts: its accepted lengths give the chance of each
draft. Rounds are timed, so that the price of drafts and of longer calls is this machine's. What
they predict is checked against plain decoding before it is used, so that a wrong prediction costs
the finding out and nothing more.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from driftar_jax import seeds
from driftar_jax.hosts.base import Model
from driftar_jax.sampling import drafted, plain
from driftar_jax.sampling.settings import Settings

CANDIDATES = (1, 2, 4)
ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was found out.

    Attributes:
      settings: with the chosen gamma.
      acceptance: chance of each draft, given the ones before it.
      seconds: of generating a batch, by gamma; plain decoding is 0.
      predicted: gamma of the most expected groups per second.
      finding_out: seconds that all this took.
    """

    settings: Settings
    acceptance: tuple[float, ...]
    seconds: dict[int, float]
    predicted: int
    finding_out: float


def choose(
    model: Model,
    settings: Settings,
    params: dict[str, Any],
    batch_size: int,
    condition: Any,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Choice:
    """Find the fastest gamma for these settings; 0 where drafts do not pay.

    Args:
      model, params: of a Drift-AR run.
      settings: checked; its gamma is not read.
      batch_size: of the calls to come, at least 1.
      condition: of some images, leaves `[n, ...]`; what it is tried with, in turn.
      clock: seconds; another one for tests.
    """
    begin = clock()
    most = settings.ar_steps - 1
    candidates = [g for g in CANDIDATES if g <= most] or [most]
    index = np.arange(batch_size, dtype=np.int32)
    # The batch is filled with the conditions in turn: time depends on its size, not on what is in
    # it.
    condition = jax.tree.map(lambda a: np.asarray(a)[index % len(a)], condition)
    # As `batches.stream` asks: one compilation serves both.
    plainly = settings.plainly

    def without_drafts(seed):
        return plain.generate(model, plainly, params, condition, index, seeds.argument(seed))

    def with_drafts(gamma):
        rule, args = settings.draft_rule(gamma), (params, condition, index)
        return lambda seed: drafted.generate(model, rule, plainly, *args, seeds.argument(seed))

    # One probe with the most drafts tells the chance of every shorter run as well.
    _, speculation = jax.block_until_ready(with_drafts(candidates[-1])(0))
    chances = acceptance(np.asarray(speculation.lengths.sum(axis=0)))
    calls = {0: without_drafts} | {g: with_drafts(g) for g in candidates}
    if chances[0] == 0:
        calls = {0: without_drafts}  # nothing is accepted: no timing could recommend it
    seconds, per_round = {}, {}
    for g, call in calls.items():
        _, counts = jax.block_until_ready(call(0))
        # Seconds of a round: accepted lengths of the timed seeds must not decide between the
        # candidates.
        rounds = settings.ar_steps if g == 0 else int(counts.batch_calls)
        seconds[g] = fastest(call, clock)
        per_round[g] = seconds[g] / rounds
    predicted = best(chances, per_round)
    # A prediction is believed only where the measured batch is faster as well.
    chosen = predicted if seconds[predicted] < seconds[0] else 0
    return Choice(
        settings=settings.changed(gamma=chosen),
        acceptance=tuple(float(c) for c in chances),
        seconds=seconds,
        predicted=predicted,
        finding_out=clock() - begin,
    )


def fastest(call: Callable[[int], Any], clock) -> float:
    """Return the seconds of the fastest of a few calls: what disturbs one only makes it slower."""
    times = []
    for seed in range(ROUNDS):
        start = clock()
        jax.block_until_ready(call(seed))
        times.append(clock() - start)
    return min(times)


def acceptance(lengths: np.ndarray) -> np.ndarray:
    """Return the chance that a draft stands, given that all before it in its round do.

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
    """Return the expected groups that a backbone call yields: the accepted ones and the target's
    own.
    """
    return 1.0 + float(np.cumprod(np.asarray(chances)[:gamma]).sum())


def best(chances: Sequence[float], seconds: Mapping[int, float]) -> int:
    """Return the gamma with the most expected groups per second; the smaller one where they are
    equal.

    Args:
      chances: of `acceptance`, at least as long as the largest gamma.
      seconds: gamma, 0 among them, to the seconds of a round with so many drafts.
    """
    rate = {g: groups_per_call(chances, g) / s for g, s in sorted(seconds.items())}
    return max(rate, key=rate.get)
