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
from driftar_jax.evaluation import networks
from driftar_jax.sampling import batches, plain
from driftar_jax.sampling.settings import Settings
from driftar_jax.sharding import batch_sharding, make_mesh, replicated

BATCH = 16


def parts():
    """Modules and parameters of a small MAR with Drift-AR."""
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


def judged(placed):
    """Rows that one device has of a judge's batch, and whether padding is taken off again."""
    held = []

    def apply(params, images):
        held.append(images.sharding.shard_shape(images.shape)[0])
        return images.reshape(len(images), -1)[:, :2] / 1.0, images[:, 0, 0, :1] / 1.0

    network = networks.Network("classifier", 2, 1, BATCH, apply, placed)
    pictures = np.arange(20 * 24, dtype=np.uint8).reshape(20, 4, 6, 1)
    features, _ = network.read(pictures)
    np.testing.assert_array_equal(features, pictures.reshape(20, -1)[:, :2])
    return held


if __name__ == "__main__":
    mesh = make_mesh()
    placed = jax.device_put(parts()[1], replicated(mesh))
    np.save(sys.argv[1], images(placed))
    whole, one = (operations(placed, place) for place in (replicated(mesh), batch_sharding(mesh)))
    counts = {"devices": jax.device_count(), "whole": whole, "one": one}
    print(json.dumps(counts | {"judged": judged(placed)}))
