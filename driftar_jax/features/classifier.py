"""A small image classifier: the named feature network of the small benchmarks."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from driftar_jax.config import of_tasks, whole

# What a config of task `classifier` has beside what every run has.
FIELDS = of_tasks(
    ("classifier",),
    {"classifier.width": whole(1, "Channels of the first block of the classifier.")},
)


class SmallClassifier(nn.Module):
    """Three convolutions and a feature layer, for images of 8 to 64 pixels."""

    num_classes: int
    width: int

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Map images `[B, H, W, C]` in [-1, 1] -> features `[B, width]`, logits `[B, K]`."""
        h = nn.gelu(nn.Conv(self.width // 2, (3, 3), name="conv_0")(images))
        h = nn.gelu(nn.Conv(self.width, (3, 3), strides=2, name="conv_1")(h))
        h = nn.gelu(nn.Conv(self.width, (3, 3), strides=2, name="conv_2")(h))
        h = h.reshape(h.shape[0], -1)
        features = nn.gelu(nn.Dense(self.width, name="features")(h))
        return features, nn.Dense(self.num_classes, name="logits")(features)


def check(flat: Mapping[str, Any]) -> None:
    """Accept any checked field of task `classifier`: there is one, which binds no other."""


def build(config: Any, num_classes: int) -> SmallClassifier:
    """Build the network of a checked config of task `classifier`."""
    return SmallClassifier(num_classes=num_classes, width=config.classifier.width)
