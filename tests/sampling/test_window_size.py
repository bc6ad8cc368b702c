"""`lookahead=auto` and its settings: a window is taken where it pays, and nowhere else."""

import numpy as np
import pytest
import tiny

from driftar_jax.cli import sampling_flags
from driftar_jax.sampling import load, window_size
from driftar_jax.sampling.conditions import Request
from driftar_jax.sampling.settings import Settings

SETTINGS = Settings(method="drift", ar_steps=20)


class Machine:
    """A clock that samplers move: so many seconds for plain decoding and for each window.

    Windows take `later` more of it with seeds that did not choose them.
    """

    def __init__(self, monkeypatch, seconds, later=0.0):
        self.now, self.asked, self.seconds, self.later = 0.0, [], seconds, later

        def made(size, seed):
            self.now += seconds[size] * (1 + self.later if seed >= 1000 and size else 1)
            self.asked.append(size)

        def plain(model, settings, *given):
            assert settings == SETTINGS.plainly
            made(0, given[-1])

        def drafted(model, window, settings, *given):
            assert settings == SETTINGS.plainly and window.delta == SETTINGS.delta
            made(window.size, given[-1])

        monkeypatch.setattr(window_size.plain, "generate", plain)
        monkeypatch.setattr(window_size.drafted, "generate", drafted)

    def choose(self):
        args = tiny.parts("drift"), SETTINGS, (), 2, np.arange(3, dtype=np.int32)
        return window_size.choose(*args, clock=lambda: self.now)


def test_the_fastest_is_chosen(monkeypatch):
    machine = Machine(monkeypatch, {0: 8.0, 4: 6.0, 8: 5.0, 16: 5.5})
    found = machine.choose()
    assert found.settings.lookahead == 8 and found.seconds == machine.seconds
    assert found.finding_out == machine.now


def test_each_checkpoint_is_measured_once_for_a_batch_size(monkeypatch):
    """Two of one config have one model, and may be worth two windows."""
    measured = []

    def choose(model, settings, params, batch_size, condition):
        measured.append(batch_size)
        return window_size.Choice(settings.changed(lookahead=len(measured)), {}, 0.0)

    monkeypatch.setattr(window_size, "choose", choose)
    first, second = (load.random(tiny.config("drift"), tiny.IMAGES) for _ in range(2))
    wanted, labels = SETTINGS.changed(lookahead="auto"), np.arange(3, dtype=np.int32)

    def window(generator, batch_size):
        return generator.with_draft_count(wanted, labels, batch_size).lookahead

    assert [window(first, 2), window(first, 2), window(first, 1)] == [1, 1, 2]
    assert [window(second, 2), window(first.sized(Request()), 2)] == [3, 1]
    assert measured == [2, 1, 2]


@pytest.mark.parametrize("seconds", [{0: 8.0, 4: 9.0, 8: 9.5}, {0: 8.0, 4: 7.9, 8: 8.0}])
def test_what_does_not_pay_is_plain(monkeypatch, seconds):
    """Longer windows are not tried where two lost; what timing cannot tell is not believed."""
    machine = Machine(monkeypatch, seconds | {16: 1.0})
    assert machine.choose().settings.lookahead == 0
    assert set(machine.asked) == {0, 4, 8}


@pytest.mark.parametrize(("later", "want"), [(0.0, 8), (0.2, 8), (0.3, 0)])
def test_a_window_that_was_lucky_is_not_believed(monkeypatch, later, want):
    machine = Machine(monkeypatch, {0: 8.0, 4: 6.4, 8: 6.2, 16: 9.0}, later)
    found = machine.choose()
    assert found.settings.lookahead == want
    # The last turns are of plain decoding and the winner alone.
    assert machine.asked[-2 * window_size.TURNS :] == [0, 8] * window_size.TURNS


@pytest.mark.parametrize(
    ("ahead", "want"),
    [
        ((0.9, 0.9, 0.9, 0.9, 1.5), True),
        ((0.9, 0.9, 0.9, 1.1, 1.1), False),  # the median wins, and nothing is sure
        ((0.98, 0.98, 0.98, 0.98, 0.5), False),
    ],
)
def test_a_window_wins_most_turns_by_more_than_the_margin(ahead, want):
    now, seconds = [0.0], iter(ahead)

    def call(took):
        return lambda seed: now.__setitem__(0, now[0] + took())

    calls = call(lambda: 1.0), call(lambda: next(seconds))
    assert window_size._holds(*calls, lambda: now[0]) == want


@pytest.mark.parametrize(("text", "want"), [(None, 0), ("auto", -1), ("0", 0), ("12", 12)])
def test_a_flag_is_read(text, want):
    made = SETTINGS.changed(lookahead=sampling_flags.parse_count("lookahead", text))
    assert made.lookahead == want
    assert made.delta == (0.02 if want else SETTINGS.delta)
    assert SETTINGS.changed(lookahead=4, delta=0.0).delta == 0
    with pytest.raises(ValueError, match="^lookahead: got '-2', allowed auto or a whole number"):
        sampling_flags.parse_count("lookahead", "-2")


def test_hosts_without_a_next_token_say_so():
    model = tiny.parts("drift")
    with pytest.raises(ValueError, match=r"^lookahead: got 4, allowed 0 \(this host reveals"):
        SETTINGS.changed(lookahead=4, ar_steps=4).check(model)
    with pytest.raises(ValueError, match=r"^lookahead: got -1, allowed 0 \(this host reveals"):
        SETTINGS.changed(lookahead="auto", ar_steps=4).check(model)
