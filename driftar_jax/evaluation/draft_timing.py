"""Seconds of a round of drafts against the sum of its pieces, timed apart on the same batch.

The whole is one compiled loop. The pieces (drafts with their decoder, the backbone call, judging
with the target's own group) are programs of their own: each goes over the rounds of the batch, on
what those rounds had before them. What the loop takes beyond their sum, it wastes: copies of its
state, or work that nobody reads. On a CPU seconds are those of all threads, so that other programs
of a busy machine do not count; elsewhere they are the clock's.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from driftar_jax import seeds
from driftar_jax.evaluation import benchmark
from driftar_jax.model import Model
from driftar_jax.sampling import batches
from driftar_jax.sampling import drafted as road
from driftar_jax.sampling.generator import Generator
from driftar_jax.sampling.settings import Settings
from driftar_jax.sampling.speculative import Engine

PIECES = ("drafts", "backbone", "rest")


@dataclasses.dataclass(frozen=True)
class Rounds:
    """Times of one batch.

    Attributes:
      count: rounds of the batch.
      whole: `[repetitions]` seconds of the loop.
      pieces: `[repetitions, 3]` seconds of `PIECES`, over all rounds.
      unit: of a thousandth of them, in words.
    """

    count: int
    whole: np.ndarray
    pieces: np.ndarray
    unit: str

    @property
    def ratios(self) -> np.ndarray:
        """Divide whole by sum of pieces, by repetition: both saw the machine at about the same
        time.
        """
        return self.whole / self.pieces.sum(axis=1)

    def line(self) -> str:
        """Return a line for a reader."""
        each = 1000 * np.median(self.pieces, axis=0) / self.count
        named = ", ".join(f"{n} {ms:.2f}" for n, ms in zip(PIECES, each, strict=True))
        ratios = self.ratios
        return (
            f"{1000 * np.median(self.whole) / self.count:.2f} {self.unit} per round, {self.count} "
            f"rounds; pieces timed apart: {named}, together {each.sum():.2f}; whole over sum "
            f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"
        )


def tell(
    subject: Generator,
    rows: Sequence[benchmark.Row],
    *,
    repetitions: int,
    say: Callable[[str], None] = print,
) -> None:
    """Tell a line for each row that was made with drafts.

    Args:
      subject: what is timed.
      rows: of `benchmark.measure`.
      repetitions: as for `of_run`.
      say: where the lines go.
    """
    for row in rows:
        if row.settings.drafts:
            condition = subject.reader.trial(subject.model, row.settings, row.batch_size)
            args = subject.model, row.settings, subject.params, condition
            rounds = of_run(*args, repetitions=repetitions)
            say(f"{row.method}, batch {row.batch_size}: {rounds.line()}")


def of_run(
    model: Model,
    settings: Settings,
    params: dict[str, Any],
    condition: Any,
    *,
    repetitions: int = 5,
    seed: int = 0,
) -> Rounds:
    """Do as `measure`, for a batch of a Drift-AR run.

    Args:
      model, params: of the run.
      settings: checked, with a number of drafts.
      condition: of the images, leaves `[B, ...]`.
      repetitions: at least 1, after one that is not timed.
      seed: of the images.
    """
    rule, plain = settings.draft_rule(settings.drafts), settings.changed(gamma=0)
    index = np.arange(batches.size(condition), dtype=np.int32)
    arrays = params, condition, index, seeds.argument(seed)
    bind = functools.partial(road.engine, model, rule, plain)
    return measure(bind, arrays, repetitions=repetitions)


def measure(bind: Callable[..., Engine], arguments: tuple, *, repetitions: int = 5) -> Rounds:
    """Time a batch, whole and in pieces by turns.

    Args:
      bind: `bind(*given)` is the engine of the batch; traced.
      arguments: arrays.
      repetitions: at least 1, after one that is not timed.
    """
    whole = jax.jit(lambda arguments: bind(*arguments).run())
    # The number of rounds depends on what was accepted; with it known, a scan of that length can
    # hand on what every round saw.
    count = int(whole(arguments)[1].batch_calls)

    @jax.jit
    def states(arguments):
        """What every round began with, drafted and called, `[rounds, ...]`."""
        engine = bind(*arguments)

        def body(state, _):
            drafted = engine.drafted(state)
            called = engine.called(state, drafted)
            return engine.settled(state, drafted, called), (state, drafted, called)

        return jax.lax.scan(body, engine.start(), length=count)[1]

    def piece(name):
        @jax.jit
        def run(arguments, inputs):
            engine = bind(*arguments)

            def body(total, inputs):
                # All of it is read, in a way that nothing can be left out of.
                outputs = jax.tree.leaves(getattr(engine, name)(*inputs))
                return total + sum(jnp.max(a.astype(jnp.float32)) for a in outputs), None

            return jax.lax.scan(body, jnp.float32(0), inputs)[0]

        return run

    before, drafted, called = states(arguments)
    calls = [
        functools.partial(whole, arguments),
        functools.partial(piece("drafted"), arguments, (before,)),
        functools.partial(piece("called"), arguments, (before, drafted)),
        functools.partial(piece("settled"), arguments, (before, drafted, called)),
    ]
    # The first call compiles, and is not timed.
    for call in calls:
        jax.block_until_ready(call())
    on_cpu = jax.default_backend() == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    # By turns, so that a slow moment of the machine hits whole and pieces alike.
    seconds = np.array([[_seconds(call, clock) for call in calls] for _ in range(repetitions)])
    return Rounds(count, seconds[:, 0], seconds[:, 1:], "CPU ms" if on_cpu else "ms")


def _seconds(call: Callable[[], Any], clock: Callable[[], float]) -> float:
    begin = clock()
    jax.block_until_ready(call())
    return clock() - begin
