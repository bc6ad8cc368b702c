"""Conditions that are classes: one number for each image, -1 for none."""

from typing import Any

import numpy as np

from driftar_jax.config import wrong
from driftar_jax.hosts.base import Model


def check(model: Model, labels: Any) -> None:
    """Raise ValueError where these are no classes `[n]` of the model, at least one."""
    labels = np.asarray(labels, np.int32)
    most = model.images.num_classes - 1
    if labels.ndim != 1 or len(labels) == 0:
        raise ValueError(f"labels: got shape {labels.shape}, allowed at least one in one row")
    for label in labels[(labels < -1) | (labels > most)]:
        raise wrong("labels", int(label), f"0 to {most}, or -1 for none")
