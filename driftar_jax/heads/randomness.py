"""All randomness of sampling: a function of (seed, image, token, draw), never of the call.

So an image does not depend on its batch, on padding, or on how many groups a backbone call serves.
"""

import jax
import jax.numpy as jnp
import numpy as np

from driftar_jax import seeds

# What is folded into an image's key: its order, its tokens, the control of `prior.scale`.
_ORDER, _TOKENS, _PRIOR = range(3)
# What is folded into a token's key beside the numbers of its noise draws, which are small.
_VERDICT = 1 << 20


def image_keys(seed: jax.Array, index: jax.Array) -> jax.Array:
    """Return `[B]` keys of the images `index [B]` under `seed`, a uint32 scalar."""
    # Folded and not split: image 7 is the same whether seven or seven thousand were asked for.
    return jax.vmap(jax.random.fold_in, (None, 0))(seeds.key(seed), index)


def orders(keys: jax.Array, num_tokens: int) -> jax.Array:
    """Draw the orders `[B, N]` int32 of images; generation reveals them from the end."""
    return jax.vmap(lambda k: jax.random.permutation(k, num_tokens))(_fold(keys, _ORDER))


def spread_out(keys: jax.Array, sequence: np.ndarray, grid: tuple[int, int]) -> jax.Array:
    """Return generation orders `[B, N]` of one sequence of cells, rolled over the grid's edges by
    image.

    Args:
      keys: `[B]`, of the images.
      sequence: `[N]` int, cells in the order in which they are to be revealed.
      grid: rows and columns of cells.
    """
    rows, columns = np.divmod(sequence, grid[1])

    def rolled(key):
        key_rows, key_columns = jax.random.split(key)
        down = jax.random.randint(key_rows, (), 0, grid[0], dtype=jnp.int32)
        right = jax.random.randint(key_columns, (), 0, grid[1], dtype=jnp.int32)
        at = (rows + down) % grid[0] * grid[1] + (columns + right) % grid[1]
        return at[::-1].astype(jnp.int32)  # revealed from the end

    return jax.vmap(rolled)(_fold(keys, _ORDER))


def dark_cells_first(order: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Return `order [B, N]` with the cells of one colour of a chessboard first to be revealed."""
    rows, columns = jnp.divmod(order, grid[1])
    dark = (rows + columns) % 2 == 0
    # Revealed from the end: the dark cells go there, in the drawn order.
    place = jnp.argsort(dark, axis=-1, stable=True)
    return jnp.take_along_axis(order, place, axis=-1)


def unknown_first(order: jax.Array, known: jax.Array) -> jax.Array:
    """Return `order [B, N]` with the tokens that are `known [N]` moved to its end, all else as it
    was.
    """
    # False sorts before True, and a stable sort leaves the drawn order inside both parts alone.
    place = jnp.argsort(known[order], axis=-1, stable=True)
    return jnp.take_along_axis(order, place, axis=-1)


def prior_keys(keys: jax.Array) -> jax.Array:
    """Return `[B]` keys for `Prior`, one per image."""
    return _fold(keys, _PRIOR)


def token_keys(keys: jax.Array, num_tokens: int) -> jax.Array:
    """Return `[B, N]` keys, one per token of each image."""
    each = jax.vmap(jax.random.fold_in, (None, 0))
    # By position in the grid, not by turn: a token has its noise whatever the order it is made in.
    return jax.vmap(each, (0, None))(_fold(keys, _TOKENS), jnp.arange(num_tokens))


def normal(keys: jax.Array, draw: jax.Array | int, channels: int) -> jax.Array:
    """Draw standard normals `[..., C]` of the tokens `keys [...]`: their noise number `draw`."""
    flat = _fold(keys.reshape(-1), draw)
    noise = jax.vmap(lambda k: jax.random.normal(k, (channels,), dtype=jnp.float32))(flat)
    return noise.reshape(*keys.shape, channels)


def verdict_keys(keys: jax.Array) -> jax.Array:
    """Return keys `[...]` of the acceptance tests of tokens `keys [...]`."""
    # A verdict must be independent of the noise that made the draft, hence a number of its own.
    return _fold(keys.reshape(-1), _VERDICT).reshape(keys.shape)


def chances(keys: jax.Array, draw: jax.Array | int) -> jax.Array:
    """Draw uniform numbers `[...]` in [0, 1) of the tokens `keys [...]`: their number `draw`."""
    flat = _fold(keys.reshape(-1), draw)
    return jax.vmap(lambda k: jax.random.uniform(k, dtype=jnp.float32))(flat).reshape(keys.shape)


def _fold(keys: jax.Array, data: jax.Array | int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, data)
