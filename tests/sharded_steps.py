"""Three steps of the smallest Drift-AR on the devices of this process; prints their losses.

python tests/sharded_steps.py FOLDER '{"data": 4, "fsdp": 2}' ...
"""

import json
import pathlib
import sys

import jax
import numpy as np
import tiny

from driftar_jax.training import loop, optim, tasks


def losses(folder, mesh):
    """Losses of three steps at random parameters, and how many arrays are really split."""
    config = tiny.config("drift", host__width=16, drift__width=12, draft__num_heads=2)
    config.draft.width = 8
    config.mesh.update(data=1, fsdp=1, tensor=1)
    config.mesh.update(mesh)
    config.train.steps = 3
    task = tasks.build(config, tiny.IMAGES)
    made = loop.Loop(task, config, pathlib.Path(folder), {})
    state = optim.init_state(tiny.params(task.init), made.optimizer, task.tracked)
    state = jax.device_put(state, made.shardings)
    split = sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.params))
    found = []
    for seed in range(3):
        batch = tiny.batch(8, seed)
        state, metrics = made.step_function(False)(state, batch)
        found.append(float(jax.block_until_ready(metrics)["loss"]))
    total = sum(np.abs(np.asarray(p, np.float64)).sum() for p in jax.tree.leaves(state.params))
    return {"losses": found, "total": float(total), "split": split}


if __name__ == "__main__":
    for mesh in sys.argv[2:]:
        print(json.dumps(losses(sys.argv[1], json.loads(mesh))))
