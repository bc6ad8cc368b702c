"""How good samples are: Frechet distance, class accuracy, and the floor real data sets.

The feature network is the small classifier of `features.py`, trained on the set itself. Its
distances are named `fd_classifier` in reports; no published FID compares with them.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from driftar_jax.features import SmallClassifier, to_unit_range


@dataclasses.dataclass(frozen=True)
class Judge:
    """A trained classifier: its module and parameters."""

    module: SmallClassifier
    params: Any

    def read(self, images: np.ndarray, batch_size: int = 512) -> tuple[np.ndarray, np.ndarray]:
        """uint8 `[n, H, W, C]` -> features `[n, width]` float64, predicted classes `[n]`."""
        features, classes = [], []
        for first in range(0, len(images), batch_size):
            part = images[first : first + batch_size]
            padded = np.resize(part, (batch_size, *part.shape[1:]))
            f, logits = _judge(self.module, self.params, padded)
            features.append(np.asarray(f, np.float64)[: len(part)])
            classes.append(np.asarray(logits).argmax(axis=-1)[: len(part)])
        return np.concatenate(features), np.concatenate(classes)


@functools.partial(jax.jit, static_argnums=0)
def _judge(module: SmallClassifier, params, images):
    return module.apply({"params": params}, to_unit_range(images))


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean `[d]` and covariance `[d, d]` of features, float64, and how many there were."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int

    @classmethod
    def of(cls, features: np.ndarray) -> "Moments":
        """From features `[n, d]`.

        Raises:
          ValueError: n <= d, where the covariance has no full rank and distances mean nothing.
        """
        n, d = features.shape
        if n <= d:
            raise ValueError(f"num: got {n} images, allowed more than {d} (the feature width)")
        return cls(features.mean(axis=0), np.cov(features, rowvar=False), n)


def frechet_distance(a: Moments, b: Moments) -> float:
    """`|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))` between two Gaussians, float64."""
    root = _symmetric_root(a.covariance)
    # The root of S_a S_b has the trace of the root of this symmetric matrix, which is stable.
    middle = np.linalg.eigvalsh(root @ b.covariance @ root)
    cross = np.sqrt(np.maximum(middle, 0.0)).sum()
    trace = np.trace(a.covariance) + np.trace(b.covariance)
    return float(np.square(a.mean - b.mean).sum() + trace - 2.0 * cross)


def _symmetric_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def real_floor(features: np.ndarray, repeats: int = 3, seed: int = 0) -> float:
    """Mean distance between two random halves of the real features: what no sampler can beat."""
    rng = np.random.default_rng(seed)
    half = len(features) // 2
    distances = []
    for _ in range(repeats):
        order = rng.permutation(len(features))
        halves = Moments.of(features[order[:half]]), Moments.of(features[order[half:]])
        distances.append(frechet_distance(*halves))
    return float(np.mean(distances))


@dataclasses.dataclass(frozen=True)
class Quality:
    """Of one set of samples: distance to the real data, share recognised as what was asked."""

    frechet: float
    accuracy: float


def measure(judge: Judge, real: Moments, images: np.ndarray, labels: np.ndarray) -> Quality:
    """Judge `images` uint8 made for `labels` against the real moments."""
    features, classes = judge.read(images)
    return Quality(
        frechet=frechet_distance(Moments.of(features), real),
        accuracy=float((classes == labels).mean()),
    )
