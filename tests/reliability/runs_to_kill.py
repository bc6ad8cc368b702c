"""A run of the toy task that saves after every step; made to be killed.

python tests/reliability/runs_to_kill.py FOLDER STEPS
"""

import pathlib
import sys

import tiny

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "training"))

import toy  # noqa: E402

from driftar_jax.data import pipeline  # noqa: E402
from driftar_jax.training import (
    locks,
    loop,  # noqa: E402
    stopping,  # noqa: E402
)


def open_loop(folder, steps):
    """Loop and batches of the run."""
    config = tiny.config("drift", train__steps=steps, train__log_every=1, seed=7)
    config.train.checkpoint_every = 1
    source = pipeline.load_source("digits8", "train")
    batches = pipeline.Batches(source, batch_size=config.train.batch_size, seed=config.seed)
    # Phases as of the shortest run, so that a longer one goes through the same steps.
    made = loop.Loop(toy.ToyTask(freeze_step=4), config, pathlib.Path(folder), {"task": "toy"})
    return made, batches


def main(folder, steps):
    with stopping.on_signals() as wish:
        pathlib.Path(folder).mkdir(exist_ok=True)
        lock = locks.WorkdirLock(folder)
        made, batches = open_loop(folder, steps)
        state = made.restore(batches)
        if state is None:
            state = made.fresh_state()
        print(f"at {int(state.step)}", flush=True)
        if int(state.step) < steps:
            made.run(state, batches, say=lambda line: print(line, flush=True), stop=wish)
        batches.close()
        made.close()
        lock.release()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
