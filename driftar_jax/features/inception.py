"""InceptionV3 as the Frechet inception distance uses it, with frozen batch-norm statistics.

The network of 2015 that published distances are measured with; its input size, its resize and its
pooling at borders differ from the later InceptionV3, and each difference changes the distance. Sub-
modules carry the official names, so that the official file loads by path.
"""

import os
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp

from driftar_jax import seeds
from driftar_jax.storage.checkpoints import Checkpoints, read_config

TASK = "inception"
SIZE = 299  # pixels of a side that the network was trained with
WIDTH = 2048
CLASSES = 1008

# What a unit is made of: (name, width, kernel, stride). A stride of 2 goes without padding.
Unit = tuple[str, int, tuple[int, int], int]


def _unit(name: str, width: int, *kernel: int, stride: int = 1) -> Unit:
    return name, width, kernel * 2 if len(kernel) == 1 else kernel, stride


def _chain(branch: str, *units: tuple, last_stride: int = 1) -> tuple:
    """Units `branch_1`, `branch_2`, ... one after the other."""
    last = len(units)
    return tuple(
        _unit(f"{branch}_{i}", *unit, stride=last_stride if i == last else 1)
        for i, unit in enumerate(units, 1)
    )


def _mixed_35(pool: int) -> tuple:
    return (
        (_unit("branch1x1", 64, 1),),
        _chain("branch5x5", (48, 1), (64, 5)),
        _chain("branch3x3dbl", (64, 1), (96, 3), (96, 3)),
        ("average", _unit("branch_pool", pool, 1)),
    )


def _mixed_17(w: int) -> tuple:
    return (
        (_unit("branch1x1", 192, 1),),
        _chain("branch7x7", (w, 1), (w, 1, 7), (192, 7, 1)),
        _chain("branch7x7dbl", (w, 1), (w, 7, 1), (w, 1, 7), (w, 7, 1), (192, 1, 7)),
        ("average", _unit("branch_pool", 192, 1)),
    )


def _mixed_8(pool: str) -> tuple:
    def fork(name):
        return _unit(f"{name}a", 384, 1, 3), _unit(f"{name}b", 384, 3, 1)

    return (
        (_unit("branch1x1", 320, 1),),
        (*_chain("branch3x3", (384, 1)), fork("branch3x3_2")),
        (*_chain("branch3x3dbl", (448, 1), (384, 3)), fork("branch3x3dbl_3")),
        (pool, _unit("branch_pool", 192, 1)),
    )


# The stem has no padding but where it says so.
STEM = (
    _unit("Conv2d_1a_3x3", 32, 3, stride=2),
    _unit("Conv2d_2a_3x3", 32, 3),
    _unit("Conv2d_2b_3x3", 64, 3),
    _unit("Conv2d_3b_1x1", 80, 1),
    _unit("Conv2d_4a_3x3", 192, 3),
)
# Branches of each block, side by side; a branch is a chain of pools, units and
# forks (tuples of units).
BLOCKS = {
    "Mixed_5b": _mixed_35(32),
    "Mixed_5c": _mixed_35(64),
    "Mixed_5d": _mixed_35(64),
    "Mixed_6a": (
        (_unit("branch3x3", 384, 3, stride=2),),
        _chain("branch3x3dbl", (64, 1), (96, 3), (96, 3), last_stride=2),
        ("halve",),
    ),
    "Mixed_6b": _mixed_17(128),
    "Mixed_6c": _mixed_17(160),
    "Mixed_6d": _mixed_17(160),
    "Mixed_6e": _mixed_17(192),
    "Mixed_7a": (
        _chain("branch3x3", (192, 1), (320, 3), last_stride=2),
        _chain("branch7x7x3", (192, 1), (192, 1, 7), (192, 7, 1), (192, 3), last_stride=2),
        ("halve",),
    ),
    "Mixed_7b": _mixed_8("average"),
    # A slip of the original, kept because every published distance has it.
    "Mixed_7c": _mixed_8("maximum"),
}


def _is_fork(step: str | tuple) -> bool:
    return not isinstance(step[0], str)


def unit_names() -> Iterator[str]:
    """Return the official names of all units, such as `Mixed_5b.branch1x1`."""
    yield from (name for name, *_ in STEM)
    for block, branches in BLOCKS.items():
        for branch in branches:
            for step in branch:
                units = step if _is_fork(step) else [step]
                yield from (f"{block}.{u[0]}" for u in units if not isinstance(u, str))


class FrozenNorm(nn.Module):
    """Batch norm by stored statistics, which are parameters here: nothing updates them."""

    epsilon: float = 1e-3

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `x [B, H, W, D]` -> the same."""
        shape = x.shape[-1:]
        mean = self.param("mean", nn.initializers.zeros, shape)
        variance = self.param("var", nn.initializers.ones, shape)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        scale = scale * jax.lax.rsqrt(variance + self.epsilon)
        return (x - mean[None, None, None]) * scale[None, None, None] + bias[None, None, None]


class ConvUnit(nn.Module):
    """Convolution without bias, frozen batch norm, ReLU."""

    width: int
    kernel: tuple[int, int]
    stride: int
    padding: tuple[int, int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `x [B, H, W, D]` -> `[B, H', W', width]`."""
        padding = [(side, side) for side in self.padding]
        x = nn.Conv(
            self.width, self.kernel, self.stride, padding=padding, use_bias=False, name="conv"
        )(x)
        return nn.relu(FrozenNorm(name="bn")(x))


def _made(unit: Unit, padded: bool) -> ConvUnit:
    name, width, kernel, stride = unit
    padding = (kernel[0] // 2, kernel[1] // 2) if padded else (0, 0)
    return ConvUnit(width, kernel, stride, padding, name=name)


def _pool(kind: str, x: jax.Array) -> jax.Array:
    if kind == "halve":
        return nn.max_pool(x, (3, 3), strides=(2, 2))
    if kind == "maximum":
        return nn.max_pool(x, (3, 3), padding="SAME")
    # TensorFlow's average at a border leaves the padding out.
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


class Mixed(nn.Module):
    """Branches side by side, concatenated over channels."""

    branches: tuple

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `x [B, H, W, D]` -> `[B, H', W', D']`."""
        outputs = []
        for branch in self.branches:
            h = x
            for step in branch:
                if isinstance(step, str):
                    h = _pool(step, h)
                elif _is_fork(step):
                    h = jnp.concatenate([_made(unit, True)(h) for unit in step], axis=-1)
                else:
                    h = _made(step, padded=step[-1] == 1)(h)
            outputs.append(h)
        return jnp.concatenate(outputs, axis=-1)


class InceptionV3(nn.Module):
    """Run the network; `prepare` makes its input."""

    num_classes: int = CLASSES

    @nn.compact
    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        """Return features by their official names.

        Args:
          images: `[B, H, W, 3]` float32 in [-1, 1), sides of at least 75 (299 officially).

        Returns:
          float32 means over space: `64`, `192`, `768` `[B, that width]`, `2048` `[B, 2048]` (of
          the Frechet distance), `logits_unbiased` (without the last layer's bias: of the inception
          score) and `logits`, both `[B, num_classes]`.

        Source: Szegedy et al., arXiv 1512.00567; the variant of the `inception-2015-12-05` file.
        """
        features = {}
        x = images
        for unit in STEM:
            x = _made(unit, padded=unit[0] == "Conv2d_2b_3x3")(x)
            if unit[0] in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = _pool("halve", x)
                features[str(x.shape[-1])] = x.mean(axis=(1, 2))
        for name, branches in BLOCKS.items():
            x = Mixed(branches, name=name)(x)
            if name == "Mixed_6e":
                features[str(x.shape[-1])] = x.mean(axis=(1, 2))
        pooled = x.mean(axis=(1, 2))
        features[str(x.shape[-1])] = pooled
        kernel = self.param(
            "fc_kernel", nn.initializers.lecun_normal(), (pooled.shape[-1], self.num_classes)
        )
        bias = self.param("fc_bias", nn.initializers.zeros, (self.num_classes,))
        features["logits_unbiased"] = pooled @ kernel
        features["logits"] = features["logits_unbiased"] + bias[None]
        return features


def resize(images: jax.Array, size: int = SIZE) -> jax.Array:
    """Resize bilinearly, as TensorFlow 1: target pixel i looks at i * in / out, without half
    pixels.

    Args:
      images: `[B, H, W, C]` floating.
      size: of both sides.

    Returns:
      `[B, size, size, C]`, in the input's range.
    """

    def along(x, axis):
        side = x.shape[axis]
        # Without the half pixel that others add: published statistics were made with this resize,
        # and another one changes the distance.
        at = jnp.arange(size, dtype=x.dtype) * (side / size)
        low = jnp.minimum(jnp.floor(at).astype(jnp.int32), side - 1)
        part = jnp.expand_dims(at - low, [i for i in range(x.ndim) if i != axis])
        first = jnp.take(x, low, axis=axis)
        # The last target pixels lie behind the last source pixel and repeat it.
        second = jnp.take(x, jnp.minimum(low + 1, side - 1), axis=axis)
        return first + (second - first) * part

    return along(along(images, 2), 1)


def prepare(images: jax.Array, size: int = SIZE) -> jax.Array:
    """Map uint8 `[B, H, W, 1 or 3]` -> float32 `[B, size, size, 3]` in [-1, 1), grey repeated."""
    resized = resize(jnp.asarray(images).astype(jnp.float32), size)
    return (jnp.broadcast_to(resized, (*resized.shape[:3], 3)) - 128.0) / 128.0


def abstract(module: InceptionV3) -> dict:
    """Return the parameter tree of `ShapeDtypeStruct`, without running anything."""
    images = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    return jax.eval_shape(module.init, seeds.key(0), images)["params"]


def config_of(module: InceptionV3) -> dict:
    """Return what `config.json` holds of such a network."""
    return {"task": TASK, "inception": {"num_classes": module.num_classes}}


def module_of(config: dict) -> InceptionV3:
    """Build the module of such a config.

    Raises:
      ValueError: it is the config of something else.
    """
    if config.get("task") != TASK:
        raise ValueError(f"task: got {config.get('task')!r}, allowed {TASK!r}")
    fields = config.get("inception")
    classes = fields.get("num_classes") if isinstance(fields, dict) else None
    if type(classes) is not int or classes < 1:
        raise ValueError(f"inception.num_classes: got {classes!r}, allowed a number from 1")
    return InceptionV3(num_classes=classes)


def load(workdir: str | os.PathLike) -> tuple[InceptionV3, dict]:
    """Load the network of a workdir written by `convert --family=inception`, and its parameters.

    Raises:
      ValueError: it is no such folder, or the arrays do not fit; one line.
    """
    module = module_of(read_config(workdir))
    checkpoints = Checkpoints(workdir, create=False)
    step = checkpoints.latest_step()
    if step is None:
        raise ValueError(f"workdir: got {str(workdir)!r}, allowed one with a finished checkpoint")
    params = checkpoints.restore(step, ema=abstract(module))["ema"]
    checkpoints.close()
    return module, params
