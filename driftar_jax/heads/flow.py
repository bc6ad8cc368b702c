"""TransDiff's many-step head: a flow transformer over the whole grid, its loss and its sampler.

Source: TransDiff (arXiv 2506.09482), `models/diffdecoder.py` and `models/samplers.py` of
TransDiff/TransDiff at 0081b3a. Time runs from 1 (noise) to 0 (data), the velocity is noise minus
data, and the network is told 1000 t. Grids, times and losses are float32 whatever the compute type.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from driftar_jax.layers.blocks import recomputed
from driftar_jax.layers.dense import dense, layer_norm, sinusoid_features
from driftar_jax.layers.modulated import CHUNKS, ModulatedBlock

TRAIN_STEPS = 1000
# Where the stochastic steps end; the rest is one deterministic step.
LAST_TIME = 0.04

Condition = Sequence[tuple[jax.Array, jax.Array]]


# --- network -----------------------------------------------------------------------------------


class Time(NamedTuple):
    """What the network makes of a time: `embedding [n, D]`, `modulation [n, 6, D]`, float32."""

    embedding: jax.Array
    modulation: jax.Array


class VelocityNet(nn.Module):
    """TransDiff's diffusion decoder: velocity of noisy grids, given the rows of a backbone.

    `condition` depends on neither grid nor time and `embed_time` on the time alone, so a sampler
    calls each once.

    Attributes:
      token_dim: C, channels of a token.
      num_tokens: N, tokens of the grid.
      width: D.
      depth: blocks.
      num_heads: attention heads; divides `width`.
      mlp_ratio: hidden width of a block's MLP over `width`.
      attention_dropout: in training, on attention weights.
      projection_dropout: in training, after projections.
      rounded_time: rounds what modulates the blocks to bfloat16 on its way, as the official program
        does whatever its type; off by 0.1 % of the velocity.
      remat: as in `layers.remat.recomputed`, of every block.
      dtype: type of the matrix products; the time path, norms and softmax stay float32.
    """

    token_dim: int
    num_tokens: int
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    attention_dropout: float = 0.1
    projection_dropout: float = 0.1
    rounded_time: bool = False
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        """Make the tables, projections and blocks; a fresh network predicts 0."""

        def table(name, std, size, axis):
            init = nn.with_logical_partitioning(nn.initializers.normal(std), (axis, "embed"))
            return self.param(name, init, (size, self.width))

        zeros = nn.initializers.zeros_init()
        self.position = table("position", 0.02, self.num_tokens, "position")
        self.input_proj = dense(self.width, (None, "embed"), self.dtype)
        self.cond_embed = dense(self.width, ("embed", "mlp"), self.dtype)
        self.time_1 = dense(self.width, (None, "mlp"), jnp.float32)
        self.time_2 = dense(self.width, ("mlp", "embed"), jnp.float32)
        self.time_proj = dense(CHUNKS * self.width, ("embed", "mlp"), jnp.float32)
        self.blocks = [
            ModulatedBlock(
                self.width,
                self.num_heads,
                self.mlp_ratio,
                attention_dropout=self.attention_dropout,
                projection_dropout=self.projection_dropout,
                dtype=self.dtype,
            )
            for _ in range(self.depth)
        ]
        self.final_table = table("final_table", self.width**-0.5, 2, None)
        self.final_norm = layer_norm(affine=False)
        self.final_linear = dense(self.token_dim, ("embed", None), self.dtype, zeros)

    def __call__(
        self, x: jax.Array, t: jax.Array, c: jax.Array, *, deterministic: bool = True
    ) -> jax.Array:
        """Velocity of noisy grids.

        Args:
          x: `[n, N, C]` floating.
          t: `[n]` integer or floating, 0..1000; 1000 is noise.
          c: `[n, M, D']` floating, conditions; any number of rows.
          deterministic: False draws dropout from the `dropout` key.

        Returns:
          `[n, N, C]` float32, noise minus data.

        Raises:
          ValueError: a shape does not fit.
        """
        return self.velocity(x, self.embed_time(t), self.condition(c), deterministic=deterministic)

    def condition(self, c: jax.Array) -> Condition:
        """Map `c [n, M, D']` -> keys and values `[n, M, H, K]` of every block."""
        c = self.cond_embed(c.astype(self.dtype))
        return tuple(block.read(c) for block in self.blocks)

    def embed_time(self, t: jax.Array) -> Time:
        """Map `t [n]`, 0..1000 -> Time."""
        embedding = self.time_2(nn.silu(self.time_1(sinusoid_features(t))))
        h = nn.silu(embedding)
        if self.rounded_time:
            # A pair of casts would be removed by the compiler.
            h = jax.lax.reduce_precision(h, exponent_bits=8, mantissa_bits=7)
        return Time(embedding, self.time_proj(h).reshape(len(t), CHUNKS, self.width))

    def velocity(
        self, x: jax.Array, time: Time, condition: Condition, *, deterministic: bool = True
    ) -> jax.Array:
        """Do as `__call__`, with what `embed_time` and `condition` give; n rows, or one for all."""
        rows = (len(x), self.num_tokens, self.token_dim)
        if x.shape != rows:
            raise ValueError(f"x: got shape {x.shape}, allowed {('n', *rows[1:])}")
        # A sampler embeds one time for all its grids; training has a time for each.
        time = jax.tree.map(lambda a: jnp.broadcast_to(a, (len(x), *a.shape[1:])), time)
        h = self.input_proj(x) + self.position.astype(self.dtype)[None]

        def call(block, *arrays):
            return block(*arrays, deterministic=deterministic)

        for block, keys_and_values in zip(self.blocks, condition, strict=True):
            arrays = h, keys_and_values, time.modulation
            h = recomputed(self.remat, call, block, *arrays)
        shift, scale = (time.embedding[:, None] + self.final_table[i][None, None] for i in (0, 1))
        # The last modulation adds the raw time embedding to its table, not the projected one of the
        # blocks.
        h = self.final_norm(h) * (1 + scale) + shift
        return self.final_linear(h.astype(self.dtype)).astype(jnp.float32)


# --- loss --------------------------------------------------------------------------------------


def times(draws: jax.Array) -> jax.Array:
    """Turn standard normal draws into training times in (0, 1): logit-normal, float32."""
    return jax.nn.sigmoid(draws.astype(jnp.float32))


def flow_loss(
    velocity: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    u: jax.Array,
    noise: jax.Array,
) -> jax.Array:
    """Return TransDiff's training loss, no weight on the time.

    Args:
      velocity: `(x_t [n, N, C], t [n] int32 in 0..999) -> [n, N, C]`.
      x: `[n, N, C]` clean grids.
      u: `[n]` floating in (0, 1), of `times`; rounded down to a thousandth.
      noise: `[n, N, C]` standard normal.

    Returns:
      `[n]` float32, mean squared error of each grid's velocity.
    """
    x, noise = x.astype(jnp.float32), noise.astype(jnp.float32)
    step = jnp.clip(jnp.floor(TRAIN_STEPS * u).astype(jnp.int32), 0, TRAIN_STEPS - 1)
    # The noise share is that of the rounded step: what the network is told and what it is shown
    # agree.
    share = (step.astype(jnp.float32) / TRAIN_STEPS)[:, None, None]
    predicted = velocity((1.0 - share) * x + share * noise, step).astype(jnp.float32)
    return jnp.mean((predicted - (noise - x)) ** 2, axis=(1, 2))


# --- sampler -----------------------------------------------------------------------------------


def time_grid(steps: int) -> np.ndarray:
    """Return times of the S evaluations, `[S]` float32 from 1 down to `LAST_TIME`.

    Raises:
      ValueError: fewer than 2 steps.
    """
    if steps < 2:
        raise ValueError(f"steps: got {steps}, allowed at least 2")
    return np.linspace(1.0, LAST_TIME, steps, dtype=np.float32)


def reverse_step(
    x: jax.Array,
    velocity: jax.Array,
    t: jax.Array,
    dt: jax.Array,
    noise: jax.Array,
    scale_drift: float | jax.Array = 1.0,
    scale_noise: float | jax.Array = 1.0,
) -> jax.Array:
    """Make one Euler-Maruyama step of the reverse SDE with diffusion `2 t`.

    The drift, `velocity - t * score`, is `(2 - t) velocity + x`: nothing is divided.

    Args:
      x: `[n, N, C]` float32.
      velocity: like `x`.
      t: scalar, time of `x`.
      dt: scalar, negative.
      noise: like `x`.
      scale_drift: factor of the drift, `scale_0` of the official program.
      scale_noise: factor of the noise, `scale_1`; 0 is not the ODE, for the drift keeps its score.

    Returns:
      `x` at time `t + dt`.
    """
    drift = (2.0 - t) * velocity + x
    return x + scale_drift * dt * drift + scale_noise * jnp.sqrt(2.0 * t * jnp.abs(dt)) * noise


def flow_sample(
    net: VelocityNet,
    params: dict,
    c: jax.Array,
    start: jax.Array,
    noise: Callable[[jax.Array], jax.Array],
    *,
    steps: int,
    guidance: float | jax.Array | None = None,
    c_uncond: jax.Array | None = None,
    scale_drift: float | jax.Array = 1.0,
    scale_noise: float | jax.Array = 1.0,
) -> jax.Array:
    """Draw one grid per condition: S - 1 stochastic steps and a deterministic one, in one loop.

    Both branches of guidance look at the same grid. The last step ignores both scales and goes all
    of `LAST_TIME` along the drift, 0.04 of the noise beyond the clean grid, as published.

    Args:
      net: the module; `params` its parameter tree (what stands under `"params"`).
      c: `[n, M, D']` conditions.
      start: `[n, N, C]` standard normal.
      noise: pure function of a (traced) int32 step 0..S-2, `-> [n, N, C]` standard normal.
      steps: S evaluations, at least 2.
      guidance: scale, a number, traced scalar or `[n, 1, 1]`; needs `c_uncond`.
      c_uncond: like `c`, of the unconditional branch. Without it, or with `guidance=None`, one
        branch runs.
      scale_drift: factor of the drift.
      scale_noise: factor of the noise.

    Returns:
      `[n, N, C]` float32.

    Raises:
      ValueError: `guidance` without `c_uncond`, or too few steps.
    """
    grid = time_grid(steps)
    if guidance is not None and c_uncond is None:
        raise ValueError(
            "c_uncond: got None, allowed [n, M, D'] conditions where guidance is given"
        )
    guided = guidance is not None
    variables = {"params": params}
    both = jnp.concatenate([c, c_uncond]) if guided else c
    condition = net.apply(variables, both, method="condition")
    table = net.apply(variables, TRAIN_STEPS * jnp.asarray(grid), method="embed_time")
    times_of = jnp.asarray(grid)

    def velocity(x, index):
        time = jax.tree.map(lambda rows: rows[index][None], table)
        x_in = jnp.concatenate([x, x]) if guided else x
        v = net.apply(variables, x_in, time, condition, method="velocity")
        if guided:
            v, v_uncond = jnp.split(v, 2)
            # The drift is affine in the velocity: guiding either is the same.
            v = v_uncond + guidance * (v - v_uncond)
        return v

    dt = (LAST_TIME - 1.0) / (steps - 1)

    def step(index, x):
        return reverse_step(
            x, velocity(x, index), times_of[index], dt, noise(index), scale_drift, scale_noise
        )

    # The condition's keys and values and all time embeddings are made before the loop; inside it
    # only what depends on the grid is computed.
    x = jax.lax.fori_loop(0, steps - 1, step, start.astype(jnp.float32))
    # With dt = -t and no noise the step lands at time 0 in one go; the published sampler ends so.
    v = velocity(x, steps - 1)
    return reverse_step(x, v, LAST_TIME, -LAST_TIME, jnp.zeros_like(x), 1.0, 0.0)
