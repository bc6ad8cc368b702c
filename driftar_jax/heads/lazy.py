"""A cache for the reverse process of the diffusion head, after LazyMAR (arXiv 2503.12450).

Neighbouring times see nearly the same network. Fresh steps run all of it; in between, conditional
rows run alone (the unconditional prediction is theirs less the last difference), the blocks behind
the first leave what they added last time, and the others keep the output of their MLP.

Read in `models/diffloss_cached.py` of feihongyan1/LazyMAR at b5fac6a.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from driftar_jax.heads.diffusion import DiffusionHead, Schedule, reverse_step
from driftar_jax.layers.dense import sinusoid_features

# As released: every seventh time is fresh; above nine tenths of them MLPs run, cached or not; the
# second to the fifth block are left out.
EVERY, HOT, LEFT_OUT = 7, 0.9, range(1, 5)


def is_fresh(number: int | jax.Array, steps: int) -> bool | jax.Array:
    """Say whether step `number`, S - 1 down to 0, runs all of the head."""
    return (number == steps - 1) | (number % EVERY == 0)


def sample(
    head: DiffusionHead,
    params: dict,
    z: jax.Array,
    noise: Callable[[jax.Array], jax.Array],
    *,
    schedule: Schedule,
    guidance: float | jax.Array | None = None,
    z_uncond: jax.Array | None = None,
    temperature: float | jax.Array = 1.0,
) -> jax.Array:
    """Draw one token per condition; arguments and result as for `diffusion.head_sample`."""
    variables, count = {"params": params}, len(z)
    guided = guidance is not None
    condition = head.apply(
        variables, jnp.concatenate([z, z_uncond]) if guided else z, method="condition"
    )
    timesteps = jnp.asarray(schedule.timestep_map, jnp.int32)
    steps, channels = schedule.num_steps, head.token_dim

    def predict(x, t, c, **rest):
        return head.apply(variables, x, t, c, method=_predict, **rest)

    def fresh(x, index, memory):
        out, memory = predict(jnp.concatenate([x, x]) if guided else x, timesteps[index], condition)
        gap = jnp.zeros_like(x)
        if guided:
            # Guidance moves the predicted noise alone; the variance stays that of the conditional
            # rows.
            gap = out[:count, :channels] - out[count:, :channels]
        memory = jax.tree.map(lambda a: a[:count], memory)
        return out[:count], memory | {"gap": gap}

    def cached(hot, x, index, memory):
        out, after = predict(x, timesteps[index], condition[:count], memory=memory, hot=hot)
        return out, after | {"gap": memory["gap"]}

    def step(done, state):
        x, memory = state
        index = jnp.int32(steps - 1 - done)
        kind = jnp.where(is_fresh(index, steps), 0, jnp.where(index > HOT * steps, 1, 2))
        calls = [fresh, *(lambda *a, hot=hot: cached(hot, *a) for hot in (True, False))]
        out, memory = jax.lax.switch(kind, calls, x, index, memory)
        eps, v = out[:, :channels], out[:, channels:]
        if guided:
            # What the unconditional prediction lags behind is the last fresh step's.
            eps = eps + (guidance - 1.0) * memory["gap"]
        return reverse_step(schedule, index, x, eps, v, noise(index), temperature), memory

    start = noise(jnp.int32(steps)).astype(jnp.float32)
    # A loop carries the memory from its start. The first step is fresh and fills it.
    shapes = jax.eval_shape(lambda x: fresh(x, jnp.int32(0), {})[1], start)
    memory = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.fori_loop(0, steps, step, (start, memory))[0]


def _predict(
    head: DiffusionHead,
    x: jax.Array,
    t: jax.Array,
    c: jax.Array,
    *,
    memory: dict[str, Any] | None = None,
    hot: bool = False,
) -> tuple[jax.Array, dict[str, Any]]:
    """Run the head as `TokenMLP.predict`, with what its blocks added and their MLPs gave.

    Args:
      head: bound.
      x: `[n, C]`.
      t: scalar.
      c: `[n, W]`.
      memory: of a fresh step; None: this is one.
      hot: whether MLPs run in a cached step.

    Returns:
      `[n, 2C]` float32, and the memory.
    """
    time = head.time_embed_2(nn.silu(head.time_embed_0(sinusoid_features(t))))
    y = nn.silu(time[None] + c)
    h, added, outputs = head.input_proj(x), {}, {}
    for number, block in enumerate(head.res_blocks):
        name, before = str(number), h
        if memory is not None and number in LEFT_OUT:
            h = h + memory["added"][name]
            added[name], outputs[name] = memory["added"][name], memory["outputs"][name]
            continue
        kept = None if memory is None or hot else memory["outputs"][name]
        h, outputs[name] = block(h, y, kept, returned=True)
        added[name] = h - before
    shift, scale = jnp.split(head.final_modulation(y), 2, axis=-1)
    out = head.final_linear(head.final_norm(h) * (1 + scale) + shift).astype(jnp.float32)
    return out, {"added": added, "outputs": outputs}
