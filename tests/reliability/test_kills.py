"""A run killed at random moments: every checkpoint whole, little lost, the same run in the end."""

import os
import random
import signal
import subprocess
import sys
import time

import chex
import jax
import pytest
import runs_to_kill

from driftar_jax.storage import checkpoints
from driftar_jax.training import journal, locks

pytestmark = pytest.mark.timeout(600)
TIMINGS = {"data_wait", "images_per_s", "seconds_left"}


@pytest.fixture
def child(data_dir, compiled_programs):
    """`child(folder, steps)`: a process that trains there."""
    started = []

    def start(folder, steps):
        here = os.path.dirname(os.path.abspath(__file__))
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([f"{here}/../..", f"{here}/.."]),
        }
        with open(f"{folder}.stderr", "a") as errors:
            started.append(
                subprocess.Popen(
                    [sys.executable, f"{here}/runs_to_kill.py", str(folder), str(steps)],
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    env=env,
                )
            )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def _straight(folder, steps):
    """Final state and records of a run that nobody disturbs."""
    folder.mkdir()
    made, batches = runs_to_kill.open_loop(folder, steps)
    made.config.train.checkpoint_every = steps
    state = made.run(made.fresh_state(), batches, say=lambda line: None)
    batches.close()
    made.close()
    return jax.device_get(state), _records(folder)


def _records(folder):
    records = journal.read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in r.items() if k not in TIMINGS} for r in records]


def _wait_for_steps(process, count):
    """The last step said, once `count` lines came."""
    last = None
    for _ in range(count):
        line = process.stdout.readline()
        assert line.startswith(("at ", "step ")), line
        last = int(line.split()[1].split("/")[0])
    return last


def _whole_step(folder):
    """The newest step, all of them without damage."""
    if not (folder / "checkpoints").exists():
        return None
    found = checkpoints.Checkpoints(folder, create=False)
    newest, bad = found.newest_whole()
    found.close()
    assert bad == {}
    return newest


def _kill_and_finish(child, folder, kills, steps, seed):
    draw, folder = random.Random(seed), folder / "killed"
    want, want_records = _straight(folder.with_name("straight"), steps)
    for number in range(kills):
        process = child(folder, steps)
        # Every fifth while it starts, compiles or reads; the others around the saves of its steps.
        said = _wait_for_steps(process, draw.choice([2, 3])) if number % 5 < 4 else None
        if number == 0:
            with pytest.raises(ValueError, match=f"no other run .*process {process.pid} on "):
                locks.WorkdirLock(folder)
        time.sleep(draw.uniform(0.0, 0.3) if said is not None else draw.uniform(0.5, 3.0))
        process.kill()
        process.wait()
        newest = _whole_step(folder)
        if said is not None and said > 2:
            assert newest >= said - 2

    process = child(folder, steps)
    _wait_for_steps(process, 2)
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read().splitlines()
    assert process.wait() == 0, rest
    last = _whole_step(folder)
    words = f"stopped by SIGTERM: step {last} is saved; the same command goes on from there"
    assert rest[-1] == words

    process = child(folder, steps)
    rest = process.stdout.read().splitlines()
    assert process.wait() == 0, rest
    assert rest[0] == f"at {last}"
    made, batches = runs_to_kill.open_loop(folder, steps)
    found = made.restore(batches)
    batches.close()
    made.close()
    chex.assert_trees_all_equal(found, want)
    assert _records(folder) == want_records


def test_two_kills_and_a_sigterm_change_no_bit_of_the_run(child, tmp_path):
    _kill_and_finish(child, tmp_path, kills=2, steps=13, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_kills_change_no_bit_of_the_run(child, tmp_path):
    kills = int(os.environ.get("DRIFTAR_KILLS", "20"))
    _kill_and_finish(child, tmp_path, kills=kills, steps=4 * kills, seed=1)
