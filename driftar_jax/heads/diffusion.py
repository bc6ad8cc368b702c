"""MAR's many-step head: a small denoising MLP per token, its loss and its sampler.

Source: MAR (arXiv 2406.11838), `models/diffloss.py` and `diffusion/*` of LTH14/mar at fe470ac.
Tables are float64 and `x_t`, coefficients and losses float32 whatever the compute type: the first
reverse step multiplies errors by about 300.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from driftar_jax.layers.token_mlp import TokenMLP, lift

TRAIN_STEPS = 1000

Denoiser = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


# --- network -----------------------------------------------------------------------------------


class DiffusionHead(TokenMLP):
    """MAR's `SimpleMLPAdaLN`: predicts noise and variance of one token; fields as in `TokenMLP`."""

    outputs = 2

    def __call__(self, x: jax.Array, t: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Predict noise and variance of noisy tokens.

        Args:
          x: `[..., C]` floating, noisy tokens.
          t: `[...]` integer, timesteps 0..999 of the training process, also when respaced.
          z: `[..., D]` floating, conditions.

        Returns:
          `eps [..., C]` float32, and `v [..., C]` float32: where the log variance lies between
          the posterior's (-1) and beta's (1).
        """
        return self.denoise(x, t, self.condition(z))

    def denoise(self, x: jax.Array, t: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Do as `__call__`, with `c [..., W]` of `condition` in place of `z`.

        A scalar `t` embeds the time once for all rows.
        """
        eps, v = jnp.split(self.predict(x, t, c), 2, axis=-1)
        return eps, v


# --- process -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """Tables of a diffusion process of S steps, all `[S]` float64 (`timestep_map` int64).

    `timestep_map` holds the step of the training process that the network is told.
    """

    timestep_map: np.ndarray
    betas: np.ndarray
    log_betas: np.ndarray
    alphas_cumprod: np.ndarray
    posterior_variance: np.ndarray
    posterior_log_variance_clipped: np.ndarray
    posterior_mean_coef1: np.ndarray
    posterior_mean_coef2: np.ndarray
    sqrt_recip_alphas_cumprod: np.ndarray
    sqrt_recipm1_alphas_cumprod: np.ndarray

    @property
    def num_steps(self) -> int:
        """Return the number of reverse steps."""
        return len(self.betas)


def _schedule(timestep_map: np.ndarray, betas: np.ndarray) -> Schedule:
    cumprod = np.cumprod(1.0 - betas)
    # Before the first step nothing is noise: a cumulative product of 1.
    previous = np.append(1.0, cumprod[:-1])
    variance = betas * (1.0 - previous) / (1.0 - cumprod)
    # The variance of index 0 is 0; its log borrows index 1, or beta where there is only one step.
    floor = variance[1] if len(betas) > 1 else betas[0]
    return Schedule(
        timestep_map=timestep_map,
        betas=betas,
        log_betas=np.log(betas),
        alphas_cumprod=cumprod,
        posterior_variance=variance,
        posterior_log_variance_clipped=np.log(np.append(floor, variance[1:])),
        posterior_mean_coef1=betas * np.sqrt(previous) / (1.0 - cumprod),
        posterior_mean_coef2=(1.0 - previous) * np.sqrt(1.0 - betas) / (1.0 - cumprod),
        sqrt_recip_alphas_cumprod=np.sqrt(1.0 / cumprod),
        sqrt_recipm1_alphas_cumprod=np.sqrt(1.0 / cumprod - 1.0),
    )


def training_schedule() -> Schedule:
    """Return the cosine process of 1000 steps (arXiv 2102.09672); only the last beta is clipped."""
    u = np.arange(TRAIN_STEPS + 1, dtype=np.float64) / TRAIN_STEPS
    bar = np.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    # The cosine reaches 0 at the end, where beta would be 1, no signal would be left and its
    # reciprocal would be infinite.
    betas = np.minimum(1.0 - bar[1:] / bar[:-1], 0.999)
    return _schedule(np.arange(TRAIN_STEPS), betas)


def trimmed_schedule(steps: int, last: int) -> Schedule:
    """Return the training process cut down to `steps` evenly spaced ones from 0 to `last`.

    The published spacing starts at 999, where the reverse step multiplies errors of the noise
    prediction by about 300: a head trained for minutes, not days, fails there. Starting a little
    lower costs nothing, for hardly any signal is left there either.

    Args:
      steps: S, at least 1; one step keeps `last` alone.
      last: largest timestep kept, 0..999.

    Raises:
      ValueError: `steps` or `last` is out of range.
    """
    if not 0 <= last < TRAIN_STEPS:
        raise ValueError(f"last: got {last}, allowed 0..{TRAIN_STEPS - 1}")
    if not 1 <= steps <= last + 1:
        raise ValueError(f"steps: got {steps}, allowed 1..{last + 1}")
    kept = [last] if steps == 1 else [round(k * last / (steps - 1)) for k in range(steps)]
    bar = training_schedule().alphas_cumprod[kept]
    return _schedule(np.asarray(kept), 1.0 - bar / np.append(1.0, bar[:-1]))


def respaced_schedule(steps: int | str) -> Schedule:
    """Return the training process cut down to fewer steps.

    Args:
      steps: S, evenly spaced with 0 and 999 kept; or a list `"a,b,..."` that splits 0..999 into
        equal sections and spaces that many steps in each (a section may have none). A section with
        one step keeps its first index, so `1` keeps timestep 0 alone, as in the official program:
        the result is then hardly more than the initial noise. `"0,0,0,0,0,0,0,0,0,1"` (timestep
        900) is a fairer single step.

    Returns:
      Schedule of S steps with every table recomputed from the new betas.

    Raises:
      ValueError: a count is no integer, is negative, does not fit its section, or all are 0.
    """
    try:
        counts = [int(part) for part in str(steps).split(",")]
    except ValueError:
        raise ValueError(f"steps: got {steps!r}, allowed an integer or a list 'a,b,...'") from None
    size, extra = divmod(TRAIN_STEPS, len(counts))
    kept, start = [], 0
    for i, count in enumerate(counts):
        length = size + (i < extra)
        if not 0 <= count <= length:
            raise ValueError(f"steps: got {count} in a section, allowed 0..{length}")
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        # A running sum, not k * stride: near a half its last digit decides, as in the original.
        position = 0.0
        for _ in range(count):
            kept.append(start + round(position))
            position += stride
        start += length
    if not kept:
        raise ValueError(f"steps: got {steps!r}, allowed at least one step")
    bar = training_schedule().alphas_cumprod[kept]
    # A kept step stands for all that were left out before it: its beta is what takes one cumulative
    # product to the next, and every other table follows from the betas.
    return _schedule(np.asarray(kept), 1.0 - bar / np.append(1.0, bar[:-1]))


def chosen(schedules: Sequence[Schedule], which: jax.Array) -> tuple[Schedule, jax.Array]:
    """Choose one of several processes, by a traced index.

    Args:
      schedules: processes of any lengths.
      which: int32 scalar.

    Returns:
      The process, its tables float32 and padded to the longest, and its number of steps.
    """
    most = max(s.num_steps for s in schedules)

    def table(name):
        rows = [getattr(s, name) for s in schedules]
        # Shorter tables are padded behind their end, which a loop of their own number of steps
        # never reads.
        stacked = np.stack([np.pad(r, (0, most - len(r))) for r in rows])
        dtype = jnp.int32 if name == "timestep_map" else jnp.float32
        return jnp.asarray(stacked, dtype)[which]

    tables = {f.name: table(f.name) for f in dataclasses.fields(Schedule)}
    return Schedule(**tables), jnp.asarray([s.num_steps for s in schedules], jnp.int32)[which]


def _at(table: np.ndarray, index: jax.Array, ndim: int) -> jax.Array:
    """`table[index]` in float32 with axes of size 1 for the channels, and up to `ndim`."""
    return lift(jnp.asarray(table, jnp.float32)[index][..., None], ndim)


class Prediction(NamedTuple):
    """What one look at `x_t` says, all `[..., C]` float32: clean token, mean and log variance."""

    clean: jax.Array
    mean: jax.Array
    log_variance: jax.Array


def predict(
    schedule: Schedule, index: jax.Array, x: jax.Array, eps: jax.Array, v: jax.Array
) -> Prediction:
    """Return the distribution of the next `x` in the reverse process; nothing is clipped.

    Args:
      schedule: of S steps.
      index: `[...]` integer in 0..S-1 (scalar: the same for all rows).
      x: `[..., C]` float32, the noisy tokens.
      eps: `[..., C]` float32, predicted noise.
      v: `[..., C]` float32, 1: log variance of beta, -1: of the posterior; may go beyond.

    Returns:
      Prediction.
    """
    at = lambda table: _at(table, index, x.ndim)  # noqa: E731
    clean = at(schedule.sqrt_recip_alphas_cumprod) * x
    # Not clipped to [-1, 1], unlike the image programs this comes from: latents have no such range.
    clean = clean - at(schedule.sqrt_recipm1_alphas_cumprod) * eps
    # The mean of q(x_{t-1} | x_t, x_0) with the predicted clean token in the place of x_0.
    mean = at(schedule.posterior_mean_coef1) * clean + at(schedule.posterior_mean_coef2) * x
    share = (v + 1.0) / 2.0
    log_variance = share * at(schedule.log_betas)
    log_variance += (1.0 - share) * at(schedule.posterior_log_variance_clipped)
    return Prediction(clean, mean, log_variance)


class LastStep(NamedTuple):
    """What a reverse process leaves for CSpD's test, all `[..., C]` float32.

    Attributes:
      mean: of the last reverse step, which adds no noise: the token itself.
      std: of the last reverse step, temperature included.
      half_log_variance: sum over the earlier reverse steps of half the log variance, without
        temperature.
    """

    mean: jax.Array
    std: jax.Array
    half_log_variance: jax.Array


def add_noise(schedule: Schedule, x0: jax.Array, t: jax.Array, noise: jax.Array) -> jax.Array:
    """Return `x_t [..., C]` float32 of clean tokens `x0 [..., C]` at index `t [...]`."""
    signal = _at(np.sqrt(schedule.alphas_cumprod), t, x0.ndim)
    return signal * x0 + _at(np.sqrt(1.0 - schedule.alphas_cumprod), t, x0.ndim) * noise


# --- loss --------------------------------------------------------------------------------------


def _normal_cdf(x: jax.Array) -> jax.Array:
    """Tanh approximation of the standard normal's CDF."""
    # Beyond +-10 float32 is exactly 0 or 1; the cube of a large input would overflow in the slope.
    x = jnp.clip(x, -10.0, 10.0)
    return 0.5 * (1.0 + jnp.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def _discretised_log_likelihood(x: jax.Array, mean: jax.Array, log_std: jax.Array) -> jax.Array:
    """Log probability of the bin of half-width 1/255 around `x`, tails beyond +-0.999.

    Code for 8-bit images that MAR applies to latents; kept as it is.
    """
    log = lambda p: jnp.log(jnp.maximum(p, 1e-12))  # noqa: E731
    scale = jnp.exp(-log_std)
    above = _normal_cdf(scale * (x - mean + 1.0 / 255.0))
    below = _normal_cdf(scale * (x - mean - 1.0 / 255.0))
    inside = jnp.where(x > 0.999, log(1.0 - below), log(above - below))
    return jnp.where(x < -0.999, log(above), inside)


class Loss(NamedTuple):
    """Per-token loss `[...]` float32: mean squared error of the noise, and bits per channel."""

    mse: jax.Array
    vb: jax.Array


def head_loss_terms(
    denoise: Denoiser, schedule: Schedule, x0: jax.Array, t: jax.Array, noise: jax.Array
) -> Loss:
    """Return the two terms of `head_loss`, same arguments."""
    x0, noise = x0.astype(jnp.float32), noise.astype(jnp.float32)
    x_t = add_noise(schedule, x0, t, noise)
    # The network counts in steps of the training process, whatever the schedule's own index.
    eps, v = denoise(x_t, jnp.asarray(schedule.timestep_map)[t])
    eps, v = eps.astype(jnp.float32), v.astype(jnp.float32)
    mse = jnp.mean((noise - eps) ** 2, axis=-1)

    # The bound has a gradient for the variance alone (arXiv 2102.09672): through eps its noisy
    # terms would disturb the squared error.
    model = predict(schedule, t, x_t, jax.lax.stop_gradient(eps), v)
    true_mean = _at(schedule.posterior_mean_coef1, t, x0.ndim) * x0
    true_mean = true_mean + _at(schedule.posterior_mean_coef2, t, x0.ndim) * x_t
    true_log_variance = _at(schedule.posterior_log_variance_clipped, t, x0.ndim)
    difference = true_log_variance - model.log_variance
    kl = jnp.exp(difference) + (true_mean - model.mean) ** 2 * jnp.exp(-model.log_variance)
    kl = 0.5 * (kl - 1.0 - difference)
    # The true posterior of index 0 is a single point; the likelihood of the clean token takes the
    # divergence's place.
    first = -_discretised_log_likelihood(x0, model.mean, 0.5 * model.log_variance)
    nats = jnp.where(lift(t[..., None], x0.ndim) == 0, first, kl)
    return Loss(mse, jnp.mean(nats, axis=-1) / math.log(2.0))


def head_loss(
    denoise: Denoiser, schedule: Schedule, x0: jax.Array, t: jax.Array, noise: jax.Array
) -> jax.Array:
    """Return MAR's training loss: squared error of the noise plus the variational bound, weight 1.

    The noise prediction is detached inside the bound, which therefore trains `v` alone (and,
    through `v`, everything below it).

    Args:
      denoise: `(x_t, timestep) -> (eps, v)`.
      schedule: normally `training_schedule()`.
      x0: `[..., C]` clean tokens.
      t: `[...]` integer index into `schedule`.
      noise: `[..., C]` standard normal.

    Returns:
      `[...]` float32, one loss per token.
    """
    terms = head_loss_terms(denoise, schedule, x0, t, noise)
    return terms.mse + terms.vb


# --- sampler -----------------------------------------------------------------------------------


def reverse_step(
    schedule: Schedule,
    index: jax.Array,
    x: jax.Array,
    eps: jax.Array,
    v: jax.Array,
    noise: jax.Array,
    temperature: float | jax.Array = 1.0,
) -> jax.Array:
    """Return `x [..., C]` one step later; the last step (index 0) is the mean itself, without
    noise.
    """
    step = predict(schedule, index, x, eps, v)
    spread = jnp.exp(0.5 * step.log_variance) * noise * temperature
    return step.mean + jnp.where(lift(index[..., None], x.ndim) > 0, spread, 0.0)


def head_sample(
    head: DiffusionHead,
    params: dict,
    z: jax.Array,
    noise: Callable[[jax.Array], jax.Array],
    *,
    schedule: Schedule,
    guidance: float | jax.Array | None = None,
    z_uncond: jax.Array | None = None,
    temperature: float | jax.Array = 1.0,
    num_steps: jax.Array | None = None,
) -> jax.Array:
    """Draw one token per condition by the whole reverse process, in one loop.

    Guidance acts on the noise prediction alone, and both branches look at the same `x` (MAR's
    `forward_with_cfg`); the unconditional branch gives nothing but that prediction.

    Args:
      head: the module; `params` its parameter tree (what stands under `"params"`).
      z: `[n, D]` conditions.
      noise: pure function of a (traced) int32 step, `-> [n, C]` standard normal: step S is the
        initial noise, S-1..1 are the noises of the steps; step 0 is asked for and not used.
      schedule: of S steps.
      guidance: scale, a number, traced scalar or `[n, 1]`; needs `z_uncond`.
      z_uncond: `[n, D]` conditions of the unconditional branch. Without it, or with
        `guidance=None`, one branch runs.
      temperature: factor of the step noises, not of the initial noise.
      num_steps: S where the tables of `schedule` are padded (`chosen`).

    Returns:
      `[n, C]` float32.

    Raises:
      ValueError: `guidance` without `z_uncond`.
    """
    denoise = _denoiser(head, params, z, schedule, guidance, z_uncond)
    steps = schedule.num_steps if num_steps is None else num_steps

    def step(done, x):
        index = jnp.int32(steps - 1 - done)
        return reverse_step(schedule, index, x, *denoise(index, x), noise(index), temperature)

    # Draw number S, which no step uses: steps ask for their own index, S - 1 down to 0.
    start = noise(jnp.int32(steps)).astype(jnp.float32)
    return jax.lax.fori_loop(0, steps, step, start)


def head_last_step(
    head: DiffusionHead,
    params: dict,
    z: jax.Array,
    noise: Callable[[jax.Array], jax.Array],
    *,
    schedule: Schedule,
    guidance: float | jax.Array | None = None,
    z_uncond: jax.Array | None = None,
    temperature: float | jax.Array = 1.0,
) -> LastStep:
    """Do as `head_sample`, and keep what CSpD's test reads; the token is the last step's mean.

    Source: mar.md section 9.1 (CSpD, MarkXCloud/CSpD at d91f721).
    """
    denoise = _denoiser(head, params, z, schedule, guidance, z_uncond)
    steps = schedule.num_steps

    def step(done, kept):
        index = jnp.int32(steps - 1 - done)
        at = predict(schedule, index, kept.mean, *denoise(index, kept.mean))
        half = 0.5 * at.log_variance
        std = jnp.exp(half) * temperature
        # The last step neither adds noise nor counts among the earlier ones.
        earlier = index > 0
        x = at.mean + jnp.where(earlier, std * noise(index), 0.0)
        return LastStep(x, std, kept.half_log_variance + jnp.where(earlier, half, 0.0))

    start = noise(jnp.int32(steps)).astype(jnp.float32)
    nothing = jnp.zeros_like(start)
    return jax.lax.fori_loop(0, steps, step, LastStep(start, nothing, nothing))


def _denoiser(head, params, z, schedule, guidance, z_uncond):
    """Return `(index, x [n, C]) -> (eps, v)` of the conditions, guided or not."""
    if guidance is not None and z_uncond is None:
        raise ValueError("z_uncond: got None, allowed [n, D] conditions when guidance is given")
    variables = {"params": params}
    guided = guidance is not None
    both = jnp.concatenate([z, z_uncond]) if guided else z
    condition = head.apply(variables, both, method="condition")
    timesteps = jnp.asarray(schedule.timestep_map, jnp.int32)

    def denoise(index, x):
        x_in = jnp.concatenate([x, x]) if guided else x
        eps, v = head.apply(variables, x_in, timesteps[index], condition, method="denoise")
        if guided:
            eps, eps_uncond = jnp.split(eps, 2)
            eps = eps_uncond + guidance * (eps - eps_uncond)
            # The variance is the conditional branch's own.
            v = jnp.split(v, 2)[0]
        return eps, v

    return denoise
