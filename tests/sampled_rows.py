"""Samples on the devices of this process, and what the compiled program of one of them does.

python tests/sampled_rows.py IMAGES.npy

Prints the operations of the program for whole batches, and of one device's where rows are laid out.
"""

import json
import sys

import jax
import numpy as np
import tiny

from driftar_jax import model
from driftar_jax.sampling import batches, plain
from driftar_jax.sampling.settings import Settings
from driftar_jax.sharding import batch_sharding, make_mesh, replicated

BATCH = 16


def parts():
    """Modules and parameters of a small MAR with its own head."""
    config = tiny.config("drift")
    made = model.build(config, tiny.IMAGES)
    shapes = model.shapes(config, tiny.IMAGES)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: 0.1 * rng.standard_normal(s.shape, np.float32), shapes)
    return made, params


def settings():
    """Of a few steps."""
    return Settings(method="drift", ar_steps=3, nfe=1)


def images(params):
    """Twenty images, four of them in a call that is filled up."""
    labels = np.arange(20, dtype=np.int32) % tiny.IMAGES.num_classes
    return batches.sample_images(parts()[0], settings(), params, labels, 5, batch_size=BATCH)[0]


def operations(params, place):
    """Floating point operations of one device's program for a batch that lies at `place`."""
    rows = jax.device_put((np.zeros(BATCH, np.int32), np.arange(BATCH, dtype=np.int32)), place)
    made = plain.generate.lower(parts()[0], settings(), params, *rows, np.uint32(5)).compile()
    return made.cost_analysis()["flops"]


if __name__ == "__main__":
    mesh = make_mesh()
    placed = jax.device_put(parts()[1], replicated(mesh))
    np.save(sys.argv[1], images(placed))
    whole, one = (operations(placed, place) for place in (replicated(mesh), batch_sharding(mesh)))
    print(json.dumps({"devices": jax.device_count(), "whole": whole, "one": one}))
