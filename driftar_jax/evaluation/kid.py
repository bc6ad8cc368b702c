"""Kernel distance between samples and real data: unbiased, so that it serves for small sets too."""

import numpy as np

SUBSETS, SIZE = 100, 1000


def kid(
    real: np.ndarray,
    samples: np.ndarray,
    *,
    subsets: int = SUBSETS,
    size: int = SIZE,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the mean and spread of the squared maximum mean discrepancy over random subsets.

    The kernel is `(x . y / d + 1)^3`. Each subset's estimate is unbiased, so its mean is near 0 for
    samples of the same distribution, below it as often as above.

    Args:
      real: `[n, d]` features of real data.
      samples: `[m, d]` features of samples.
      subsets: how many are drawn.
      size: rows of a subset; of sets below twice as many, half of the smaller.
      seed: of the draws.

    Returns:
      Mean and standard deviation over the subsets.

    Raises:
      ValueError: a set has fewer than 4 rows, or widths differ.

    Source: Binkowski et al., arXiv 1801.01401.
    """
    if real.ndim != 2 or samples.ndim != 2 or real.shape[1] != samples.shape[1]:
        raise ValueError(f"features: got {real.shape} and {samples.shape}, allowed one width")
    fewest = min(len(real), len(samples))
    if fewest < 4:
        raise ValueError(f"num: got {fewest} images, allowed at least 4 (kernel distance)")
    # Half at most, or subsets of a small set would be the same rows again and their spread 0.
    size = min(size, fewest // 2)
    rng = np.random.default_rng(seed)
    real, samples = np.asarray(real, np.float64), np.asarray(samples, np.float64)
    estimates = [
        discrepancy(
            real[rng.choice(len(real), size, replace=False)],
            samples[rng.choice(len(samples), size, replace=False)],
        )
        for _ in range(subsets)
    ]
    return float(np.mean(estimates)), float(np.std(estimates))


def discrepancy(x: np.ndarray, y: np.ndarray) -> float:
    """Return the unbiased estimate of the squared discrepancy of `[n, d]` and `[m, d]`, float64."""
    n, m = len(x), len(y)
    within_x, within_y, across = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    # Pairs of a row with itself are left out: they would bias the estimate upwards.
    same_x = (within_x.sum() - np.trace(within_x)) / (n * (n - 1))
    same_y = (within_y.sum() - np.trace(within_y)) / (m * (m - 1))
    return float(same_x + same_y - 2.0 * across.mean())


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1.0) ** 3
