"""The losses of whole grids with rows split over the devices of this process; prints them.

python tests/sharded_drift.py
"""

import functools
import json

import jax
import numpy as np
import tiny

from driftar_jax import sharding
from driftar_jax.drift import laplace

ROWS = 16


def losses():
    """Loss of each row and the strengths of a call, per field and size of the blocks."""
    mesh = sharding.make_mesh()
    sizes = np.repeat(np.float32([1.0, 10.0]), ROWS // 2)[:, None, None]
    arrays = [sizes * np.asarray(tiny.normal(i, ROWS, n, 3)) for i, n in enumerate((4, 5, 2))]
    arrays = jax.device_put(arrays, sharding.batch_sharding(mesh))
    found = {"devices": len(arrays[0].sharding.device_set)}
    for name in ("laplace_loss", "energy_loss"):
        for block_bytes in (laplace.BLOCK_BYTES, 4 * ROWS * 4 * 11 // 2):
            loss = jax.jit(functools.partial(getattr(laplace, name), block_bytes=block_bytes))
            rows, info = jax.block_until_ready(loss(*arrays))
            found[f"{name} {block_bytes}"] = np.asarray(rows, np.float64).tolist()
            found[f"{name} {block_bytes} strength"] = np.asarray(info.strength, np.float64).tolist()
            found[f"{name} {block_bytes} scale"] = float(info.scale)
    return found


if __name__ == "__main__":
    print(json.dumps(losses()))
