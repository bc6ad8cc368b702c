"""Which steps a profile holds."""

import jax
import pytest

from driftar_jax.training import tracing


@pytest.mark.parametrize("steps", ["", "5", "5:", ":5", "5:5", "7:5", "a:b", "1:2:3", "-1:2"])
def test_steps_of_another_form_are_named(steps):
    with pytest.raises(ValueError, match="profile: got .*, allowed START:STOP"):
        tracing.Trace(steps, "folder")


@pytest.mark.parametrize(("ran", "want"), [(6, [2, 3, "end"]), (3, [2, "end"]), (2, [])])
def test_the_chosen_steps_are_traced(monkeypatch, ran, want):
    """And a run that ends among them leaves a whole trace."""
    seen, running = [], []
    monkeypatch.setattr(jax.profiler, "start_trace", running.append)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: (running.pop(), seen.append("end")))
    trace = tracing.Trace("2:4", "folder")
    for number in range(ran):
        with trace.step(number):
            if running:
                seen.append(number)
    trace.close()
    assert seen == want and running == []
    assert [n for n in range(6) if trace.waits(n)] == [1, 3]
