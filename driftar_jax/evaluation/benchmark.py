"""How long an image takes, and where the time goes; with trained or with random weights.

Backbone and head are timed as the sampler runs them, with the same sizes and in the same scan, but
one without the other; what is left of the whole is `rest`: keys, gathers, the grid.
"""

import dataclasses
import functools
import resource
import sys
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from driftar_jax.hosts.base import Model
from driftar_jax.sampling import batches, drafted, plain, two_models
from driftar_jax.sampling.generator import Generator
from driftar_jax.sampling.settings import Settings
from driftar_jax.sharding import over_rows, rows_over
from driftar_jax.storage import compiled
from driftar_jax.types import Counts


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds over the rounds, one value per round, and the compilation's."""

    seconds: tuple[float, ...]
    compile_s: float

    @property
    def median(self) -> float:
        """Return the median in seconds."""
        return float(np.median(self.seconds))


@dataclasses.dataclass(frozen=True)
class Row:
    """One method at one batch size; times are of a whole batch.

    With drafts, or a cache, a call is one loop whose pieces have no times of their own; `drafted`
    says what an image with drafts cost (`batches.drafted_counts`).
    """

    method: str
    settings: Settings
    batch_size: int
    whole: Times
    backbone: Times | None
    head: Times | None
    temporary_bytes: int
    peak_bytes: int
    drafted: Counts | None = None

    def as_json(self) -> dict:
        """Return a flat record; seconds are per image."""
        there = [n for n in PIECES if getattr(self, n) is not None]
        per_image = {n: getattr(self, n).median / self.batch_size for n in there}
        # May come out negative by noise, for the pieces were timed apart; it is cut at 0 below.
        rest = per_image["whole"] - sum(per_image[n] for n in there[1:])
        steps, cost = self.settings.ar_steps, self.drafted
        evaluations = cost.head_evaluations if cost else sum(self.settings.head_steps)
        return {
            "method": self.method,
            "batch_size": self.batch_size,
            "ar_steps": steps,
            "backbone_calls": cost.backbone_calls if cost else steps,
            "draft_calls": cost.draft_calls if cost else 0,
            "head_evaluations": evaluations,
            "guidance": self.settings.guidance,
            "seconds_per_image": per_image["whole"],
            "seconds_per_image_low": min(self.whole.seconds) / self.batch_size,
            "seconds_per_image_high": max(self.whole.seconds) / self.batch_size,
            "backbone_s": per_image.get("backbone"),
            "head_s": per_image.get("head"),
            "rest_s": max(rest, 0.0),
            "rounds": len(self.whole.seconds),
            "compile_s": self.whole.compile_s,
            "temporary_bytes": self.temporary_bytes,
            "peak_bytes": self.peak_bytes,
        }


PIECES = ("whole", "backbone", "head")


def methods(subject: Generator, settings: Settings, controls: bool) -> list[tuple[str, Settings]]:
    """Return the settings asked for and, with `controls`, what a speed-up is held against.

    Those are, for the own head: fewer head steps, head steps that fall over the AR steps, and fewer
    AR steps; whichever of them the subject can do.
    """
    rows = [(settings.method, settings)]
    if settings.drafts:
        auto = "auto" if settings.drafts < 0 else settings.drafts
        name = f"{settings.method}, gamma {auto} ({settings.rule})"
        rows = [(settings.method, settings.plainly), (name, settings)]
    elif settings.lookahead:
        auto = "auto" if settings.lookahead < 0 else settings.lookahead
        name = f"{settings.method}, lookahead {auto} ({settings.bound} {settings.delta:g})"
        rows = [(settings.method, settings.plainly), (name, settings)]
    elif settings.draft_steps:
        name = f"{settings.method}, {settings.draft_steps} AR steps drafted by the other model"
        rows = [(settings.method, settings.plainly), (name, settings)]
    settings = settings.plainly
    if not controls:
        return rows
    change = functools.partial(dataclasses.replace, settings)
    if settings.method == "own":
        few = max(1, settings.nfe // 10)
        rows.append(("own, a tenth of the head steps", change(nfe=few, nfe_schedule="constant")))
        rows += [
            (f"own, head steps {schedule}", change(nfe_schedule=schedule, nfe_last=few))
            for schedule in ("two_stage", "linear", "cosine")
        ]
    quarter = max(1, settings.ar_steps // 4)
    rows.append((f"{settings.method}, a quarter of the AR steps", change(ar_steps=quarter)))
    return rows[:1] + [row for row in rows[1:] if subject.can(row[1])]


def measure(
    subject: Generator,
    table: Sequence[tuple[str, Settings]],
    *,
    batch_sizes: Sequence[int],
    rounds: int,
    tell: Callable[[str], None] = print,
) -> list[Row]:
    """Time all methods at all batch sizes; `tell` takes a line for each.

    Args:
      subject: what is timed.
      table: from `methods`; settings checked.
      batch_sizes: images per call.
      rounds: timed calls, at least 1, after one that is not timed.
    """
    rows = []
    cases = [(size, *method) for size in batch_sizes for method in table]
    for batch_size, name, settings in tqdm(cases, unit="method", disable=None, leave=False):
        rows.append(_row(subject, name, settings, batch_size, rounds))
        tell(line(rows[-1].as_json()))
    return rows


def line(record: dict) -> str:
    """Write one row for a reader."""
    pieces = [("backbone", "backbone_s"), ("head", "head_s"), ("rest", "rest_s")]
    pieces = [f"{n} {record[key]:.3g}" for n, key in pieces if record["backbone_s"] is not None]
    pieces += [f"{record['backbone_calls']:.2f} backbone calls"]
    return (
        f"{record['method']}, batch {record['batch_size']}: {record['seconds_per_image']:.4g} s "
        f"per image ({record['seconds_per_image_low']:.4g} to "
        f"{record['seconds_per_image_high']:.4g}); {', '.join(pieces)}; compiled in "
        f"{record['compile_s']:.1f} s; peak memory {record['peak_bytes'] / 2**30:.2f} GiB"
    )


def _row(subject: Generator, name: str, settings: Settings, batch_size: int, rounds: int) -> Row:
    model, params = subject.model, subject.params
    condition = subject.reader.trial(model, settings, batch_size)
    index = jnp.arange(batch_size, dtype=jnp.int32)
    if settings.drafts < 0 or settings.lookahead < 0:
        settings = subject.with_draft_count(settings, condition, batch_size)
        name = name.replace("auto", f"auto = {settings.gamma or settings.lookahead}")
    condition = jax.tree.map(jnp.asarray, condition)
    condition, index = over_rows((condition, index), rows_over(params))
    calls, compile_s, temporary = {}, {}, 0
    for piece, (function, static, arguments) in _pieces(
        model, settings, params, condition, index
    ).items():
        start = time.perf_counter()
        # Compiled apart from the first call, so that both times are known and neither holds the
        # other.
        with compiled.afresh():
            program = function.lower(*static, *arguments).compile()
        compile_s[piece] = time.perf_counter() - start
        calls[piece] = functools.partial(program, *arguments)
        if piece == "whole":
            temporary = program.memory_analysis().temp_size_in_bytes
    results = {piece: jax.block_until_ready(call()) for piece, call in calls.items()}
    seconds = {piece: [] for piece in calls}
    for _ in range(rounds):
        # In turn, so that a slow moment of the machine hits all pieces.
        for piece, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[piece].append(time.perf_counter() - start)
    times = {p: Times(tuple(seconds[p]), compile_s[p]) if p in calls else None for p in PIECES}
    cost = two_models.counts(settings) if settings.draft_steps else None
    if settings.speculates:
        cost = batches.drafted_counts(batches.joined([results["whole"][1]], batch_size))
    memory = {"temporary_bytes": temporary, "peak_bytes": _peak()}
    return Row(name, settings, batch_size, **times, **memory, drafted=cost)


def _pieces(model: Model, settings: Settings, params, condition, index) -> dict[str, tuple]:
    """Return what is timed, by name: a jitted function, its static and its other arguments."""
    whole = params, condition, index, jnp.uint32(0)
    if settings.draft_steps:
        return {"whole": (two_models.generate, (model, settings), whole)}
    plainly = settings.plainly
    if settings.speculates:
        static = model, settings.speculation, plainly
        return {"whole": (drafted.generate, static, whole)}

    def head_of(params):
        return plain.one_step_head(model, plainly, params)

    apart = model.family.pieces(model, plainly, params, condition, index, head_of)
    pieces = {name: (jax.jit(call), (), arrays) for name, (call, arrays) in apart.items()}
    return {"whole": (plain.generate, (model, plainly), whole), **pieces}


def _peak() -> int:
    """Most bytes held so far: by the device where it tells, else by this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
