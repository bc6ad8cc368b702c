"""Linear layers and norms with logical axes, how they lie on several devices, and sinusoids."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import PartitionSpec


def of_batch(x: jax.Array, axis: int = 0) -> jax.Array:
    """Return `x` as it is; on several devices the rows of `axis` are split over them and nothing
    else.

    For what enters a stack: random numbers, residual streams. Left alone, XLA splits channels as
    the kernels are split, and every device computes all rows.
    """
    axes = [None] * x.ndim
    axes[axis] = "batch"
    return nn.with_logical_constraint(x, tuple(axes))


# Parameters lie in pieces along these axes, and are whole where they are used.
_GATHERED = ("embed", "table")


class FlatDense(nn.Dense):
    """`nn.Dense` on rows: leading axes are flattened first.

    With several leading axes XLA's CPU gradients of kernel and bias take about twice as long.

    Attributes:
      axes: logical axes of the kernel where it is used, `(in, out)`; the second is the result's.
    """

    axes: tuple[str | None, str | None] = (None, None)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map `[..., in]` -> `[..., features]`."""
        if not nn.get_logical_axis_rules():
            rows = super().__call__(inputs.reshape(-1, inputs.shape[-1]))
            return rows.reshape(*inputs.shape[:-1], self.features)
        # On several devices the axis that is split over them has to stay an axis of its own.
        free = [PartitionSpec.UNCONSTRAINED] * (inputs.ndim - 1)
        return nn.with_logical_constraint(super().__call__(inputs), (*free, self.axes[1]))


def dense(
    features: int,
    axes: tuple[str | None, str | None],
    dtype: jnp.dtype,
    init: nn.initializers.Initializer | None = None,
    name: str | None = None,
    bias: bool = True,
) -> FlatDense:
    """Build a linear layer with logical axis names on its `[in, out]` kernel; Xavier uniform by
    default.
    """
    init = nn.initializers.xavier_uniform() if init is None else init
    used = tuple(None if axis in _GATHERED else axis for axis in axes)

    # The kernel is gathered where it is used and not where it lies: XLA would otherwise be free to
    # move the activations to its pieces instead.
    def gathered(*arrays, **types):
        inputs, kernel, bias = nn.dtypes.promote_dtype(*arrays, **types)
        return inputs, nn.with_logical_constraint(kernel, used), bias

    return FlatDense(
        features,
        use_bias=bias,
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(init, axes),
        promote_dtype=gathered,
        name=name,
        axes=used,
    )


def layer_norm(affine: bool = True, name: str | None = None) -> nn.LayerNorm:
    """Return float32 layer norm, eps 1e-6, with the two-pass variance of the official programs."""
    return nn.LayerNorm(
        epsilon=1e-6,
        dtype=jnp.float32,
        use_scale=affine,
        use_bias=affine,
        use_fast_variance=False,
        name=name,
    )


def sinusoid_features(t: jax.Array, frequencies: int = 128) -> jax.Array:
    """Map `t [...]` -> `[..., 2 * frequencies]` float32, cosines first, period base 10000."""
    k = np.arange(frequencies, dtype=np.float32)
    # As the official programs, whose exponents are float32 and whose exp is exact to the last
    # digit, unlike NumPy's in float32: at t = 1000 that digit is visible.
    exponents = np.float32(-math.log(10000)) * k / np.float32(frequencies)
    rates = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = t.astype(jnp.float32)[..., None] * rates.reshape((1,) * t.ndim + rates.shape)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
