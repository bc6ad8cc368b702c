"""Do draws spread as far as they err? By bands of directions, from the coarse to the fine ones.

The energy score is one number over all directions; a head that varies too little in some and too
much in others may have a good one. On the host, in float64.
"""

import numpy as np

BANDS = 4


def directions(tokens: np.ndarray) -> np.ndarray:
    """Find orthonormal directions of tokens `[..., C]`: columns `[C, C]`, by falling variance."""
    flat = np.asarray(tokens, np.float64).reshape(-1, tokens.shape[-1])
    # `cov` makes a bare number of one channel; `eigh` sorts upwards.
    _, vectors = np.linalg.eigh(np.atleast_2d(np.cov(flat, rowvar=False)))
    return vectors[:, ::-1]


def to_error(x: np.ndarray, y: np.ndarray, basis: np.ndarray) -> tuple[float, ...]:
    """Divide the variance of the draws by the squared error of their mean, in each band of
    directions.

    Of draws and a real token from one distribution the expected square of the real one's distance
    from the mean of G draws is `1 + 1/G` times their variance: with that factor the ratio is 1
    where they agree, below 1 where draws are too alike, above 1 where they scatter too far.

    Args:
      x: `[..., G, C]` draws, G >= 2.
      y: `[..., C]` the real tokens.
      basis: `[C, C]` of `directions`; `BANDS` bands as equal as C allows, fewer if C is less.

    Returns:
      The ratio of each band: a ratio of sums over contexts and directions.

    Raises:
      ValueError: fewer than two draws.
    """
    draws = x.shape[-2]
    if draws < 2:
        raise ValueError(f"draws: got {draws}, allowed 2 or more")
    x, y = np.asarray(x, np.float64) @ basis, np.asarray(y, np.float64) @ basis
    # The unbiased variance, which the factor is about.
    spread = (1 + 1 / draws) * x.var(axis=-2, ddof=1).reshape(-1, len(basis)).sum(axis=0)
    error = np.square(y - x.mean(axis=-2)).reshape(-1, len(basis)).sum(axis=0)
    bands = np.array_split(np.arange(len(basis)), min(BANDS, len(basis)))
    # Sums first: a mean of ratios would be ruled by contexts whose error happens to be near 0.
    return tuple(float(spread[band].sum() / error[band].sum()) for band in bands)
