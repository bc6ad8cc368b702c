"""The inception score: are samples recognised, and as different things?"""

import numpy as np

SPLITS = 10


class ScoreSums:
    """Takes logits in any number of parts; remembers `[splits, K]` numbers.

    Splits are consecutive, so their borders follow from the total, which must be known.
    """

    def __init__(self, total: int, classes: int, splits: int = SPLITS):
        if not 1 <= splits <= total:
            raise ValueError(f"splits: got {splits}, allowed 1 to {total} (the number of images)")
        self._starts = np.arange(splits + 1) * total // splits
        self._taken = 0
        self._sums = np.zeros((splits, classes))
        self._negentropy = np.zeros(splits)

    def add(self, logits: np.ndarray) -> None:
        """Take logits `[n, K]` of the next images.

        Raises:
          ValueError: there are more than the total, or K is another.
        """
        allowed = self._starts[-1] - self._taken
        if logits.ndim != 2 or logits.shape[1] != self._sums.shape[1] or len(logits) > allowed:
            raise ValueError(
                f"logits: got shape {logits.shape}, allowed [at most {allowed}, "
                f"{self._sums.shape[1]}]"
            )
        z = np.asarray(logits, np.float64)
        # A softmax does not change by a constant, and without it large logits overflow.
        z = z - z.max(axis=1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        index = self._taken + np.arange(len(z))
        # Parts of the stream need not end where splits do.
        split = np.searchsorted(self._starts, index, side="right") - 1
        np.add.at(self._sums, split, p)
        np.add.at(self._negentropy, split, (p * log_p).sum(axis=1))
        self._taken += len(z)

    def result(self) -> tuple[float, float]:
        """Return the mean and population standard deviation over the splits.

        Raises:
          ValueError: fewer images came than announced.
        """
        if self._taken != self._starts[-1]:
            raise ValueError(f"logits: got {self._taken} images, allowed {self._starts[-1]}")
        counts = np.diff(self._starts).astype(np.float64)
        marginal = self._sums / counts[:, None]
        # Where p is zero, p log p is as well.
        entropy = -(marginal * np.log(np.where(marginal > 0, marginal, 1.0))).sum(axis=1)
        scores = np.exp(self._negentropy / counts + entropy)
        return float(scores.mean()), float(scores.std())


def inception_score(logits: np.ndarray, splits: int = SPLITS) -> tuple[float, float]:
    """Return `exp E KL(p(y|x) || p(y))` over consecutive splits, from 1 to the number of classes.

    Args:
      logits: `[n, K]`; for published figures InceptionV3's `logits_unbiased`.
      splits: at most n.

    Returns:
      Mean and population standard deviation over the splits.

    Raises:
      ValueError: more splits than images.

    Source: Salimans et al., arXiv 1606.03498.
    """
    sums = ScoreSums(len(logits), logits.shape[1], splits)
    sums.add(logits)
    return sums.result()
