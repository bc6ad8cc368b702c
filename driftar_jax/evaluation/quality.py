"""How good samples are, in one pass over them, and how good real images are by the same rules.

The Frechet distance is named after its network: `fd_inception` is what publications report,
`fd_classifier` compares rows of one table and nothing else.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from driftar_jax.evaluation import frechet as moments
from driftar_jax.evaluation import inception_score as score
from driftar_jax.evaluation import manifold
from driftar_jax.evaluation.frechet import Moments
from driftar_jax.evaluation.kid import kid
from driftar_jax.evaluation.networks import Network, checked
from driftar_jax.evaluation.stopwatch import Ledger

# Beside the distance and the class accuracy, which every table has.
OPTIONAL = ("kid", "precision_recall", "inception_score", "nearest")
# Features kept for precision, recall and kernel distance, of samples and of real images alike.
KEPT = 10_000
NEIGHBOURS = 3
# A sample nearer to a training image than all but this share of held-out images looks copied.
NEAR = 0.01


@dataclasses.dataclass(frozen=True)
class Quality:
    """Hold the scores of one set of images; None where one was not asked for.

    Attributes:
      frechet: distance to the real data.
      accuracy: share that the classifier takes for what was asked.
      kid, kid_spread: kernel distance, mean and standard deviation over its subsets.
      precision, recall: of the k-nearest-neighbour manifolds, at equal counts.
      inception_score: from 1 to the number of classes.
      nearest: median distance to the nearest training image, see `manifold.nearest`.
      copied: share nearer to a training image than 99 % of held-out real images are; 0.01 is what
        real images have.
    """

    frechet: float
    accuracy: float
    kid: float | None = None
    kid_spread: float | None = None
    precision: float | None = None
    recall: float | None = None
    inception_score: float | None = None
    nearest: float | None = None
    copied: float | None = None


def summary(qualities: Sequence[Quality]) -> dict[str, float]:
    """Return the mean over seeds of everything measured, and with `_std` the standard deviation."""
    values = {}
    for field in dataclasses.fields(Quality):
        column = [getattr(q, field.name) for q in qualities]
        if None not in column:
            values[field.name] = float(np.mean(column))
            values[f"{field.name}_std"] = float(np.std(column, ddof=1)) if len(column) > 1 else 0.0
    return values


@dataclasses.dataclass(frozen=True)
class Against:
    """What a set of images is held against.

    Attributes:
      moments: of the real features.
      features: `[n, d]` real features; None where no metric asks for them.
      training: uint8 `[m, H, W, C]`; None where nearest images are not asked for.
      near: distance to the nearest training image that only `NEAR` of held-out images go under.
      metrics: of `OPTIONAL`.
    """

    moments: Moments
    features: np.ndarray | None = None
    training: np.ndarray | None = None
    near: float = 0.0
    metrics: frozenset[str] = frozenset()


class Tally:
    """Takes images in parts and remembers what the metrics need, never the images.

    Memory: `[d, d]` moments, `KEPT` features, one distance per image.
    """

    def __init__(
        self,
        network: Network,
        classifier: Network,
        against: Against,
        num: int,
        *,
        scored: bool = False,
        ledger: Ledger | None = None,
    ):
        """For `num` images; `scored` asks for the inception score."""
        self._network, self._classifier, self._against = network, classifier, against
        self._num, self._ledger = num, ledger or Ledger()
        self._sums = moments.MomentSums(network.width)
        splits = min(score.SPLITS, num)
        self._score = score.ScoreSums(num, network.num_classes, splits) if scored else None
        self._right = 0
        self._distances: list[np.ndarray] = []
        kept = min(KEPT, num, len(against.features)) if against.features is not None else 0
        self._features = np.empty((kept, network.width), np.float32)

    def add(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Take uint8 `[n, H, W, C]` made for classes `labels [n]`."""
        count = self._sums.count
        with self._ledger("features"):
            features, logits = self._network.read(images)
            if self._classifier is self._network:
                classes = logits.argmax(axis=1)
            else:
                classes = self._classifier.read(images)[1].argmax(axis=1)
        with self._ledger("metrics"):
            self._right += int((classes == labels).sum())
            self._sums.add(features)
            keep = features[: max(len(self._features) - count, 0)]
            self._features[count : count + len(keep)] = keep
            if self._score is not None:
                self._score.add(logits)
        if self._against.training is not None:
            with self._ledger("nearest images"):
                self._distances.append(manifold.nearest(images, self._against.training)[1])

    def quality(self) -> Quality:
        """Return it, of everything taken.

        Raises:
          ValueError: not `num` images came, or too few for their features.
        """
        if self._sums.count != self._num:
            raise ValueError(f"num: got {self._sums.count} images, allowed {self._num}")
        against = self._against
        with self._ledger("metrics"):
            frechet = moments.frechet_distance(self._sums.moments(), against.moments)
            values = {}
            if against.features is not None:
                # Equal counts, for precision and recall depend on them.
                chosen = np.random.default_rng(0).permutation(len(against.features))
                real = against.features[chosen[: len(self._features)]]
                if "kid" in against.metrics:
                    values["kid"], values["kid_spread"] = kid(real, self._features)
                if "precision_recall" in against.metrics:
                    shares = manifold.precision_recall(real, self._features, neighbours=NEIGHBOURS)
                    values["precision"], values["recall"] = shares
            if self._score is not None:
                values["inception_score"] = self._score.result()[0]
            if self._distances:
                distances = np.concatenate(self._distances)
                values["nearest"] = float(np.median(distances))
                values["copied"] = float((distances < against.near).mean())
        return Quality(frechet, self._right / self._num, **values)


class RealSet:
    """Hold the real images as the networks see them, read once."""

    def __init__(
        self,
        network: Network,
        classifier: Network,
        images: np.ndarray,
        labels: np.ndarray,
        num_training: int,
        *,
        metrics: Iterable[str] = OPTIONAL,
        reference: Moments | None = None,
        ledger: Ledger | None = None,
    ):
        """Read the set.

        Args:
          network: of distance, precision, recall and score.
          classifier: of the accuracy.
          images: uint8 `[n, H, W, C]`, those that models were trained on first.
          labels: `[n]`.
          num_training: how many of them.
          metrics: of `OPTIONAL`.
          reference: moments that samples are compared with, instead of this set's.
          ledger: takes the times.

        Raises:
          ValueError: too few images for the network's features, or an unknown metric.
        """
        for metric in metrics:
            if metric not in OPTIONAL:
                raise ValueError(f"metrics: got {metric!r}, allowed {' | '.join(OPTIONAL)}")
        moments.check_count(len(images) // 2, network.width, "half of the real images")
        self.images, self.labels, self.metrics = checked(images), labels, frozenset(metrics)
        self.num_training = num_training
        self.network, self.classifier = network, classifier
        self.ledger = ledger or Ledger()
        with self.ledger("features"):
            self._features, logits = network.read(images)
            if classifier is not network:
                logits = classifier.read(images)[1]
        self.accuracy = float((logits.argmax(axis=1) == labels).mean())
        with self.ledger("metrics"):
            self.moments = Moments.of(self._features)
        training, held_out = images[:num_training], images[num_training:]
        self._held_out = np.zeros(0)
        if "nearest" in self.metrics and len(held_out) and len(training):
            chosen = np.random.default_rng(0).permutation(len(held_out))[:KEPT]
            with self.ledger("nearest images"):
                self._held_out = manifold.nearest(held_out[chosen], training)[1]
        self._against = Against(
            moments=reference or self.moments,
            features=self._features if {"kid", "precision_recall"} & self.metrics else None,
            training=training if len(self._held_out) else None,
            near=float(np.quantile(self._held_out, NEAR)) if len(self._held_out) else 0.0,
            metrics=self.metrics,
        )

    def tally(self, num: int) -> Tally:
        """Return an empty tally for `num` samples."""
        return self._tally(self._against, num)

    def _tally(self, against: Against, num: int) -> Tally:
        scored = "inception_score" in self.metrics
        return Tally(self.network, self.classifier, against, num, scored=scored, ledger=self.ledger)

    def floor(self, repeats: int = 3) -> float:
        """Return the mean distance of two random halves of the set: what no sampler can beat."""
        with self.ledger("metrics"):
            return real_floor(self._features, repeats)

    def quality(self, num: int, seed: int) -> Quality:
        """Measure `num` real images (half of the set at most) by the rules for samples.

        They are held against all the others; nearest training images are those of the images that
        no model was trained on.
        """
        order = np.random.default_rng(seed).permutation(len(self.images))
        chosen, others = np.split(order, [min(num, len(order) // 2)])
        # Real images are held against the others alone: against themselves their distance would be
        # too small.
        rest = self._features[others]
        with self.ledger("metrics"):
            kept = None if self._against.features is None else rest
            against = Against(Moments.of(rest), kept, metrics=self.metrics)
        tally = self._tally(against, len(chosen))
        tally.add(self.images[chosen], self.labels[chosen])
        result = tally.quality()
        if not len(self._held_out):
            return result
        return dataclasses.replace(
            result,
            nearest=float(np.median(self._held_out)),
            copied=float((self._held_out < self._against.near).mean()),
        )


def real_floor(features: np.ndarray, repeats: int = 3, seed: int = 0) -> float:
    """Return the mean distance between two random halves of features `[n, d]`."""
    rng = np.random.default_rng(seed)
    half = len(features) // 2
    distances = []
    for _ in range(repeats):
        order = rng.permutation(len(features))
        halves = Moments.of(features[order[:half]]), Moments.of(features[order[half:]])
        distances.append(moments.frechet_distance(*halves))
    return float(np.mean(distances))
