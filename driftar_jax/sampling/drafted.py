"""The speculative road: a batch of images by drafts (`speculative.py`) or by `lookahead.py`."""

import functools
from collections.abc import Mapping
from typing import Any

import jax

from driftar_jax.heads import randomness
from driftar_jax.hosts.base import Model
from driftar_jax.sampling import lookahead, plain, speculative
from driftar_jax.sampling.settings import Rule, Settings, Window
from driftar_jax.types import Speculation, Trace


@functools.partial(jax.jit, static_argnums=(0, 1, 2), static_argnames="trace")
def generate(
    model: Model,
    rule: Rule | Window,
    settings: Settings,
    params: Mapping[str, Any],
    condition: Any,
    index: jax.Array,
    seed: jax.Array,
    trace: bool = False,
) -> tuple[jax.Array, Speculation] | tuple[jax.Array, Speculation, Trace]:
    """Do as `plain.generate` with drafts, or looking ahead; an image is the same in any batch.

    Args:
      model: modules; drafts need those of a Drift-AR run, and method `drift`.
      rule: how far to draft and what to accept; or how far to look ahead, and when a guess stands.
      settings: checked against `model`, plain ones (`Settings.plainly`).
      params, condition, index, seed: as for `plain.generate`; the early stop of the checkpoint
        reads the group `tracker` (`early_stop.EntropyTracker`).
      trace: also return a `Trace`; looking ahead alone.

    Returns:
      float32 grid `[B, H, W, C]`, `Speculation`, and the `Trace` where it is asked for.
    """
    args = model, rule, settings, params, condition, index, seed
    if trace:
        record, speculation = ahead(*args).traced()
        return plain.grid_of(model, record.tokens), speculation, record
    road = ahead if isinstance(rule, Window) else engine
    tokens, speculation = road(*args).run()
    return plain.grid_of(model, tokens), speculation


def engine(model, rule, settings, params, condition, index, seed) -> speculative.Engine:
    """Build the engine of one batch of images; arguments as for `generate`."""
    keys = randomness.image_keys(seed, index)
    walk = model.family.walk(model, settings, params, condition, keys, rule.gamma + 1)
    return speculative.Engine(
        walk,
        plain.one_step_head(model, settings, params),
        randomness.token_keys(keys, model.images.num_tokens),
        randomness.prior_keys(keys),
        rule,
        params.get("tracker"),
    )


def ahead(model, window, settings, params, condition, index, seed) -> lookahead.Lookahead:
    """Build what looks ahead for one batch of images; arguments as for `generate`."""
    keys = randomness.image_keys(seed, index)
    walk = model.family.walk(model, settings, params, condition, keys, window.contexts)
    head = plain.one_step_head(model, settings, params)
    token_keys = randomness.token_keys(keys, model.images.num_tokens)
    if head is None:
        make = lookahead.own(walk, token_keys, window.bound)
    else:
        prior_keys = randomness.prior_keys(keys)
        make = lookahead.one_step(walk, head, token_keys, prior_keys, window.bound)
    evaluations = settings.head_steps[0]
    return lookahead.Lookahead(walk, make, window, len(index), evaluations, walk.above)
