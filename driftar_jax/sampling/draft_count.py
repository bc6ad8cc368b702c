"""`gamma=auto`: how far to draft on this machine, with this checkpoint, at this batch size.

A probe generates one batch with the most drafts: its accepted lengths give the chance of each
draft. Rounds are timed, so that the price of drafts and of longer calls is this machine's. What
they predict is checked against plain decoding before it is used, so that a wrong prediction costs
the finding out and nothing more.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from driftar_jax.heads import early_stop
from driftar_jax.model import Parts
from driftar_jax.sampling import choice, sampler, speculate

CANDIDATES = (1, 2, 4)
ROUNDS = 3


def parse(text: str | None) -> int | None:
    """`Settings.gamma` of a flag's text: `auto` is -1; None stays None.

    Raises:
      ValueError: it is neither `auto` nor a whole number from 0.
    """
    if text is None:
        return None
    if text == "auto":
        return -1
    if not text.isdigit():
        raise ValueError(f"gamma: got {text!r}, allowed auto or a whole number from 0")
    return int(text)


def parse_stop(text: str | None) -> float | None:
    """`Settings.stop` of a flag's text: `auto` is `policy.TRAINED`; None stays None.

    Raises:
      ValueError: it is neither `auto` nor a number from 0 to 1.
    """
    if text is None:
        return None
    if text == "auto":
        return early_stop.TRAINED
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise ValueError(f"stop: got {text!r}, allowed auto or 0 to 1 (an entropy)")
    return value


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

    settings: sampler.Settings
    acceptance: tuple[float, ...]
    seconds: dict[int, float]
    predicted: int
    finding_out: float


def choose(
    parts: Parts,
    settings: sampler.Settings,
    params: dict[str, Any],
    batch_size: int,
    *,
    labels: np.ndarray | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Choice:
    """The fastest gamma for these settings; 0 where drafts do not pay.

    Args:
      parts, params: of a Drift-AR run.
      settings: checked; its gamma is not read.
      batch_size: of the calls to come, at least 1.
      labels: conditions to try it with, in turn; None: the classes.
      clock: seconds; another one for tests.
    """
    begin = clock()
    most = settings.ar_steps - 1
    candidates = [g for g in CANDIDATES if g <= most] or [most]
    if labels is None:
        labels = np.arange(parts.images.num_classes, dtype=np.int32)
    label = labels[np.arange(batch_size) % len(labels)]
    given = params, label, np.arange(batch_size, dtype=np.int32)

    def plain(seed):
        return sampler.generate(parts, settings.changed(gamma=0), *given, np.uint32(seed))

    def drafted(gamma):
        rule = settings.draft_rule(gamma)
        asked = settings.changed(gamma=0)  # as `sampler.sample_drafted` asks
        return lambda seed: speculate.generate(parts, rule, asked, *given, np.uint32(seed))

    _, found = jax.block_until_ready(drafted(candidates[-1])(0))
    chances = choice.acceptance(np.asarray(found.lengths.sum(axis=0)))
    calls = {0: plain} | {g: drafted(g) for g in candidates}
    if chances[0] == 0:
        calls = {0: plain}  # nothing is accepted: no timing could recommend it
    seconds, per_round = {}, {}
    for g, call in calls.items():
        made = jax.block_until_ready(call(0))
        rounds = settings.ar_steps if g == 0 else int(made[1].batch_calls)
        seconds[g] = _fastest(call, clock)
        per_round[g] = seconds[g] / rounds
    predicted = choice.best(chances, per_round)
    chosen = predicted if seconds[predicted] < seconds[0] else 0
    return Choice(
        settings=settings.changed(gamma=chosen),
        acceptance=tuple(float(c) for c in chances),
        seconds=seconds,
        predicted=predicted,
        finding_out=clock() - begin,
    )


def _fastest(call: Callable[[int], Any], clock) -> float:
    """Seconds of the fastest of a few calls: what disturbs a call only makes it slower."""
    taken = []
    for seed in range(ROUNDS):
        start = clock()
        jax.block_until_ready(call(seed))
        taken.append(clock() - start)
    return min(taken)
