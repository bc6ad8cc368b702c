"""Drift-AR in JAX/Flax: single-step visual autoregressive generation."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from driftar_jax.sampling.generator import Generator

__all__ = ["__version__", "load"]
__version__ = "0.1.0"

# Under `python -m driftar_jax.NAME` alone: the program is not found yet, and has imported nothing.
if sys.argv[:1] == ["-m"]:
    from driftar_jax.cli import environment

    environment.watch()


def load(
    workdir: str | os.PathLike,
    step: int | None = None,
    vae: str | os.PathLike | None = None,
    dtype: str | None = None,
) -> Generator:
    """Read a checkpoint, ready to sample; see `driftar_jax.sampling.load`."""
    from driftar_jax.sampling import load as loading

    return loading.load(workdir, step, vae, dtype=dtype)


def __getattr__(name):
    """`driftar_jax.inpaint`, imported when it is first read."""
    if name == "inpaint":
        from driftar_jax.sampling import inpaint

        return inpaint
    raise AttributeError(f"module 'driftar_jax' has no attribute {name!r}")
