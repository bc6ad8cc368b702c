"""Twenty steps of MAR with each head on the devices of this process, then pictures on that mesh.

python tests/sharded_run.py FOLDER '{"data": 2, "fsdp": 2, "tensor": 2}'

Prints the losses and writes the uint8 pictures to FOLDER/TASK.npy.
"""

import json
import pathlib
import sys

import jax
import numpy as np
import tiny

from driftar_jax import assembly, sampler
from driftar_jax.training import loop, optim, tasks

STEPS, BATCH = 20, 8
TASKS = ("host", "drift")
# Every width divides over two parts of a mesh, and no two are the same.
WIDTHS = {"host__width": 16, "head__width": 12, "drift__width": 20, "draft__num_heads": 2}


def _config(task, mesh):
    widths = {k: v for k, v in WIDTHS.items() if task == "drift" or not k.startswith("dr")}
    config = tiny.config(task, **widths)
    if task == "drift":
        config.draft.width = 8
    config.mesh.update(dict(data=1, fsdp=1, tensor=1) | mesh)
    config.train.steps = STEPS
    return config


def run(folder, mesh):
    """Losses of every step by task; pictures of the trained weights lie in `folder`."""
    found = {}
    for task_name in TASKS:
        config = _config(task_name, mesh)
        task = tasks.build(config, tiny.IMAGES)
        made = loop.Loop(task, config, pathlib.Path(folder), {})
        state = optim.init_state(tiny.params(task.init), made.optimizer, task.tracked)
        state = jax.device_put(state, made.shardings)
        losses = []
        for step in range(STEPS):
            frozen = task.freeze_step is not None and step >= task.freeze_step
            state, metrics = made.step_function(frozen)(state, tiny.batch(BATCH, step))
            losses.append(float(jax.block_until_ready(metrics)["loss"]))
        parts = assembly.build(config, tiny.IMAGES)
        method = "own" if task_name == "host" else "drift"
        settings = sampler.Settings(method=method, ar_steps=3, nfe=4)
        labels = np.arange(BATCH) % tiny.IMAGES.num_classes
        images, _ = sampler.sample_images(parts, settings, state.ema, labels, 5, batch_size=BATCH)
        np.save(pathlib.Path(folder) / f"{task_name}.npy", images)
        found[task_name] = losses
    return found


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], json.loads(sys.argv[2]))))
