"""The loop: resume bit for bit, one compilation per phase, a stop that leaves nothing bad."""

import chex
import jax
import numpy as np
import pytest
import tiny
import toy

from driftar_jax.data import pipeline
from driftar_jax.training import journal, loop

TIMINGS = {"data_wait", "images_per_s", "seconds_left"}


class Interrupted(Exception):
    """A stand-in for the crash of a run."""


class Stopping:
    """Batches that crash the run after `count` of them."""

    def __init__(self, batches, count):
        self._batches, self._count = batches, count
        self.state, self.restore = batches.state, batches.restore

    def __next__(self):
        if self._batches.state()["batch"] == self._count:
            raise Interrupted
        return next(self._batches)


@pytest.fixture(scope="module")
def digits():
    return pipeline.load_source("digits8", "train")


@pytest.fixture
def open_loop(tmp_path, digits):
    """`open_loop(name, task)` -> loop and batches of a workdir."""
    opened = []

    def start(name, task=None, **changes):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        config = tiny.config("drift", **{"train__checkpoint_every": 3, "seed": 7} | changes)
        task = toy.ToyTask(freeze_step=4) if task is None else task
        made = loop.Loop(task, config, folder, {"task": "toy"})
        batches = pipeline.Batches(digits, batch_size=config.train.batch_size, seed=config.seed)
        opened.append((made, batches))
        return made, batches

    yield start
    for made, batches in opened:
        batches.close()
        made.checkpoints.close()


def _quiet(line):
    pass


def _records(made):
    records = journal.read_metrics(made.workdir / "metrics.jsonl")
    return [{k: v for k, v in r.items() if k not in TIMINGS} for r in records]


def _equal(a, b):
    chex.assert_trees_all_equal(a, b)


@pytest.mark.parametrize("crash_at", [3, 5], ids=["at a checkpoint", "in phase two"])
def test_a_resumed_run_is_the_straight_run_bit_for_bit(open_loop, crash_at):
    straight, batches = open_loop("straight")
    want = straight.run(straight.fresh_state(), batches, say=_quiet)
    assert [r["step"] for r in _records(straight)] == [2, 3, 4, 6]

    first, batches = open_loop("resumed")
    with pytest.raises(Interrupted):
        first.run(first.fresh_state(), Stopping(batches, crash_at), say=_quiet)
    first.checkpoints.wait()
    written = [r["step"] for r in _records(first)]
    assert written == ([2, 3] if crash_at == 3 else [2, 3, 4])

    again, batches = open_loop("resumed")
    state = again.restore(batches)
    assert int(state.step) == 3 and batches.state()["batch"] == 3
    found = again.run(state, batches, say=_quiet)
    _equal(found, want)
    assert _records(again) == _records(straight)
    assert batches.state()["batch"] == 6


def test_each_phase_is_compiled_once(open_loop):
    made, batches = open_loop("two", train__log_every=1)
    made.run(made.fresh_state(), batches, say=_quiet)
    assert made.compilations == 2
    assert [made.step_function(f)._cache_size() for f in (False, True)] == [1, 1]
    again, batches = open_loop("one", toy.ToyTask())
    again.run(again.fresh_state(), batches, say=_quiet)
    assert again.compilations == 1 and again.step_function(False)._cache_size() == 1


def test_a_restored_state_does_not_compile_again(open_loop):
    made, batches = open_loop("crashed")
    with pytest.raises(Interrupted):
        made.run(made.fresh_state(), Stopping(batches, 3), say=_quiet)
    made.checkpoints.wait()
    state = made.restore(batches)
    made.run(state, batches, say=_quiet)
    assert made.compilations == 2
    assert made.step_function(False)._cache_size() == 1


def test_phases_report_what_they_have(open_loop):
    made, batches = open_loop("phases")
    made.run(made.fresh_state(), batches, say=_quiet)
    by_step = {r["step"]: r for r in _records(made)}
    assert "first_phase" in by_step[4] and "first_phase" not in by_step[6]
    assert all(np.isfinite(list(r.values())).all() for r in by_step.values())


def test_log_lines_and_checkpoints_come_when_asked(open_loop):
    made, batches = open_loop("kept", train__keep=2, train__checkpoint_every=2)
    said, shown = [], []
    made.run(
        made.fresh_state(),
        batches,
        say=said.append,
        on_sample=lambda step, state: shown.append((step, int(state.step))),
    )
    assert [line.split()[1] for line in said[:-1]] == ["2/6", "4/6", "6/6"]
    assert said[-1].startswith("goodput ") and " in 1 start(s), 0 steps redone;" in said[-1]
    assert shown == [(6, 6)]
    assert sorted(int(p.name) for p in (made.workdir / "checkpoints").iterdir()) == [4, 6]


def test_a_loss_that_is_no_number_stops_the_run_and_is_never_saved(open_loop):
    task = toy.ToyTask(freeze_step=4, bad_step=3)
    made, batches = open_loop("bad", task, train__log_every=5, train__checkpoint_every=2)
    with pytest.raises(loop.NonFiniteLoss) as caught:
        made.run(made.fresh_state(), batches, say=_quiet)
    message = str(caught.value)
    assert "\n" not in message and "in steps 3 to 3 (first in loss" in message
    assert "optim.lr" in message
    made.checkpoints.wait()
    assert made.checkpoints.latest_step() == 2
    assert [r["step"] for r in _records(made)] == [2]
    state = made.restore(batches)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_weights_of_another_run_replace_their_groups_alone(open_loop):
    made, _ = open_loop("start")
    fresh = made.fresh_state()
    other = {"host": jax.tree.map(lambda p: np.asarray(p) + 1, fresh.params["host"])}
    given = made.fresh_state(other)
    _equal(given.params["host"], other["host"])
    _equal(given.ema["host"], other["host"])
    for name in ("prior", "decoder", "draft"):
        _equal(given.params[name], fresh.params[name])


def test_a_group_beside_begins_as_another_and_goes_on(open_loop):
    straight, batches = open_loop("straight", toy.AsideTask())
    fresh = straight.fresh_state()
    other = {"host": jax.tree.map(lambda p: np.asarray(p) + 1, fresh.params["host"])}
    given = straight.fresh_state(other)
    _equal(given.params["draft"], other["host"])
    assert "draft" not in given.ema
    want = straight.run(given, batches, say=_quiet)
    cut, batches = open_loop("cut", toy.AsideTask())
    with pytest.raises(Interrupted):
        cut.run(cut.fresh_state(other), Stopping(batches, 4), say=_quiet)
    cut.checkpoints.wait()
    again, batches = open_loop("cut", toy.AsideTask())
    state = again.restore(batches)
    assert int(state.step) == 3
    _equal(again.run(state, batches, say=_quiet), want)


def test_the_host_is_never_far_ahead_of_the_device(open_loop):
    made, batches = open_loop("ahead", train__log_every=6, train__checkpoint_every=6)
    step, begun, most = made.step_function, [], []

    def slowly(frozen):
        compiled = step(frozen)

        @jax.jit
        def late(value):  # the metrics of a step that takes a while
            return value + 0 * jax.lax.fori_loop(0, 100, lambda _, m: m @ m, np.eye(400)).sum()

        def run(state, batch):
            state, metrics = compiled(state, batch)
            begun.append(late(metrics["loss"]))
            return state, {**metrics, "loss": begun[-1]}

        return run

    def stop():
        most.append(sum(not value.is_ready() for value in begun))
        return ""

    made.step_function = slowly
    made.run(made.fresh_state(), batches, say=_quiet, stop=stop)
    assert len(begun) == 6 and max(most) in (1, 2)  # busy, and no more than two steps behind


def test_a_run_with_frozen_parameters_is_stopped_and_goes_on_bit_for_bit(open_loop):
    frozen = {"optim__freeze": "host.*,draft.bias"}
    straight, batches = open_loop("straight", **frozen)
    first = jax.device_get(straight.fresh_state().params)
    want = straight.run(straight.fresh_state(), batches, say=_quiet)
    _equal(want.params["host"], first["host"])
    _equal(want.params["draft"]["bias"], first["draft"]["bias"])
    assert not np.array_equal(want.params["draft"]["kernel"], first["draft"]["kernel"])
    stopped, batches = open_loop("stopped", **frozen)
    with pytest.raises(Interrupted):
        stopped.run(stopped.fresh_state(), Stopping(batches, 5), say=_quiet)
    stopped.checkpoints.wait()
    again, batches = open_loop("stopped", **frozen)
    _equal(again.run(again.restore(batches), batches, say=_quiet), want)
