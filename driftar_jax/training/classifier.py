"""The small feature network as a task, trained on the images themselves."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from driftar_jax import model
from driftar_jax.data.pixels import to_unit_range
from driftar_jax.features.classifier import SmallClassifier


@dataclasses.dataclass(frozen=True)
class ClassifierTask:
    """Task `classifier`: cross entropy of the labels, from images with a little noise."""

    module: SmallClassifier
    images: model.ImageSpec
    freeze_step: None = None
    tracked: tuple[str, ...] = ()

    def init(self, key: jax.Array) -> dict[str, Any]:
        """See `Task.init`."""
        image = jnp.zeros((1, *self.images.image_shape))
        return {"classifier": self.module.init(key, image)["params"]}

    def trainable(self, frozen: bool) -> tuple[str, ...]:
        """See `Task.trainable`: all of it."""
        return ("classifier",)

    def loss(self, params, batch, key, step, frozen):
        """See `Task.loss`: cross entropy on images with a little noise."""
        image = to_unit_range(batch["image"])
        # Noise keeps the features smooth, so that faint speckle does not dominate a distance.
        image += 0.1 * jax.random.normal(key, image.shape, dtype=jnp.float32)
        _, logits = self.module.apply({"params": params["classifier"]}, image)
        rows = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        correct = (logits.argmax(axis=-1) == batch["label"]).astype(jnp.float32)
        return rows.mean(), {"accuracy": correct.mean()}


def build(config: Any, images: model.ImageSpec) -> ClassifierTask:
    """Return the task of a checked config."""
    module = SmallClassifier(num_classes=images.num_classes, width=config.classifier.width)
    return ClassifierTask(module, images)
