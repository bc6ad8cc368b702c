"""MAR's own diffusion head, as its loop asks it."""

import functools
from typing import Any

import jax

from driftar_jax.heads import diffusion, randomness
from driftar_jax.hosts.schedules import TRIMMED_LAST


def draws(model: Any, settings: Any, params: Any, z: jax.Array, noise: Any, **guided) -> jax.Array:
    """Return draws `[R, C]`; arguments as for `Family.own_draws`."""
    return diffusion.head_sample(
        model.head,
        params["head"],
        z,
        noise,
        schedule=schedule_of(settings, settings.nfe),
        temperature=settings.temperature,
        **guided,
    )


def tokens(model, settings, steps, params, encoding, token_keys, step) -> jax.Array:
    """Return tokens `[B, M, C]` of the diffusion head; `encoding` holds `[B or 2B, M, ...]`."""
    batch, count = token_keys.shape
    channels = model.images.token_dim
    # The diffusion head works on tokens without order: images and positions become one axis, and
    # the conditional rows come first, as the guidance below cuts them.
    z = encoding.z.reshape(-1, encoding.z.shape[-1])
    rows = batch * count
    schedules = [schedule_of(settings, length) for length in steps.lengths]
    schedule, sample = schedules[0], diffusion.head_sample
    if settings.accelerator == "lazymar":
        from driftar_jax.heads import lazy  # of a rival alone

        sample = lazy.sample  # one length alone, as `Family.check_settings` sees to
    elif len(schedules) > 1:
        # Several lengths in one plan (step annealing) share one loop with a traced end over padded
        # tables: a branch for each length would compile the head as often.
        schedule, num_steps = diffusion.chosen(schedules, step["length"])
        sample = functools.partial(sample, num_steps=num_steps)
    new = sample(
        model.head,
        params["head"],
        z[:rows],
        lambda draw: randomness.normal(token_keys.reshape(-1), draw, channels),
        schedule=schedule,
        guidance=step["scale"] if steps.guided else None,
        z_uncond=z[rows:] if steps.guided else None,
        temperature=settings.temperature,
    )
    return new.reshape(batch, count, channels)


def last_steps(model, settings, params, z, token_keys, scale) -> diffusion.LastStep:
    """Return what CSpD's test reads of tokens, `[B, M, C]` each; `z` is `[B or 2B, M, D]`."""
    batch, count = token_keys.shape
    channels, rows = model.images.token_dim, batch * count
    z = z.reshape(-1, z.shape[-1])
    ends = diffusion.head_last_step(
        model.head,
        params["head"],
        z[:rows],
        # Noise belongs to token and reverse step: two models of one image walk the same path.
        lambda draw: randomness.normal(token_keys.reshape(-1), draw, channels),
        schedule=schedule_of(settings, settings.nfe),
        guidance=scale if settings.guided else None,
        z_uncond=z[rows:] if settings.guided else None,
        temperature=settings.temperature,
    )
    return jax.tree.map(lambda a: a.reshape(batch, count, channels), ends)


def schedule_of(settings: Any, num_steps: int) -> diffusion.Schedule:
    """Return the diffusion head's schedule of `num_steps` steps."""
    # A single respaced step would be timestep 0, as in the official program, and hardly touch the
    # initial noise; the trimmed schedule keeps its last timestep instead.
    if settings.spacing == "trimmed" or num_steps == 1:
        return diffusion.trimmed_schedule(num_steps, TRIMMED_LAST)
    return diffusion.respaced_schedule(num_steps)
