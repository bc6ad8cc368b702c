"""The smallest run of each task, all sizes different, and parameters that switch nothing off."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from driftar_jax import model

# Images of 4x6 with patches of 2: N = 6 tokens of C = 4 channels in a grid of 2x3.
IMAGES = model.ImageSpec((4, 6, 1), tuple("abc"), patch_size=2)
FILES = {
    "host": "mar_small",
    "drift": "drift_mar_small",
    "draft": "draft_mar_small",
    "classifier": "classifier",
}
SIZES = {
    "data.image_size": 12,  # of the config alone; stands for the 4x6 of IMAGES in its checks
    "data.patch_size": 2,
    "host.width": 8,
    "host.encoder_depth": 1,
    "host.num_heads": 2,
    "host.buffer_size": 3,
    "head.width": 10,
    "drift.width": 14,
    "drift.draws": 3,
    "draft.width": 18,
    "draft.num_heads": 3,
    "classifier.width": 6,
}


def config(task, **changes):
    """The `:tiny` config of a task with the sizes above; `train__steps=4` sets `train.steps`."""
    made = importlib.import_module(f"configs.{FILES[task]}").get_config("tiny")
    wanted = SIZES | {name.replace("__", "."): value for name, value in changes.items()}
    for name, value in wanted.items():
        section, _, field = name.rpartition(".")
        if not section:
            made[field] = value
        elif section in made and field in made[section]:
            made[section][field] = value
        else:
            assert name in SIZES, name
    return made


def parts(task, **changes):
    """Modules of `config` for IMAGES."""
    return model.build(config(task, **changes), IMAGES)


def normal(seed, *shape):
    """Standard normal float32 of numpy: nothing is compiled for it, or for what is made of it."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def changed(array, at, *, to=None, by=0):
    """A numpy copy in which `array[at]` is `to`, or moved `by` that much."""
    copy = np.array(array)
    copy[at] = copy[at] + by if to is None else to
    return copy


def params(init, *args, scale=0.2, seed=0, **kwargs):
    """Random values for all that `init(key, ...)` makes, biases and zero-initialised ones too.

    An axis of length n is divided by sqrt(n), so that activations stay near 1.
    """
    draw = np.random.default_rng(seed)
    shapes = nn.meta.unbox(jax.eval_shape(init, jax.random.key(0), *args, **kwargs))

    def value(leaf):
        fan = np.sqrt(leaf.shape[0]) if leaf.ndim > 1 else 1.0
        return jnp.asarray(draw.normal(size=leaf.shape) * 3 * scale / fan, leaf.dtype)

    return jax.tree.map(value, shapes)


def batch(size, seed=0):
    """Random images and labels of IMAGES."""
    draw = np.random.default_rng(seed)
    return {
        "image": draw.integers(0, 256, (size, *IMAGES.image_shape), np.uint8),
        "label": draw.integers(0, IMAGES.num_classes, size, np.int32),
    }
