"""The frozen networks that images are measured with: the set's small classifier, InceptionV3."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from driftar_jax.data.pixels import to_unit_range
from driftar_jax.features import inception as incept
from driftar_jax.features.classifier import SmallClassifier
from driftar_jax.sharding import over_rows, rows_over


@dataclasses.dataclass(frozen=True)
class Network:
    """Makes features and logits of images.

    Attributes:
      name: classifier | inception; its Frechet distance is called `fd_` and this.
      width: of the features.
      num_classes: of the logits.
      batch_size: images per call; changes the speed alone.
      apply: `(params, uint8 [B, H, W, C]) -> (features, logits)`, jitted.
      params: of `apply`.
    """

    name: str
    width: int
    num_classes: int
    batch_size: int
    apply: Callable[[Any, np.ndarray], tuple[jax.Array, jax.Array]]
    params: Any

    def read(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return features `[n, width]` and logits `[n, num_classes]`, float32, of uint8 `[n, H, W,
        C]`.

        Raises:
          ValueError: images of mixed sizes, another type, or not of 1 or 3 channels.
        """
        images, rows = checked(images), rows_over(self.params)
        features = np.empty((len(images), self.width), np.float32)
        logits = np.empty((len(images), self.num_classes), np.float32)
        for first in range(0, len(images), self.batch_size):
            part = images[first : first + self.batch_size]
            # Filled up by repeating: a last, smaller part would be a program of its own.
            padded = np.resize(part, (self.batch_size, *part.shape[1:]))
            outputs = self.apply(self.params, over_rows(padded, rows))
            for array, new in zip((features, logits), outputs, strict=True):
                array[first : first + len(part)] = np.asarray(new)[: len(part)]
        return features, logits


def checked(images: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    """Return the images as one uint8 array `[n, H, W, 1 or 3]`, at least one; else ValueError."""
    if not isinstance(images, np.ndarray):
        shapes = sorted({np.shape(image) for image in images})
        if len(shapes) != 1:
            raise ValueError(f"images: got sizes {shapes[:3]}, allowed one size")
        images = np.stack(list(images))
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"images: got {images.dtype} {images.shape}, allowed uint8 [n, H, W, 1 or 3]"
        )
    if 0 in images.shape:
        raise ValueError(f"images: got shape {images.shape}, allowed at least one image")
    return images


@functools.partial(jax.jit, static_argnums=0)
def _classify(module: SmallClassifier, params, images):
    # On accelerators the default precision of products would move the distance.
    with jax.default_matmul_precision("highest"):
        return module.apply({"params": params}, to_unit_range(images))


def classifier(module: SmallClassifier, params: Any, batch_size: int = 512) -> Network:
    """Return the network of a classifier trained on the set itself."""
    apply = functools.partial(_classify, module)
    return Network("classifier", module.width, module.num_classes, batch_size, apply, params)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _incept(module: incept.InceptionV3, size: int, params, images):
    with jax.default_matmul_precision("highest"):
        features = module.apply({"params": params}, incept.prepare(images, size))
    return features[str(incept.WIDTH)], features["logits_unbiased"]


def inception(
    module: incept.InceptionV3, params: Any, batch_size: int = 32, size: int = incept.SIZE
) -> Network:
    """Return the network of published distances and inception scores; other sizes are for tests."""
    apply = functools.partial(_incept, module, size)
    return Network("inception", incept.WIDTH, module.num_classes, batch_size, apply, params)
