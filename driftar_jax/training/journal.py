"""What a run leaves of itself while it trains: metrics, speed, and where its time went.

Two files in the workdir, one JSON object per log interval each: `metrics.jsonl` holds what the run
that counts has seen, `goodput.jsonl` every second of every process, lost ones included.
"""

import functools
import json
import os
import pathlib
import time
from collections.abc import Callable

_LONGEST = 1e10  # seconds of a run: three hundred years


class MetricsLog:
    """`metrics.jsonl`: one record per log interval; a resumed run drops what it redoes."""

    def __init__(self, path: pathlib.Path, start: int):
        self._path = path
        # Steps behind the checkpoint are done again; their first records would stand there twice.
        kept = [r for r in read_metrics(path) if r["step"] <= start] if path.exists() else []
        _replace(path, kept)
        self._board = _tensorboard(path.parent)

    def write(self, record: dict) -> None:
        """Append a record, to TensorBoard as well where it is installed."""
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self._board:
            for name, value in record.items():
                # Words, such as the part that was held out, are no curves.
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, record["step"])


# One for all logs of a workdir: each has a file and a thread of its own until the process ends.
@functools.lru_cache(maxsize=8)
def _tensorboard(folder: pathlib.Path):
    """A TensorBoard writer where tensorboardX is installed, else None."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))


def read_metrics(path: pathlib.Path) -> list[dict]:
    """Read the records of a `metrics.jsonl`; a line that is none, as one cut by a crash, is left
    out.
    """
    records = []
    # Not `splitlines`, for which a text may hold line ends of its own.
    for line in path.read_text(encoding="utf-8-sig", errors="replace").split("\n"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and type(record.get("step")) is int:
            records.append(record)
    return records


def _replace(path: pathlib.Path, records: list[dict]) -> None:
    """Let the file hold these records: whole, or as it was where the disk is full.

    A line that was cut short would swallow the next one that is appended.
    """
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Goodput:
    """Share of a run's seconds in which steps ran that count, over every start of the run.

    Seconds are of this process since `born`, so that imports, reading and compiling count as lost;
    so do steps that a later start had to do again. What lies between two starts is not counted.

    Args:
      path: `goodput.jsonl`, appended to.
      start: step from which this process goes on.
      born: `time.monotonic()` when this process began.
    """

    def __init__(self, path: pathlib.Path, start: int, born: float):
        self._path, self._born = path, born
        self._records = [r for r in read_metrics(path) if _timed(r)] if path.exists() else []
        self._starts = 1 + max((r["start"] for r in self._records), default=0)
        _replace(path, self._records)
        self.note(start, 0.0, 0.0)

    def note(self, step: int, stepping: float, saving: float) -> None:
        """Append an interval.

        Args:
          step: steps that are done.
          stepping: seconds in which steps ran.
          saving: seconds in which a save held the loop.
        """
        wall = time.monotonic() - self._born
        seconds = dict(wall=round(wall, 3), stepping=round(stepping, 3), saving=round(saving, 3))
        self._records.append({"step": step, "start": self._starts, **seconds})
        with self._path.open("a") as file:
            file.write(json.dumps(self._records[-1]) + "\n")

    def shares(self) -> dict[str, float]:
        """Return `good` and `saving` as shares of the `seconds` of all `starts`, `redone` steps
        beside.
        """
        by_start: dict[int, list[dict]] = {}
        for record in self._records:
            by_start.setdefault(record["start"], []).append(record)
        good, wall, redone, next_start = 0.0, 0.0, 0, None
        # From the last start backwards: a start tells from which step on the work of the one before
        # was lost.
        for records in reversed(list(by_start.values())):
            wall += records[-1]["wall"]
            kept = [r for r in records if next_start is None or r["step"] <= next_start]
            good += sum(r["stepping"] for r in kept)
            redone += records[-1]["step"] - kept[-1]["step"] if kept else 0
            # Every start notes its first step at once, before it has made any.
            next_start = records[0]["step"]
        saving = sum(r["saving"] for r in self._records)
        wall = max(wall, 1e-9)
        return dict(
            good=good / wall,
            saving=saving / wall,
            seconds=wall,
            starts=len(by_start),
            redone=redone,
        )

    def line(self) -> str:
        """Return `shares` for a reader."""
        s = self.shares()
        return (
            f"goodput {s['good']:.1%} of {s['seconds']:.0f} s in {s['starts']} start(s), "
            f"{s['redone']} steps redone; saves held the loop {s['saving']:.2%} of the time"
        )


def _timed(record: dict) -> bool:
    """Whether `Goodput` can have written it: a file that somebody edited costs figures, no run."""
    seconds = (record.get(name) for name in ("wall", "stepping", "saving"))
    fits = (type(s) in (int, float) and 0 <= s < _LONGEST for s in seconds)
    return type(record.get("start")) is int and all(fits)


class Meter:
    """Speed, share of time spent waiting for data, time left, since the last line.

    Attributes:
      stepping: seconds of the last recorded interval in which steps ran.
      saving: seconds since the interval before in which a save held the loop.
    """

    def __init__(self, steps: int, batch_size: int):
        self._steps, self._batch_size = steps, batch_size
        self._begin = time.monotonic()
        self._waited = self._compiled = self._saved = 0.0
        self._last_step: int | None = None
        self.stepping = self.saving = 0.0

    def waiting(self):
        """Return the context whose duration counts as waiting for data."""
        return _Timed(self._add_wait)

    def compiling(self):
        """Return the context of a step that is called for the first time."""
        return _Timed(self._add_compile)

    def holding(self):
        """Return the context of a save: the part of it that the loop waits for."""
        return _Timed(self._add_save)

    def aside(self):
        """Return the context whose duration belongs to no interval: pictures, not training."""
        return _Timed(self._skip)

    def _add_wait(self, seconds: float) -> None:
        self._waited += seconds

    def _add_compile(self, seconds: float) -> None:
        self._compiled += seconds

    def _add_save(self, seconds: float) -> None:
        self._saved += seconds

    def _skip(self, seconds: float) -> None:
        # Moving the interval's begin forward takes the time out of it, as if it had not passed.
        self._begin += seconds

    def record(self, done: int, means: dict[str, float]) -> dict:
        """Return what `metrics.jsonl` gets of the interval that ends here."""
        now = time.monotonic()
        seconds = max(now - self._begin, 1e-9)
        self.stepping = max(seconds - self._waited - self._compiled - self._saved, 0.0)
        compiled = min(self._compiled, seconds)
        self.saving, self._compiled, self._saved = self._saved, 0.0, 0.0
        steps = done - self._last_step if self._last_step is not None else None
        record = {"step": done, **means, "data_wait": round(self._waited / seconds, 4)}
        # The first interval holds the compilation, so it says nothing of the speed.
        if steps:
            record["images_per_s"] = round(steps * self._batch_size / seconds, 1)
            # Another phase is compiled once, and not again for every interval that is left.
            running = seconds - compiled
            record["seconds_left"] = round((self._steps - done) * running / steps, 1)
        self._begin, self._waited, self._last_step = now, 0.0, done
        return record

    def line(self, record: dict) -> str:
        """Return `record` for a reader."""
        fields = [f"step {record['step']}/{self._steps}"]
        fields += [f"{k} {v:.4g}" for k, v in record.items() if k != "step"]
        return "  ".join(fields)


class _Timed:
    """Hands the seconds spent inside to `add`."""

    def __init__(self, add: Callable[[float], None]):
        self._add = add

    def __enter__(self):
        self._start = time.monotonic()

    def __exit__(self, *exc):
        self._add(time.monotonic() - self._start)
