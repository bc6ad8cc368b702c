"""What a sampler needs on a chip that is not here: compiled, never run."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from driftar_jax import model as models
from driftar_jax.config import wrong
from driftar_jax.sampling import batches, drafted, plain, two_models
from driftar_jax.sampling.generator import Generator
from driftar_jax.sampling.settings import Settings
from driftar_jax.targets.chips import Target
from driftar_jax.targets.program import Compiled, compile_for, report


def measure(generator: Generator, settings: Settings, condition: Any, target: Target) -> Compiled:
    """Lower and compile the sampler of one batch for one device of `target`.

    Args:
      generator: its parameters may be shapes alone.
      settings: checked, with a number of drafts.
      condition: of the batch, leaves `[B, ...]`.
      target: of `chips.describe`.
    """
    place = jax.sharding.SingleDeviceSharding(target.devices[0])

    def shape(array):
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place)

    model, batch = generator.model, batches.size(condition)
    looped = functools.partial(models.looped, model)
    params = jax.eval_shape(looped, dict(generator.params))
    arguments = (params, condition, jnp.zeros(batch, jnp.int32), jnp.zeros((), jnp.uint32))
    arguments = jax.tree.map(shape, arguments)
    if settings.drafts:
        plainly = settings.changed(gamma=0)
        rule = settings.draft_rule(settings.drafts)
        lower = functools.partial(drafted.generate.lower, model, rule, plainly, *arguments)
    elif settings.draft_steps:
        lower = functools.partial(two_models.generate.lower, model, settings, *arguments)
    else:
        lower = functools.partial(plain.generate.lower, model, settings, *arguments)
    return compile_for(target, lower)


def lines(generator: Generator, settings: Settings, condition: Any, target: Target) -> list[str]:
    """Do as `measure`, for a reader.

    Raises:
      ValueError: the number of drafts is still to be chosen, which needs a run.
    """
    if settings.drafts < 0:
        raise wrong("gamma", "auto", "a number: choosing one takes a run")
    if settings.lookahead:
        raise wrong("lookahead", settings.lookahead, "0 for --dry_run")
    results = measure(generator, settings, condition, target)
    numbers = sum(math.prod(a.shape) for a in jax.tree.leaves(dict(generator.params)))
    what = f"method {settings.method}, {settings.ar_steps} AR steps"
    return [
        f"sampler            batch {batches.size(condition)}, {what}, parameters {numbers:,}",
        *report(results),
    ]
