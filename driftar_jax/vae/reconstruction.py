"""How well an autoencoder gives pictures back."""

import dataclasses
import functools

import jax
import numpy as np

from driftar_jax.data.pixels import to_uint8, to_unit_range
from driftar_jax.data.source import ImageSource
from driftar_jax.vae import kl

_BATCH = 16
# Of a picture that came back bit for bit: half a grey level of error.
_LEAST_ERROR = 0.25


@dataclasses.dataclass(frozen=True)
class Reconstructed:
    """Pictures and what came back of them, uint8 `[n, H, W, C]`."""

    images: np.ndarray
    outputs: np.ndarray

    def figures(self) -> dict[str, float]:
        """Measure `psnr`: the mean over pictures, in dB; `psnr_of_mean`: of the mean squared error
        of all; `error`: mean absolute difference in grey levels of 255.
        """
        difference = self.outputs.astype(np.float64) - self.images
        square = np.square(difference).mean(axis=(1, 2, 3))
        return {
            "psnr": float(_psnr(square).mean()),
            "psnr_of_mean": float(_psnr(square.mean())),
            "error": float(np.abs(difference).mean()),
        }

    def pairs(self, count: int, columns: int) -> np.ndarray:
        """Return rows of the first `count` pictures, each over the row of what came back of it."""
        rows = []
        for first in range(0, min(count, len(self.images)), columns):
            for these in (self.images, self.outputs):
                row = these[first : first + columns]
                missing = [(0, columns - len(row))] + [(0, 0)] * 3
                rows.append(np.pad(row, missing, constant_values=255))
        return np.concatenate(rows)


def _psnr(square: np.ndarray) -> np.ndarray:
    return 10 * np.log10(255.0**2 / np.maximum(square, _LEAST_ERROR))


def reconstruct(vae: kl.KLVAE, params, source: ImageSource, num: int) -> Reconstructed:
    """Pass pictures through the mode of the posterior.

    Args:
      vae, params: the autoencoder.
      source: its pictures are taken evenly over the whole set.
      num: how many at most.
    """
    chosen = np.linspace(0, len(source) - 1, min(num, len(source))).round().astype(int)
    images, decoded = [], []
    for first in range(0, len(chosen), _BATCH):
        wanted = chosen[first : first + _BATCH]
        these = source.gather(np.resize(wanted, _BATCH))[0]  # padded: one compilation
        images.append(these[: len(wanted)])
        decoded.append(np.asarray(_there_and_back(vae, params, these))[: len(wanted)])
    return Reconstructed(np.concatenate(images), np.concatenate(decoded))


@functools.partial(jax.jit, static_argnums=0)
def _there_and_back(vae: kl.KLVAE, params, images: jax.Array) -> jax.Array:
    return to_uint8(vae.apply({"params": params}, to_unit_range(images)))
