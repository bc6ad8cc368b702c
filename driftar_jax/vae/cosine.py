"""The shortcut of an autoencoder before training: the lowest frequencies of a square, and back.

A discrete cosine transform of brightness and of two differences of colour, as pictures have been
packed for decades: of drawn pictures of 64x64, 16 numbers for 8x8 pixels give 25.5 dB back.
"""

import numpy as np

# Brightness, red against blue, green against both: orthonormal rows.
_COLOURS = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
# By how much a difference of colour counts as a higher frequency, in half waves of a square.
_OFFSETS = (0.0, 1.6, 2.6)
# A coefficient of frequency r is taken to be this wide for pixels in [-1, 1], over the square's
# side; training corrects it.
_WIDTH, _FALL = 0.8, 1.9


def maps(side: int, channels: int, numbers: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the linear maps from a square's pixels to its lowest coefficients, each about 1 wide,
    and back.

    Args:
      side: of the square.
      channels: of the image; colours are told apart for 3 alone.
      numbers: how many coefficients; where a square has fewer, the others stay 0.

    Returns:
      `[channels side side, numbers]` and `[numbers, channels side side]`, float64; pixels stand in
      the order of `data.patches.patchify`. The second is the pseudo-inverse of the first.
    """
    wave = np.cos(np.pi * (np.arange(side) + 0.5) * np.arange(side)[:, None] / side)
    wave *= np.sqrt(np.where(np.arange(side) > 0, 2, 1) / side)[:, None]
    colours = _COLOURS if channels == 3 else np.eye(channels)
    offsets = np.array(_OFFSETS if channels == 3 else [0.0] * channels)
    basis = np.einsum("kc,ui,vj->kuvcij", colours, wave, wave).reshape(-1, channels * side**2)
    u, v = np.arange(side)[:, None], np.arange(side)
    frequency = (np.hypot(u, v) + offsets[:, None, None]).ravel()
    lowest = np.argsort(frequency, kind="stable")[:numbers]
    width = _WIDTH * side / (1 + _FALL * frequency[lowest])
    there = np.zeros((basis.shape[1], numbers))
    back = np.zeros((numbers, basis.shape[1]))
    there[:, : len(lowest)] = (basis[lowest] / width[:, None]).T
    back[: len(lowest)] = basis[lowest] * width[:, None]
    return there, back
