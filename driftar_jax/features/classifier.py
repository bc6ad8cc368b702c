"""A small image classifier: the named feature network of the small benchmarks."""

from typing import Any

import flax.linen as nn
import jax


class SmallClassifier(nn.Module):
    """Three convolutions and a feature layer, for images of 8 to 64 pixels."""

    num_classes: int
    width: int

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`images [B, H, W, C]` floating in [-1, 1] -> features `[B, width]`, logits `[B, K]`."""
        h = nn.gelu(nn.Conv(self.width // 2, (3, 3), name="conv_0")(images))
        h = nn.gelu(nn.Conv(self.width, (3, 3), strides=2, name="conv_1")(h))
        h = nn.gelu(nn.Conv(self.width, (3, 3), strides=2, name="conv_2")(h))
        h = h.reshape(h.shape[0], -1)
        features = nn.gelu(nn.Dense(self.width, name="features")(h))
        return features, nn.Dense(self.num_classes, name="logits")(features)


def build(config: Any, num_classes: int) -> SmallClassifier:
    """Build the network of a checked config of task `classifier`."""
    return SmallClassifier(num_classes=num_classes, width=config.classifier.width)
