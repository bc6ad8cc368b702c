"""Drift-AR in JAX/Flax: single-step visual autoregressive generation."""

__version__ = "0.1.0"


def load(workdir, step=None, vae=None):
    """Read a checkpoint, ready to sample; see `driftar_jax.generator.load`."""
    from driftar_jax import generator

    return generator.load(workdir, step, vae)
