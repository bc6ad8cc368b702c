"""Where the seconds of a run went, over kills and resumed starts."""

import json
import pathlib
import sys
import time
import types

import pytest

from driftar_jax.training import journal, runs


@pytest.fixture
def clock(monkeypatch):
    """A monotonic clock that tests move by hand."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_what_is_redone_compiled_or_saved_is_not_good(tmp_path, clock):
    path = tmp_path / "goodput.jsonl"
    first = journal.Goodput(path, 0, born=90.0)  # 10 s of start-up
    clock[0] = 140.0
    first.note(10, stepping=20.0, saving=0.0)  # 20 s of compiling beside
    clock[0] = 160.0
    first.note(20, stepping=15.0, saving=5.0)  # killed here; step 10 was saved
    clock[0] = 1000.0  # what lies between is nobody's time
    second = journal.Goodput(path, 10, born=990.0)
    clock[0] = 1030.0
    second.note(20, stepping=15.0, saving=0.0)
    shares = second.shares()
    assert shares == pytest.approx(
        dict(good=35 / 110, saving=5 / 110, seconds=110, starts=2, redone=10)
    )
    assert second.line() == (
        "goodput 31.8% of 110 s in 2 start(s), 10 steps redone; "
        "saves held the loop 4.55% of the time"
    )


def test_a_line_cut_by_a_crash_swallows_nothing(tmp_path, clock):
    path = tmp_path / "goodput.jsonl"
    journal.Goodput(path, 0, born=95.0).note(5, 3.0, 0.0)
    path.write_text(path.read_text() + '{"step": 7, "sta')
    clock[0] = 110.0
    again = journal.Goodput(path, 5, born=108.0)
    assert [json.loads(line)["start"] for line in path.read_text().splitlines()] == [1, 1, 2]
    assert again.shares() == pytest.approx(
        dict(good=3 / 7, saving=0, seconds=7, starts=2, redone=0)
    )


@pytest.mark.parametrize("line", ['{"step": 3}', '{"step": 3, "start": "x", "wall": 1}', "[1]"])
def test_lines_of_somebody_else_stop_no_run(tmp_path, clock, line):
    path = tmp_path / "goodput.jsonl"
    path.write_text(line + "\n")
    assert journal.Goodput(path, 0, born=99.0).shares()["starts"] == 1


FACTS = {"step": 3, "start": 1, "wall": 1.0, "stepping": 1.0, "saving": 0.0}


@pytest.mark.parametrize(
    "change",
    [
        {"start": float("nan")},
        {"start": 1.5},
        {"start": True},
        {"wall": float("inf")},
        {"wall": -1.0},
        {"stepping": 10**400},
        {"saving": [1]},
        {"step": "3"},
    ],
    ids=str,
)
def test_figures_that_no_run_wrote_are_left_out(tmp_path, clock, change):
    path = tmp_path / "goodput.jsonl"
    path.write_text(json.dumps(FACTS | change) + "\n" + json.dumps(FACTS) + "\n")
    again = journal.Goodput(path, 3, born=99.0)
    assert again.shares() == pytest.approx(dict(good=0.5, saving=0, seconds=2, starts=2, redone=0))
    assert len(path.read_text().splitlines()) == 2


LINE = b'{"step": 1, "loss": 1.5}'
DAMAGED = {
    "cut": b'{"step": 2, "lo',
    "not a number": b'{"step": NaN}',
    "infinite": b'{"step": 1e400}',
    "zeros": b"\0" * 4096,
    "deep": b"[" * 10**5,
    "long": b'{"step": ' + b"9" * 5000 + b"}",
    "bytes": b"\xff\xfe",
    "text": b'{"step": "2"}',
    "no object": b"[1]",
}


@pytest.mark.parametrize("bad", DAMAGED.values(), ids=DAMAGED)
def test_a_bad_line_of_metrics_loses_itself_alone(tmp_path, bad):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([b"\xef\xbb\xbf" + LINE, bad, LINE[:-1] + b"}\r", LINE, b""]))
    assert journal.read_metrics(path) == [{"step": 1, "loss": 1.5}] * 3


def test_line_ends_of_a_text_end_no_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "note": "a\u2028b\x85c"}\n', encoding="utf-8")
    assert len(journal.read_metrics(path)) == 1


def test_a_run_that_was_stopped_before_its_first_save_redoes_all(tmp_path, clock):
    path = tmp_path / "goodput.jsonl"
    journal.Goodput(path, 0, born=100.0).note(4, 2.0, 0.0)
    assert journal.Goodput(path, 0, born=100.0).shares()["redone"] == 4


def test_intervals_are_split_into_steps_waits_compiling_and_saves(clock):
    meter = journal.Meter(steps=20, batch_size=8)

    def spend(seconds, context):
        with context:
            clock[0] += seconds

    spend(4.0, meter.compiling())
    spend(1.0, meter.waiting())
    clock[0] += 5.0
    record = meter.record(10, {"loss": 1.0})
    assert (meter.stepping, meter.saving) == (5.0, 0.0)
    assert record == {"step": 10, "loss": 1.0, "data_wait": 0.1}
    spend(2.0, meter.holding())
    spend(50.0, meter.aside())
    clock[0] += 8.0
    record = meter.record(20, {})
    assert (meter.stepping, meter.saving) == (8.0, 2.0)
    assert record == {"step": 20, "data_wait": 0.0, "images_per_s": 8.0, "seconds_left": 0.0}


def test_another_phase_is_compiled_once_and_not_for_all_that_is_left(clock):
    meter = journal.Meter(steps=40, batch_size=8)
    meter.record(10, {})
    clock[0] += 5.0
    with meter.compiling():
        clock[0] += 90.0
    clock[0] += 5.0
    record = meter.record(20, {})
    assert record["seconds_left"] == 20.0
    clock[0] += 10.0
    assert meter.record(30, {})["seconds_left"] == 10.0


def test_a_cut_line_of_the_log_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "loss": 1.0}\n{"step": 4, "loss": 2.0}\n{"step": 6, "lo')
    assert [r["step"] for r in journal.read_metrics(path)] == [2, 4]
    log = journal.MetricsLog(path, start=2)
    log.write({"step": 4, "loss": 3.0})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": 2, "loss": 1.0}, {"step": 4, "loss": 3.0}]


BAD = ["", "{", "\0" * 9, "[1]", '{"loss": 1}', '{"step": "3"}', '{"step": true}', "[" * 9999]


@pytest.mark.parametrize("bad", BAD, ids=repr)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_bad_line_loses_itself_alone(tmp_path, clock, bad, place):
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 2, "loss": 1.0}', '{"step": 4, "loss": 2.0}']
    path.write_text("\n".join(lines[:place] + [bad] + lines[place:]) + "\n")
    assert [r["step"] for r in journal.read_metrics(path)] == [2, 4]
    journal.MetricsLog(path, start=4)
    assert path.read_text().splitlines() == lines
    spent = [
        json.dumps({"step": s, "start": s, "wall": 5.0, "stepping": 1.0, "saving": 0.0})
        for s in (1, 2)
    ]
    path.write_text("\n".join(spent[:place] + [bad] + spent[place:]) + "\n")
    assert journal.Goodput(path, 2, born=99.0).shares()["starts"] == 3


@pytest.mark.parametrize(
    "kind", [journal.MetricsLog, lambda path, n: journal.Goodput(path, n, 0.0)]
)
def test_what_was_logged_survives_a_full_disk(tmp_path, monkeypatch, kind):
    """A file is replaced whole, never written over in place."""
    path = tmp_path / "log.jsonl"
    text = '{"step": 2, "start": 1, "wall": 5.0, "stepping": 1.0, "saving": 0.0}\n{"cut'
    path.write_text(text)

    def full(self, data):
        self.write_bytes(data[:5].encode())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        kind(path, 2)
    assert path.read_text() == text and list(tmp_path.iterdir()) == [path]


def test_curves_are_of_what_was_logged_so_far(tmp_path):
    log = journal.MetricsLog(tmp_path / "metrics.jsonl", start=0)
    runs._draw_curves(tmp_path)  # pictures may be due before the first line
    assert not (tmp_path / "curves.png").exists()
    log.write({"step": 2, "loss": 1.0})
    runs._draw_curves(tmp_path)
    assert (tmp_path / "curves.png").stat().st_size


def test_tensorboard_gets_the_numbers_of_a_record_and_one_writer(tmp_path, monkeypatch):
    curves, folders = [], []

    class Writer:
        def __init__(self, folder):
            folders.append(folder)

        def add_scalar(self, name, value, step):  # as tensorboardX does: words raise
            curves.append((name, float(value), step))

    board = types.SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "tensorboardX", board)
    journal.MetricsLog(tmp_path / "metrics.jsonl", 0).write({"step": 3, "loss": 0.5})
    held_out = {"step": 3, "split": "test", "pictures": 8, "energy_score": 0.25}
    journal.MetricsLog(tmp_path / "held_out.jsonl", 0).write(held_out)
    assert ("loss", 0.5, 3) in curves and ("energy_score", 0.25, 3) in curves
    assert "split" not in [name for name, _, _ in curves]
    assert folders == [str(tmp_path / "tensorboard")]
    assert journal.read_metrics(tmp_path / "held_out.jsonl") == [held_out]
