"""Feature spaces phi of the whole-grid drift, and its loss summed over their keys.

A key holds V vectors of S numbers for each sample. Rows of the loss are (class, vector), and the
draws of a class are compared inside a row: never the places of one image with each other.
Source: arXiv 2602.04770, section 4 and appendix A.5.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from driftar_jax.features.mae import MAE

# Sides of the cells whose means and deviations are keys of their own.
CELLS = (2, 4)

_FLOOR = 1e-6


class Features(Protocol):
    """A frozen map from tokens to keys of vectors."""

    def __call__(self, params: Any, tokens: jax.Array) -> dict[str, jax.Array]:
        """Map `tokens [R, N, C]` float32 -> `{key: [R, V, S]}` float32, differentiable."""


@dataclasses.dataclass(frozen=True)
class Identity:
    """Take the sample itself as one vector: for tiny data only."""

    def __call__(self, params, tokens):
        """Return `{"sample": [R, 1, N * C]}` of tokens `[R, N, C]`."""
        return {"sample": tokens.reshape(len(tokens), 1, -1)}


@dataclasses.dataclass(frozen=True)
class Penultimate:
    """A frozen block of a trained host on linearly projected tokens.

    Attributes:
      block: `(params, [R, N, D]) -> [R, N, D]`, without mask or dropout.
      grid: rows and columns of the tokens.
      width: D.
    """

    block: Callable[[Any, jax.Array], jax.Array]
    grid: tuple[int, int]
    width: int

    def projection(self, key: jax.Array, token_dim: int) -> jax.Array:
        """Return the orthonormal `[C, D]` (rows where C <= D): projected tokens keep their
        distances.

        The published one is trained with the decoder, so that generator and metric move together.
        """
        return jax.nn.initializers.orthogonal()(key, (token_dim, self.width))

    def __call__(self, params, tokens):
        """Take `params` with `projection [C, D]` and the parameters of the `block`."""
        # float32 products: drift compares differences of near features, which TF32 would round
        # away.
        h = jnp.einsum("rnc,cd->rnd", tokens, params["projection"], precision="highest")
        h = self.block(params["block"], h).astype(jnp.float32)
        return statistics({"block": h.reshape(len(h), *self.grid, -1)})


@dataclasses.dataclass(frozen=True)
class Maps:
    """Take the maps of a masked autoencoder's encoder, with the sample itself beside them.

    Attributes:
      module: the autoencoder.
      to_grid: `[R, N, C] -> [R, H, W, c]`, tokens put back in their places.
    """

    module: MAE
    to_grid: Callable[[jax.Array], jax.Array]

    def __call__(self, params, tokens):
        """Return vectors `[R, places, channels]` by name, of tokens `[R, N, C]`."""
        image = self.to_grid(tokens)
        # The root has an infinite slope at 0, and gradients pass through here to the decoder.
        size = jnp.sqrt(jnp.mean(jnp.square(image), axis=(1, 2)) + _FLOOR)
        maps = self.module.apply({"params": params}, image, method="maps")
        own = {"norm": size[:, None], "sample": image.reshape(len(image), 1, -1)}
        return own | statistics(maps)


def statistics(maps: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Return the vectors of every map `[R, h, w, c]`: locations, mean and deviation of the whole
    and of cells.

    Keys are `NAME` (`[R, h w, c]`), `NAME.mean`, `NAME.std` (`[R, 1, c]`) and, for cells of side 2
    and 4 where it divides both sides, `NAME.mean2`, `NAME.std2` (`[R, h w / 4, c]`) and so on. A
    single place has no deviation.
    """
    vectors = {}
    for name, m in maps.items():
        rows, height, width, channels = m.shape
        vectors[name] = m.reshape(rows, -1, channels)
        parts = {"": m.reshape(rows, 1, height * width, channels)}
        for side in CELLS:
            if height % side or width % side:
                continue
            # Cells tile the map and do not overlap, hence the sides that they must divide.
            cells = m.reshape(rows, height // side, side, width // side, side, channels)
            cells = jnp.moveaxis(cells, 3, 2)
            parts[str(side)] = cells.reshape(rows, -1, side * side, channels)
        for suffix, cells in parts.items():
            mean = cells.mean(axis=2)
            vectors[f"{name}.mean{suffix}"] = mean
            if cells.shape[2] > 1:
                variance = jnp.square(cells - mean[:, :, None]).mean(axis=2)
                vectors[f"{name}.std{suffix}"] = jnp.sqrt(variance + _FLOOR)
    return vectors
