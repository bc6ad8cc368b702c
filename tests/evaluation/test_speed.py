"""Speeds by a clock of our own: turns, compilation apart, ratios round by round."""

import numpy as np
import pytest

from driftar_jax.evaluation import speed


@pytest.fixture
def clock(monkeypatch):
    """`clock(seconds)` passes time; the timing sees no other."""
    now = [100.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def _method(clock, name, seconds, calls):
    """Takes `seconds[i]` at its call i."""
    taken = iter(seconds)

    def run():
        calls.append(name)
        clock(next(taken))

    return run


def test_methods_take_turns_and_their_ratio_is_round_by_round(clock):
    calls = []
    own = _method(clock, "own", [9.0, 4.0, 8.0, 4.0], calls)
    drift = _method(clock, "drift", [3.0, 1.0, 2.0, 0.5], calls)
    first, second = speed.alternate([own, drift], 8, rounds=3)
    assert calls == ["own", "drift"] * 4
    assert (first.median, first.low, first.high) == (2.0, 1.0, 2.0)
    assert (second.median, second.low, second.high) == (8.0, 4.0, 16.0)
    assert first.ratios == (1.0, 1.0, 1.0)
    # A machine twice as slow in one round is as slow for both: the ratio stays.
    np.testing.assert_allclose(second.ratios, (4.0, 4.0, 8.0))
    assert second.ratio == 4.0
    assert first.compile_s == 5.0 and second.compile_s == 2.0


def test_a_first_call_that_is_no_slower_has_no_compile_time(clock):
    (only,) = speed.alternate([_method(clock, "own", [1.0, 2.0], [])], 4, rounds=1)
    assert only.compile_s == 0.0 and only.median == 2.0
