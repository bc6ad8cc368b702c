"""Pixels as arrays: their two ranges, uint8 and [-1, 1], and square patches of them as tokens.

Source of the patches: `patchify` of LTH14/mar at fe470ac.
"""

import jax
import jax.numpy as jnp


def to_unit_range(images: jax.Array) -> jax.Array:
    """Map uint8 `[...]` -> float32 in [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(images: jax.Array) -> jax.Array:
    """Map floating in [-1, 1] -> uint8, clipped and rounded."""
    return jnp.clip(jnp.round((images + 1.0) * 127.5), 0, 255).astype(jnp.uint8)


def patchify(images: jax.Array, patch: int) -> jax.Array:
    """Map `[B, H, W, C]` -> `[B, (H/p)(W/p), C*p*p]`: raster order of patches, channel slowest
    inside.

    Raises:
      ValueError: `patch` does not divide height and width.
    """
    batch, height, width, channels = images.shape
    if patch < 1 or height % patch or width % patch:
        raise ValueError(f"patch: got {patch}, allowed divisors of {height} and {width}")
    x = images.reshape(batch, height // patch, patch, width // patch, patch, channels)
    # MAR's einsum `nchpwq->nhwcpq`: the channel comes before the place inside the patch, and
    # released weights depend on that order.
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(batch, -1, channels * patch * patch)


def unpatchify(tokens: jax.Array, height: int, width: int, patch: int) -> jax.Array:
    """Map `[B, N, C*p*p]` -> `[B, height, width, C]`, the inverse of `patchify`.

    Raises:
      ValueError: the token grid does not have that size.
    """
    batch, num_tokens, features = tokens.shape
    rows, columns = height // max(patch, 1), width // max(patch, 1)
    if patch < 1 or (rows * patch, columns * patch) != (height, width):
        raise ValueError(f"patch: got {patch}, allowed divisors of {height} and {width}")
    if rows * columns != num_tokens or features % (patch * patch):
        raise ValueError(
            f"tokens: got shape {tokens.shape}, allowed [B, {rows * columns}, C*{patch * patch}]"
        )
    channels = features // (patch * patch)
    x = tokens.reshape(batch, rows, columns, channels, patch, patch)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(batch, height, width, channels)
