"""What ends a run early: a wish, the clock, data, a full disk. What is left goes on exactly."""

import contextlib
import itertools
import os
import resource
import signal
import time
import types

import chex
import jax
import numpy as np
import pytest
import runs_to_kill
import tiny

from driftar_jax import config
from driftar_jax.data import latents
from driftar_jax.storage import checkpoints
from driftar_jax.training import locks, loop, processes, runs, stopping

STEPS = 6


@pytest.fixture
def open_loop(tmp_path):
    """`open_loop(name)` -> loop and batches of a workdir."""
    opened = []

    def start(name, **changes):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        made, batches = runs_to_kill.open_loop(folder, STEPS)
        made.config.train.update(changes)
        opened.append((made, batches))
        return made, batches

    yield start
    for made, batches in opened:
        batches.close()
        with contextlib.suppress(checkpoints.SaveFailed):
            made.close()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The final state of a run that nothing disturbs."""
    made, batches = runs_to_kill.open_loop(tmp_path_factory.mktemp("straight"), STEPS)
    state = made.run(made.fresh_state(), batches, say=lambda line: None)
    batches.close()
    made.close()
    return jax.device_get(state)


def _equal(a, b):
    chex.assert_trees_all_equal(a, b)


def _go_on(open_loop, name, at):
    """The final state of a workdir whose last checkpoint is of step `at`."""
    made, batches = open_loop(name)
    state = made.restore(batches)
    assert int(state.step) == at
    return made.run(state, batches, say=lambda line: None)


def test_a_stopped_run_saves_and_goes_on_exactly(open_loop, straight):
    made, batches = open_loop("stopped", checkpoint_every=100)
    said, asked = [], iter(["", "", "", "SIGTERM"])
    made.run(made.fresh_state(), batches, say=said.append, stop=lambda: next(asked))
    assert said[-1].startswith("stopped by SIGTERM: step 3 is saved")
    _equal(_go_on(open_loop, "stopped", 3), straight)


@pytest.fixture
def attended():
    """A hang-up has its default action, also where the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("sent", [["SIGHUP", "SIGHUP", "SIGTERM"], ["SIGUSR1", "SIGUSR1"]])
def test_signals_that_ask_for_an_end(sent, attended):
    with stopping.on_signals() as wish:
        assert wish() == ""
        for name in sent:
            os.kill(os.getpid(), getattr(signal, name))
        assert wish() == sent[0]
        assert signal.getsignal(signal.SIGHUP) == wish.take
        again = signal.SIG_DFL if "SIGTERM" in sent else wish.take
        assert signal.getsignal(signal.SIGTERM) == again


def test_a_hang_up_that_is_ignored_stays_ignored():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping.on_signals() as wish:
            os.kill(os.getpid(), signal.SIGHUP)
            assert wish() == ""
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_wish_from_before_the_first_step_ends_it_there(open_loop):
    made, batches = open_loop("early")
    said = []
    state = made.run(made.fresh_state(), batches, say=said.append, stop=lambda: "SIGINT")
    assert int(state.step) == 0 and made.compilations == 0
    assert said == [
        "stopped by SIGINT: nothing is new since step 0; the same command goes on from there"
    ]


def test_the_clock_saves_whatever_the_time_of_day_does(open_loop, monkeypatch):
    day, now = itertools.count(10**9, -(10**4)), itertools.count(0, 31)
    monkeypatch.setattr(time, "time", lambda: float(next(day)))
    clock = types.SimpleNamespace(monotonic=lambda: next(now))
    monkeypatch.setattr(processes, "time", clock)
    made, batches = open_loop("clock", checkpoint_every=100, checkpoint_minutes=1.0, keep=9)
    saved, save = [], made.save
    monkeypatch.setattr(
        made, "save", lambda state, position: (saved.append(int(state.step)), save(state, position))
    )
    made.run(made.fresh_state(), batches, say=lambda line: None)
    assert len(saved) > 1 and saved[-1] == STEPS


@pytest.mark.parametrize("prefetch", [0, 2], ids=["in the loop", "in a thread of its own"])
def test_data_that_cannot_be_read_ends_the_run_in_one_line(open_loop, straight, prefetch):
    made, batches = open_loop("data")
    gather, calls = batches.source.gather, itertools.count()

    def dying(indices):
        if next(calls) >= 3:
            raise OSError("shard 7 of the set: input/output error")
        return gather(indices)

    batches.prefetch, batches.source.gather = prefetch, dying
    try:
        with pytest.raises(loop.BadData) as caught:
            made.run(made.fresh_state(), batches, say=lambda line: None)
    finally:
        batches.source.gather = gather
    message = str(caught.value)
    assert message.startswith("data: got 'shard 7 of the set") and "\n" not in message
    assert "after step 3" in message
    made.checkpoints.wait()
    _equal(_go_on(open_loop, "data", 3), straight)


@contextlib.contextmanager
def _no_file_larger_than(size):
    """What a full disk does to a process: writes fail, small files still work."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# The threads that write fail first; their errors come again where the save is waited for.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_ends_the_run_in_one_line_and_spoils_nothing(open_loop, straight):
    made, batches = open_loop("full", checkpoint_every=2)
    asked = iter(["", "", "", "here"])
    made.run(made.fresh_state(), batches, say=lambda line: None, stop=lambda: next(asked))
    made.close()
    again, batches = open_loop("full", log_every=100)
    state = again.restore(batches)
    with pytest.raises(checkpoints.SaveFailed) as caught:
        with _no_file_larger_than(900):
            again.run(state, batches, say=lambda line: None)
    message = str(caught.value)
    assert message.startswith("checkpoint: got ") and "\n" not in message
    assert "File too large" in message and "step 3 is whole" in message
    _equal(_go_on(open_loop, "full", 3), straight)


def test_a_workdir_that_cannot_be_written_is_named(tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o500)
    # Permissions do not bind root; the kernel's own folders do.
    place = folder / "run" if os.geteuid() else "/sys/driftar_jax_run"
    with pytest.raises(ValueError, match="workdir: got .*, allowed a folder that can be written"):
        runs.claim_workdir(str(place), tiny.config("classifier"))


def test_a_second_run_is_refused_and_a_dead_one_forgotten(tmp_path):
    settings = tiny.config("classifier")
    first = runs.claim_workdir(str(tmp_path / "run"), settings)
    with pytest.raises(ValueError, match=f"no other run is writing .process {os.getpid()} on"):
        runs.claim_workdir(str(tmp_path / "run"), settings)
    first.release()
    # What a killed run leaves: the file, and nobody who holds it.
    assert (tmp_path / "run" / locks.FILE).exists()
    runs.claim_workdir(str(tmp_path / "run"), settings).release()


def _folder_run(**changes):
    return tiny.config("drift", **{"data__name": "folder:/a/pets", **changes})


@pytest.mark.parametrize(
    ("changes", "begun", "refused"),
    [
        ({"train__steps": 900_000}, False, ""),
        ({"train__steps": 1}, True, "train.steps: got 1, allowed .* or more"),
        ({"init_from": "/moved/host"}, True, ""),
        ({"init_from": "/moved/host"}, False, "init_from: got"),
        ({"data__name": "folder:/b/pets"}, True, ""),
        ({"data__name": "folder:/b/pets"}, False, "data.name: got"),
        ({"data__name": "latents:/a/pets"}, True, "data.name: got"),
        ({"data__name": "digits8"}, True, "data.name: got"),
        ({"data__data_dir": "/b"}, True, ""),
        ({"train__keep": 9}, False, ""),
        ({"optim__lr": 1.0}, True, "optim.lr: got"),
    ],
)
def test_what_a_later_start_may_change(changes, begun, refused):
    then = _folder_run(train__steps=5).to_dict()
    now = _folder_run(**{"train__steps": 5, **changes})
    if not refused:
        config.check_same_run(now, then, begun=begun)
        return
    with pytest.raises(
        ValueError, match=f"^{refused}.*a run may change train.steps upwards, "
    ) as e:
        config.check_same_run(now, then, begun=begun)
    assert "\n" not in str(e.value)
    assert not set(config.lasting(now)) & {"train.steps", "init_from", "data.name", "mesh.data"}


def test_moved_data_is_the_same_data(tmp_path):
    """By its fingerprint; latents of before the fingerprint without a path are known as well."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        for i in range(3):
            (tmp_path / name / "cat").mkdir(parents=True, exist_ok=True)
            pair = rng.standard_normal((4, 2, 2)).astype(np.float32)
            np.savez(tmp_path / name / "cat" / f"{i}.npz", moments=pair, moments_flip=pair)
    first, moved = (
        latents.open_latents(f"latents:{tmp_path / name}", "train", image_size=None)
        for name in ("a", "b")
    )
    assert first.fingerprint == moved.fingerprint and moved.is_of(first.fingerprint)
    assert first.is_of(f"latents:{tmp_path / 'a'}|train|3|None")
    assert not moved.is_of(f"latents:{tmp_path / 'a'}|train|3|None")  # nothing says what it was
    assert not moved.is_of("latents|train|4|None|0") and not moved.is_of(7)
