"""Orders of a grid: permutations, the sequences' spread, and the random one as it always was."""

import jax
import numpy as np
import pytest

from driftar_jax.heads import randomness
from driftar_jax.hosts import orders

KEYS = randomness.image_keys(np.uint32(3), np.arange(5, dtype=np.int32))


@pytest.mark.parametrize("kind", orders.ORDERS)
def test_every_order_reveals_each_cell_once(kind):
    found = np.asarray(orders.draw(KEYS, (4, 6), kind))
    assert found.dtype == np.int32
    np.testing.assert_array_equal(np.sort(found, axis=1), np.tile(np.arange(24), (5, 1)))
    assert len(np.unique(found, axis=0)) > 1  # images differ


def test_the_random_order_is_the_one_of_before():
    want = randomness.orders(KEYS, 24)
    np.testing.assert_array_equal(orders.draw(KEYS, (4, 6)), want)


def _closest(order, count, grid):
    """Least distance of two of the cells that are revealed first, over the edges."""
    cells = np.stack(np.divmod(np.asarray(order)[::-1][:count], grid[1]), axis=1)
    gap = np.abs(cells[:, None] - cells[None])
    gap = np.minimum(gap, np.array(grid) - gap)
    return np.sqrt((gap**2).sum(-1))[~np.eye(count, dtype=bool)].min()


def test_cells_drawn_together_lie_far_apart():
    grid = (8, 8)
    of = {kind: np.asarray(orders.draw(KEYS, grid, kind)) for kind in orders.ORDERS}
    least = {kind: [_closest(o, 8, grid) for o in found] for kind, found in of.items()}
    # Eight of 64 cells can be 2 sqrt(2) apart, and no random eight are.
    assert min(least["far"]) >= 2.8 > np.mean(least["random"]) + 1
    assert min(least["halton"]) > 1.4 > np.mean(least["random"])


def test_one_colour_of_the_chessboard_comes_first():
    found = np.asarray(orders.draw(KEYS, (4, 6), "chessboard"))[:, ::-1]
    colour = np.divmod(found, 6)[0] + np.divmod(found, 6)[1]
    assert (colour[:, :12] % 2 == 0).all() and (colour[:, 12:] % 2 == 1).all()


def test_the_halton_sequence_is_the_known_one():
    # Bases 2 and 3 on a grid of 2 x 3: (1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9), ...
    assert orders.halton((2, 3))[:4].tolist() == [3 + 1, 0 + 2, 3 + 0, 0 + 1]
    with pytest.raises(ValueError, match="order: got 'spiral', allowed random | halton"):
        orders.draw(jax.random.split(jax.random.key(0), 1), (2, 2), "spiral")
