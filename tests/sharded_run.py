"""Twenty steps of one task on the devices of this process, then pictures on that mesh.

python tests/sharded_run.py FOLDER TASK '{"data": 2, "fsdp": 2, "tensor": 2}' ...

Prints the losses by mesh and writes the uint8 pictures to FOLDER/MESH.npy, meshes counted from 0.
"""

import importlib
import json
import pathlib
import sys

import jax
import numpy as np
import tiny

from driftar_jax import model
from driftar_jax.data import captions
from driftar_jax.features import maps
from driftar_jax.sampling import batches
from driftar_jax.sampling.settings import Settings
from driftar_jax.training import loop, optim, step, tasks

STEPS, BATCH = 20, 8
# Every width divides over two parts of a mesh, and few are the same.
MAR = {"host__width": 16, "head__width": 12, "drift__width": 20, "draft__num_heads": 2}
TEXT = {
    "host": dict(width=16, num_heads=4, num_kv_heads=2, mlp_width=20),
    "mask": dict(tokens_per_image=3),
    "sample": dict(ar_steps=6),
}
# File of the config, its word, and what is changed so that every axis of a mesh divides something.
OTHERS = {
    "grids": ("transdiff_small", "tiny_mrar", {"host": dict(width=16, buffer_size=3, row_patch=1)}),
    "drift of grids": (
        "drift_transdiff",
        "tiny",
        {"host": dict(width=16, buffer_size=3), "drift": dict(width=12, classes=8)},
    ),
    "tokens of text": ("nextstep_small", "tiny", TEXT),
    "drift of text": (
        "drift_nextstep",
        "tiny",
        {**TEXT, "drift": dict(width=12), "draft": dict(width=8)},
    ),
}
TASKS = ("host", "drift", "draft", *OTHERS)
_FITTED = captions.fit("set", ["red fox", "a bird", "bird", "red bird sits"] * 2, (2, 3), 4)


def _config(name, mesh):
    if name in OTHERS:
        file, word, changes = OTHERS[name]
        config = importlib.import_module(f"configs.{file}").get_config(word)
        for section, fields in changes.items():
            config[section].update(fields)
    else:
        widths = {k: v for k, v in MAR.items() if name != "host" or not k.startswith("dr")}
        config = tiny.config(name, **widths)
        if name != "host":
            config.draft.width = 8
    config.mesh.update(dict(data=1, fsdp=1, tensor=1) | mesh)
    config.train.steps = STEPS
    return config


def _images(name):
    if not name.endswith("of text"):
        return tiny.IMAGES
    # A table of words whose size divides.
    text = _FITTED.spec
    return model.ImageSpec((4, 6, 1), tuple("abc"), patch_size=2, text=text)


def _batch(name, number):
    batch = tiny.batch(BATCH, number)
    return batch | {"text": _FITTED.rows} if name.endswith("of text") else batch


def run(name, mesh, file):
    """Losses of every step; pictures of the trained weights go to `file`."""
    config, images = _config(name, mesh), _images(name)
    task = tasks.build(config, images, (maps.Identity(), None))
    made = loop.Loop(task, config, pathlib.Path("nowhere"), {})
    extra = made.fresh_state().extra if isinstance(task, step.OwnsExtra) else None
    state = optim.init_state(tiny.params(task.init), made.optimizer, task.tracked, extra)
    state = jax.device_put(state, made.shardings)
    losses = []
    for number in range(STEPS):
        frozen = task.freeze_step is not None and number >= task.freeze_step
        state, metrics = made.step_function(frozen)(state, _batch(name, number))
        losses.append(float(jax.block_until_ready(metrics)["loss"]))
    if config.task != "draft":
        np.save(file, _pictures(name, config, images, state.ema))
    return losses


def _pictures(name, config, images, params):
    parts = model.build(config, images)
    method = "own" if config.task == "host" else "drift"
    steps = 3 if config.host.name == "mar" else config.sample.ar_steps
    settings = Settings(method=method, ar_steps=steps, nfe=4)
    asked = np.arange(BATCH) % images.num_classes if images.text is None else _FITTED.rows
    return batches.sample_images(parts, settings, params, asked, 5, batch_size=BATCH)[0]


if __name__ == "__main__":
    place, asked, *meshes = sys.argv[1:]
    for count, given in enumerate(meshes):
        print(json.dumps(run(asked, json.loads(given), f"{place}/{count}.npy")), flush=True)
