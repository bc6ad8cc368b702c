"""The field `laplace` of Drifting: softmax-normalised Laplace affinities, for whole grids.

Source: arXiv 2602.04770, section 3 and appendix A.6; DESIGN section 4. Three scalars are means over
the whole call, so the rows of a call influence each other and the call is part of the definition.
Under `jit` with rows split over devices they are means over all devices by themselves.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from driftar_jax.drift.fields import Weights, drift_loss, energy, squared_distances

WIDTHS = (0.02, 0.05, 0.2)
BLOCK_BYTES = 64 * 2**20

# Floors of the published program, each where it has it.
_DISTANCE_SQUARE = 1e-8
_SCALE = 1e-3
_AFFINITY_SQUARE = 1e-6
_FORCE_SQUARE = 1e-8
# Added to the normalised distance of a draw to itself.
_SELF = 100.0


@flax.struct.dataclass
class Info:
    """What to watch of a call; the loss value does not fall with training.

    Attributes:
      scale: float32 scalar; weighted mean distance, in units of the samples.
      strength: `[nR]` float32; mean square of each width's force before it is rescaled.
    """

    scale: jax.Array
    strength: jax.Array


def laplace(
    x: jax.Array,
    positives: jax.Array,
    negatives: jax.Array | None = None,
    weights: Weights | None = None,
    *,
    widths: tuple[float, ...] = WIDTHS,
    block_bytes: int = BLOCK_BYTES,
) -> jax.Array:
    """Return `V = V_p - V_q` of the field `laplace`, in units of `x` (Eq. 8).

    The draws of a row repel each other beside the `negatives`, unless their weight is 0: then
    swapping `positives` and `negatives` flips the sign, up to rounding.

    Args, Raises: as for `force`.

    Returns:
      `[B, G, S]` float32, without gradient.
    """
    moved, unit, _ = force(x, positives, negatives, weights, widths=widths, block_bytes=block_bytes)
    return unit * moved


def laplace_loss(
    x: jax.Array,
    positives: jax.Array,
    negatives: jax.Array | None = None,
    weights: Weights | None = None,
    *,
    widths: tuple[float, ...] = WIDTHS,
    block_bytes: int = BLOCK_BYTES,
) -> tuple[jax.Array, Info]:
    """Return the drift loss of each row in units of the call's mean distance (Eq. 8).

    `mean_{G,S} (x / s - stop_grad(x / s + F))^2`. Its gradient is `-2 F / (s G S)`; its mean over
    rows lies in [0, nR^2] whatever the quality, so watch `Info.strength`.

    Args, Raises: as for `force`.

    Returns:
      `[B]` float32 and `Info`.
    """
    moved, unit, info = force(
        x, positives, negatives, weights, widths=widths, block_bytes=block_bytes
    )
    here = x.astype(jnp.float32) / unit
    goal = jax.lax.stop_gradient(here + moved)
    return jnp.mean(jnp.square(here - goal), axis=(1, 2)), info


def force(
    x: jax.Array,
    positives: jax.Array,
    negatives: jax.Array | None = None,
    weights: Weights | None = None,
    *,
    widths: tuple[float, ...] = WIDTHS,
    block_bytes: int = BLOCK_BYTES,
) -> tuple[jax.Array, jax.Array, Info]:
    """Return the summed, rescaled force of all widths, in units of the call's mean distance.

    Args:
      x: `[B, G, S]` floating; G draws of each row, a row being a (class, location).
      positives: `[B, P, S]` real samples of the row's class.
      negatives: `[B, M, S]` further samples to move away from; real unconditional ones with a
        weight for guidance. None: the draws alone.
      weights: of the samples; None: 1 each. A weight of 0 keeps a sample in the softmax, as
        published; a sample that is not `present` is in nothing.
      widths: kernel widths in units of the mean distance.
      block_bytes: most bytes of one `[rows, G, G + M + P]` float32 matrix, of which about eight
        live at a time. Rows go through it in blocks; the result does not depend on it.

    Returns:
      `F [B, G, S]`, the unit `s` it is in (scalar), and `Info`; float32, without gradient.

    Raises:
      ValueError: an array is not `[B, samples, S]`, no width, or `block_bytes` below one.
    """
    _check(x, positives, negatives, widths, block_bytes)
    # The field is a target, not a function to be differentiated; stopping here also keeps the
    # distance matrices of all widths out of the backward pass.
    x, targets, w, present = jax.lax.stop_gradient(_gather(x, positives, negatives, weights))
    draws, size = x.shape[1:]
    arrays = (x, targets, w, present)
    blocks = _num_blocks(arrays, block_bytes)
    # A pass of its own before the forces: every block needs the mean over all of them.
    scale = _mean_distance(arrays, blocks)
    # Divided by the root of the dimensions, so that a coordinate is of order 1 in every feature
    # space.
    unit = jnp.maximum(scale / jnp.sqrt(jnp.float32(size)), _SCALE)

    def forces(rows):
        x, targets, w, present = rows
        distance = _distances(x, targets) / jnp.maximum(scale, _SCALE)
        # Targets begin with the draws themselves, hence the diagonal: far away, a draw has no
        # affinity to itself and does not push itself.
        distance += _SELF * jnp.eye(draws, targets.shape[1], dtype=jnp.float32)[None]
        num_negatives = targets.shape[1] - positives.shape[1]
        return jnp.stack(
            [
                _force(distance / r, x / unit, targets / unit, w, present, num_negatives)
                for r in widths
            ],
            axis=1,
        )

    each = _in_blocks(forces, arrays, blocks)
    strength = jnp.mean(jnp.square(each), axis=(0, 2, 3))
    # Every width has the same mean square after this: a narrow kernel's force would otherwise
    # vanish beside a wide one's as long as samples are far apart.
    rescaled = each / jnp.sqrt(jnp.maximum(strength, _FORCE_SQUARE))[None, :, None, None]
    return jnp.sum(rescaled, axis=1), unit, Info(scale=scale, strength=strength)


def energy_loss(
    x: jax.Array,
    positives: jax.Array,
    negatives: jax.Array | None = None,
    weights: Weights | None = None,
    *,
    block_bytes: int = BLOCK_BYTES,
) -> tuple[jax.Array, Info]:
    """Return the drift loss of the field `energy`, in the same units and blocks as `laplace_loss`.

    `mean_G |x / scale - stop_grad(x / scale + V)|^2`: dividing by the mean distance lets every
    feature space count alike, since V has unit size whatever the space.

    Args, Raises: as for `force`.

    Returns:
      `[B]` float32 in [0, 4], and `Info` with the mean of `|V|^2` as its one strength.
    """
    _check(x, positives, negatives, (1.0,), block_bytes)
    weights = Weights() if weights is None else weights
    arrays = jax.lax.stop_gradient(_gather(x, positives, negatives, weights))
    blocks = _num_blocks(arrays, block_bytes)
    scale = _mean_distance(arrays, blocks)
    inputs = jax.lax.stop_gradient((x, positives, negatives, weights))
    field = _in_blocks(lambda rows: energy(*rows), inputs, blocks)
    here = x.astype(jnp.float32) / jnp.maximum(scale, _SCALE)
    rows = drift_loss(here, field).mean(axis=1)
    return rows, Info(scale=scale, strength=jnp.mean(rows)[None])


def _mean_distance(arrays, blocks: int) -> jax.Array:
    """Weighted mean distance of draws and targets over the whole call."""

    def distance_sum(rows):
        x, targets, w, _ = rows
        return jnp.sum(_distances(x, targets) * w[:, None], axis=(1, 2))

    x, _, w, _ = arrays
    # mean(d w) / mean(w): the number of targets cancels, the number of draws does not.
    scale = jnp.sum(_in_blocks(distance_sum, arrays, blocks)) / (x.shape[1] * jnp.sum(w))
    # 0 / 0 where a whole call has no weight; the floors then leave a force of 0.
    return jnp.where(jnp.isfinite(scale), scale, 0.0)


def _check(x, positives, negatives, widths, block_bytes) -> None:
    for name, array in (("x", x), ("positives", positives), ("negatives", negatives)):
        if array is None:
            continue
        wanted = (x.shape[0], "samples", x.shape[-1])
        if array.ndim != 3 or (array.shape[0], array.shape[2]) != (wanted[0], wanted[2]):
            raise ValueError(f"{name}: got shape {array.shape}, allowed [B, samples, S] {wanted}")
    if not widths:
        raise ValueError("widths: got (), allowed at least one number above 0")
    if block_bytes < 1:
        raise ValueError(f"block_bytes: got {block_bytes}, allowed at least 1")


def _gather(x, positives, negatives, weights):
    """Float32 draws, and targets in the order draws, negatives, positives with their weights."""
    weights = Weights() if weights is None else weights
    x = x.astype(jnp.float32)
    parts = [
        (x, weights.draws, None),
        (negatives, weights.negatives, weights.negatives_present),
        (positives, weights.positives, weights.positives_present),
    ]
    parts = [
        (points.astype(jnp.float32), w, here) for points, w, here in parts if points is not None
    ]
    targets = jnp.concatenate([points for points, _, _ in parts], axis=1)

    def row(points, values, default):
        shape = points.shape[:2]
        return jnp.full(shape, default) if values is None else jnp.broadcast_to(values, shape)

    w = jnp.concatenate([row(points, w, 1.0) for points, w, _ in parts], axis=1)
    present = jnp.concatenate([row(points, here, True) for points, _, here in parts], axis=1)
    return x, targets, jnp.where(present, w.astype(jnp.float32), 0.0), present


def _distances(x: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.maximum(squared_distances(x, targets), _DISTANCE_SQUARE))


def _force(distance, x, targets, w, present, num_negatives):
    """One width's force `[rows, G, S]`; `distance [rows, G, T]` is in units of that width."""
    rows = _softmax_of_present(-distance, present[:, None])
    # The column of an absent sample has no weight, so that its own softmax does not matter.
    columns = jax.nn.softmax(-distance, axis=1)
    # Normalised over targets and over draws, then their geometric mean: a target near to all draws
    # is shared between them. The floor is under the root, whose slope at 0 is infinite.
    affinity = jnp.sqrt(jnp.maximum(rows * columns, _AFFINITY_SQUARE)) * w[:, None]
    push, pull = affinity[:, :, :num_negatives], affinity[:, :, num_negatives:]
    coefficients = jnp.concatenate(
        [
            # Attraction is weighted by the mass that pushes and repulsion by the mass that pulls,
            # so that the coefficients of a draw sum to 0 and the force vanishes where both sides
            # are alike.
            -push * jnp.sum(pull, axis=2, keepdims=True),
            pull * jnp.sum(push, axis=2, keepdims=True),
        ],
        axis=2,
    )
    total = jnp.sum(coefficients, axis=2, keepdims=True)
    moved = jnp.einsum("bgt,bts->bgs", coefficients, targets, precision="highest")
    return moved - total * x


def _softmax_of_present(logits: jax.Array, present: jax.Array) -> jax.Array:
    """Softmax over the last axis, 0 where not `present`; somewhere it has to be.

    Masked by selection: XLA's exponential of a very negative number may be NaN on CPU.
    """
    peak = jnp.max(jnp.where(present, logits, -jnp.inf), axis=-1, keepdims=True)
    mass = jnp.where(present, jnp.exp(jnp.minimum(logits - peak, 0.0)), 0.0)
    return mass / jnp.sum(mass, axis=-1, keepdims=True)


def _num_blocks(arrays, block_bytes: int) -> int:
    x, targets = arrays[:2]
    rows, per_row = len(x), x.shape[1] * targets.shape[1] * 4
    # At least one row in a block, even where a single row exceeds the limit.
    return min(rows, -(-rows * per_row // block_bytes))


def _in_blocks(function: Callable, arrays, blocks: int) -> jax.Array:
    """`function` of a tree of arrays with a common leading axis, that axis in equal blocks."""
    if blocks == 1:
        return function(arrays)
    rows = len(jax.tree.leaves(arrays)[0])
    size = -(-rows // blocks)
    pad = size * blocks - rows

    def split(a):
        # Rows of zeros fill the last block; they cost one row of arithmetic each and are cut off
        # below.
        a = jnp.pad(a, [(0, pad)] + [(0, 0)] * (a.ndim - 1))
        # A block takes every `blocks`-th row: rows split over devices then stay where they are.
        return jnp.swapaxes(a.reshape(size, blocks, *a.shape[1:]), 0, 1)

    out = jnp.swapaxes(jax.lax.map(function, jax.tree.map(split, arrays)), 0, 1)
    return out.reshape(size * blocks, *out.shape[2:])[:rows]
