"""A long run: memory, open files and threads stay where they were."""

import os
import pathlib

import pytest
import runs_to_kill

SELF = pathlib.Path("/proc/self")


def _held():
    """Resident MiB, open files and threads of this process."""
    pages = int((SELF / "statm").read_text().split()[1])
    size = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return size, len(os.listdir(SELF / "fd")), len(os.listdir(SELF / "task"))


@pytest.mark.slow
@pytest.mark.skipif(not SELF.exists(), reason="reads /proc")
def test_a_long_run_does_not_grow(tmp_path):
    steps = int(os.environ.get("DRIFTAR_SOAK", "100000"))
    made, batches = runs_to_kill.open_loop(tmp_path, steps)
    made.config.train.update(log_every=100, checkpoint_every=steps // 20, sample_every=steps // 20)
    seen = []

    def look(step, state):
        made.checkpoints.wait()  # a save under way holds files of its own
        seen.append(_held())

    made.run(made.fresh_state(), batches, say=lambda line: None, on_sample=look)
    batches.close()
    made.close()
    print(seen)
    # The first quarter fills pools and caches.
    settled, last = seen[5], seen[-1]
    assert last[0] < settled[0] + max(16, 0.02 * settled[0])
    assert last[1] <= settled[1] + 4 and last[2] <= settled[2] + 4
