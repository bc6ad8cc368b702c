"""Orders in which a grid is revealed: at random, or so that cells drawn together lie far apart.

Sources of the ideas: Halton (arXiv 2503.17076), LPD's far-from-each-other order (arXiv 2507.01957),
GtR's chessboard (arXiv 2510.17171); written from their descriptions.
"""

import functools

import jax
import numpy as np

from driftar_jax.heads import randomness
from driftar_jax.hosts.mar import ORDERS


def draw(keys: jax.Array, grid: tuple[int, int], kind: str = "random") -> jax.Array:
    """Draw generation orders `[B, N]` int32 of images, revealed from the end.

    Args:
      keys: `[B]`, of `randomness.image_keys`.
      grid: rows and columns.
      kind: `random`; `halton`: a low-discrepancy sequence; `far`: each cell as far as can be from
        all before it; `chessboard`: the cells of one colour first, at random. The sequences are
        rolled over the edges, by another shift for each image.

    Raises:
      ValueError: an unknown `kind`.
    """
    if kind == "halton":
        return randomness.spread_out(keys, halton(grid), grid)
    if kind == "far":
        return randomness.spread_out(keys, far(grid), grid)
    order = randomness.orders(keys, grid[0] * grid[1])
    if kind == "chessboard":
        return randomness.dark_cells_first(order, grid)
    if kind != "random":
        raise ValueError(f"order: got {kind!r}, allowed {' | '.join(ORDERS)}")
    return order


@functools.cache
def halton(grid: tuple[int, int]) -> np.ndarray:
    """List the cells of a grid, `[N]`, as the Halton sequence of bases 2 and 3 meets them first."""
    rows, columns = grid
    cells: dict[int, None] = {}
    number = 0
    while len(cells) < rows * columns:
        number += 1
        cell = int(_inverse(number, 2) * rows) * columns + int(_inverse(number, 3) * columns)
        cells.setdefault(cell)
    return np.array(list(cells), np.int64)


def _inverse(number: int, base: int) -> float:
    """Return the digits of a number in a base, mirrored behind the point: in [0, 1)."""
    value, scale = 0.0, 1.0 / base
    while number:
        number, digit = divmod(number, base)
        value += digit * scale
        scale /= base
    return value


@functools.cache
def far(grid: tuple[int, int]) -> np.ndarray:
    """List a grid's cells, `[N]`: each as far as can be from those before it, over the edges."""
    rows, columns = grid
    cells = np.stack(np.divmod(np.arange(rows * columns), columns), axis=1)
    gap = np.abs(cells[:, None] - cells[None])
    gap = np.minimum(gap, np.array(grid) - gap)
    distance = np.sqrt((gap**2).sum(axis=-1))
    order = [0]
    nearest, crowd = distance[0].copy(), 1 / (1 + distance[0])
    while len(order) < len(cells):
        nearest[order] = -1.0
        # Among the cells that are as far, the one with most room around it.
        best = np.flatnonzero(nearest >= nearest.max() - 1e-9)
        cell = int(best[np.argmin(crowd[best])])
        order.append(cell)
        nearest = np.minimum(nearest, distance[cell])
        crowd += 1 / (1 + distance[cell])
    return np.array(order, np.int64)
