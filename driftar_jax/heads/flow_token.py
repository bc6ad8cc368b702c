"""NextStep-1's many-step head: flow matching per token, its losses and its stochastic sampler.

Source: `modeling_fm_head.py` of stepfun-ai/NextStep-1 at 6e49bae. Times run from 0 (noise) to 1
(data) and reach the network as they are. `x`, times and losses are float32 whatever the compute
type; the official program rounds the time to the model's type first, which only bfloat16 shows.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from driftar_jax.layers.token_mlp import TokenMLP

# Length of the last, noiseless step of the official sampler.
LAST_STEP = 0.04
# The Aug 2025 program's denominator; the released training code has none.
MASK_FLOOR = 1e-8


class FlowTokenHead(TokenMLP):
    """Velocity of a noisy token, data minus noise; fields as in `TokenMLP`."""

    def __call__(self, x: jax.Array, t: jax.Array, c: jax.Array) -> jax.Array:
        """Predict the velocity.

        Args:
          x: `[..., C]` floating, `t * data + (1 - t) * noise`.
          t: `[...]` floating in [0, 1]; a scalar embeds the time once for all rows.
          c: `[..., D]` floating, conditions.

        Returns:
          `[..., C]` float32.
        """
        return self.predict(x, t, self.condition(c))


# --- loss --------------------------------------------------------------------------------------


def times(u: jax.Array) -> jax.Array:
    """Return the logit-normal training times in (0, 1) float32 of standard normal draws `u`."""
    return jax.nn.sigmoid(u.astype(jnp.float32))


def flow_loss(
    velocity: Callable[[jax.Array, jax.Array], jax.Array],
    target: jax.Array,
    noise: jax.Array,
    u: jax.Array,
) -> jax.Array:
    """Return the flow-matching loss of each token.

    Args:
      velocity: `(x_t, t) -> [..., C]`.
      target: `[..., C]` clean tokens.
      noise: `[..., C]` standard normal.
      u: `[...]` standard normal; `times` makes it a time.

    Returns:
      `[...]` float32, mean squared error over the channels.
    """
    target, noise = target.astype(jnp.float32), noise.astype(jnp.float32)
    t = times(u)
    # Time runs towards the data here, the other way round than in TransDiff's head (flow.py).
    x_t = t[..., None] * target + (1.0 - t[..., None]) * noise
    error = velocity(x_t, t).astype(jnp.float32) - (target - noise)
    return jnp.mean(error**2, axis=-1)


def masked_mean(loss: jax.Array, mask: jax.Array, floor: float = 0.0) -> jax.Array:
    """Return the mean of `loss [...]` weighted by `mask [...]`, float32 scalar; 0 where nothing
    counts.

    Args:
      loss: any shape.
      mask: weights like `loss`.
      floor: added to the sum of the weights: `MASK_FLOOR` as in the Aug 2025 program, 0 as in the
        released training code.
    """
    weight = mask.astype(jnp.float32)
    total = jnp.sum(weight) + floor
    # Without a weighted token the sum is 0 as well; the guard makes it 0 / 1 and keeps the gradient
    # finite.
    return jnp.sum(weight * loss) / jnp.where(total > 0, total, 1.0)


# --- sampler -----------------------------------------------------------------------------------


def grid(
    steps: int, shift: float = 1.0, *, last: float = LAST_STEP, corrected: bool = False
) -> tuple[np.ndarray, float]:
    """Return times of the sampler and the length of its last step.

    Args:
      steps: S, evaluations per token, at least 1.
      shift: s; above 1 puts more steps near the noise.
      last: length of the last step before the shift.
      corrected: False keeps the published grid, which shifts the times but not the last step: with
        s = 3.2 a token stops at t = 0.922, with some noise left. True ends at t = 1.

    Returns:
      `[S]` float32 times, increasing from 0, and the last step's length.

    Raises:
      ValueError: `steps`, `shift` or `last` is out of range.
    """
    if steps < 1:
        raise ValueError(f"steps: got {steps}, allowed a whole number of at least 1")
    if not 0 < shift < float("inf"):
        raise ValueError(f"shift: got {shift}, allowed a number above 0")
    if not 0 < last < 1:
        raise ValueError(f"last: got {last}, allowed a number between 0 and 1")
    t = np.linspace(0.0, 1.0 - last, steps, dtype=np.float32)
    # A monotone map of [0, 1] onto itself: the shift moves the steps between, not 0 and 1.
    t = t / (np.float32(shift) - np.float32(shift - 1.0) * t)
    return t, float(1.0 - t[-1]) if corrected else last


def shared_noise(draws: jax.Array, rows: int) -> jax.Array:
    """Tile draws `[..., r, C]` to `[..., rows, C]`: row i gets draw i mod r, as published.

    Raises:
      ValueError: r does not divide `rows`.
    """
    repeat = draws.shape[-2]
    if rows % repeat:
        raise ValueError(f"noise_repeat: got {repeat}, allowed divisors of {rows} rows")
    return jnp.tile(draws, (*(1,) * (draws.ndim - 2), rows // repeat, 1))


def guided(
    velocity: jax.Array,
    guidance: float | jax.Array | None,
    guidance_image: float | jax.Array | None = None,
) -> jax.Array:
    """Combine the branches of a velocity.

    Args:
      velocity: `[m, n, C]`, m branches: conditional; conditional and none; or conditional, image
        only and none.
      guidance: scale of the text; None where m = 1.
      guidance_image: scale of the source image; None where m < 3.

    Returns:
      `[n, C]`.
    """
    if guidance is None:
        return velocity[0]
    if guidance_image is None:
        return velocity[1] + guidance * (velocity[0] - velocity[1])
    image = velocity[2] + guidance_image * (velocity[1] - velocity[2])
    return image + guidance * (velocity[0] - velocity[1])


def flow_sample(
    head: FlowTokenHead,
    params: dict,
    c: jax.Array,
    noise: Callable[[jax.Array], jax.Array],
    *,
    steps: int,
    shift: float = 1.0,
    guidance: float | jax.Array | None = None,
    guidance_image: float | jax.Array | None = None,
    corrected: bool = False,
) -> jax.Array:
    """Draw one token per condition: S - 1 stochastic steps and a noiseless one, in one loop.

    The branches look at the same `x`, and guidance acts on the velocity.

    Args:
      head: the module; `params` its parameter tree (what stands under `"params"`).
      c: `[m * n, D]` conditions, branch after branch in the order of `guided`.
      noise: pure function of a (traced) int32 draw, `-> [n, C]` standard normal: draw 0 is the
        start, draws 1..S-1 are the noises of the steps.
      steps: S.
      shift: of the times, as in `grid`.
      guidance: scale; None runs one branch.
      guidance_image: scale of the source image; None runs at most two branches.
      corrected: whether the grid ends at t = 1.

    Returns:
      `[n, C]` float32.

    Raises:
      ValueError: `guidance_image` without `guidance`, or a number of rows that the branches do not
        divide.
    """
    if guidance is None and guidance_image is not None:
        raise ValueError("guidance: got None, allowed a number where guidance_image is given")
    branches = 1 + (guidance is not None) + (guidance_image is not None)
    if c.shape[0] % branches:
        raise ValueError(f"c: got {c.shape[0]} rows, allowed a multiple of {branches} branches")
    variables = {"params": params}
    condition = head.apply(variables, c, method="condition")
    # A leading axis of branches, against which the one `x` of all branches broadcasts.
    condition = condition.reshape(branches, -1, condition.shape[-1])
    table, last = grid(steps, shift, corrected=corrected)
    table = jnp.asarray(table)

    def velocity(x, t):
        return guided(
            head.apply(variables, x, t, condition, method="predict"), guidance, guidance_image
        )

    def step(j, x):
        t, dt = table[j], table[j + 1] - table[j]
        # Velocity plus (1 - t) times the score, where the score of a linear path is (t v - x) / (1
        # - t): the division cancels, so that t = 1 needs no care.
        drift = (1.0 + t) * velocity(x, t) - x
        return x + drift * dt + jnp.sqrt(2.0 * (1.0 - t) * dt) * noise(j + 1)

    x = noise(jnp.int32(0)).astype(jnp.float32)
    x = jax.lax.fori_loop(0, steps - 1, step, x)
    return x + last * velocity(x, table[-1])
