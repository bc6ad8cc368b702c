"""Digests of pictures of tiny models that nobody trained, one line for each.

python tests/reliability/drawn_images.py
"""

import hashlib

import jax
import numpy as np
import tiny

from driftar_jax.sampling import inpaint, load

LABELS = [0, 2, -1, 1, 0]


def digests():
    """Pictures of the own head, of Drift-AR plain and drafted, and of a filled hole."""
    own, drift = (load.random(tiny.config(task), tiny.IMAGES) for task in ("host", "drift"))
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 1), np.uint8)
    hole = np.zeros((4, 6), bool)
    hole[:2, :2] = True
    made = [
        own.sample(LABELS, 5, batch_size=2, nfe=4).images,
        drift.sample(LABELS, 5, batch_size=2).images,
        drift.sample(LABELS, 2**40 + 5, batch_size=5, gamma=1).images,
        inpaint.fill(drift, image, hole, LABELS, 5, batch_size=2).images,
    ]
    return [hashlib.sha256(images.tobytes()).hexdigest() for images in made]


if __name__ == "__main__":
    print("\n".join(digests()))
    print(jax.config.jax_default_prng_impl, jax.config.jax_enable_x64)
