"""Two MAR models make one image (CSpD, arXiv 2411.11925): one drafts AR steps, the other checks.

The target makes the first steps alone. Then the draft model makes a few AR steps, and one call of
the target judges all of their tokens, in the context that stood before the first of them. A token
that fails is replaced on the spot; nothing is taken back. So the number of calls is fixed, and
acceptance decides about the image alone.

Read in MarkXCloud/CSpD at d91f721; what differs here stands in docs/rivals.md.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from driftar_jax.heads import diffusion, randomness
from driftar_jax.hosts import mar_own, mar_plain, orders
from driftar_jax.hosts.base import Model
from driftar_jax.hosts.mar import take
from driftar_jax.hosts.mar_plan import Plan
from driftar_jax.hosts.schedules import checked_steps, guidance_at, unknown_counts


def tokens_of(
    model: Model,
    settings: Any,
    params: Mapping[str, Any],
    label: jax.Array,
    keys: jax.Array,
    judge: Callable[..., tuple[jax.Array, jax.Array]],
) -> tuple[jax.Array, jax.Array]:
    """Generate tokens `[B, N, C]`, and count the drafts that passed by AR step, `[B, T]` int32.

    Arguments as for `Family.paired`.
    """
    images, ar_steps = model.images, settings.ar_steps
    num_tokens, channels = images.num_tokens, images.token_dim
    order = orders.draw(keys, images.grid, settings.order)
    rank = jnp.argsort(order, axis=-1)
    token_keys = randomness.token_keys(keys, num_tokens)
    alone, drafting, checking, columns = plans_of(model, settings, params)
    drafter, draft_params = model.drafter, params["drafter"]

    def prefill(steps, tokens, step):
        known = rank >= step["now"]
        encoding = mar_plain.backbone(
            model, settings, steps, params, tokens, known, label, step["keep"]
        )
        context = model, settings, steps, params, tokens, encoding, order, keys, step, None
        return mar_plain.reveal(*context), None

    def look(who, of, steps, tokens, step):
        """Bind a model in the context of a step: `positions [B, M] -> LastStep [B, M, C]`."""
        known = rank >= step["now"]
        encoding = mar_plain.backbone(who, settings, steps, of, tokens, known, label, step["keep"])

        def ends(positions):
            rows = jnp.concatenate([positions] * settings.branches)
            z = who.host.apply({"params": of["host"]}, encoding.z, rows, method="features")
            revealed_keys = take(token_keys, positions)
            return mar_own.last_steps(who, settings, of, z, revealed_keys, step["scale"])

        return ends

    def draft(state, step):
        tokens, drafts, passed = state
        ends = look(drafter, draft_params, drafting, tokens, step)
        drafts = mar_plain.written(
            drafting, order, step, drafts, lambda at, _: jnp.concatenate(ends(at), axis=-1)
        )
        group = (rank >= step["next"]) & (rank < step["now"])
        tokens = jnp.where(group[..., None], drafts[..., :channels], tokens)
        of_round = {name.removeprefix("check "): step[name] for name in step if "check " in name}

        def check(tokens, passed):
            # The context of all drafts of the round is what stood before the first of them.
            ends = look(model, params, checking, tokens, of_round)

            def verdict(at, real):
                draft_ends = diffusion.LastStep(*jnp.split(take(drafts, at), 3, axis=-1))
                x = take(tokens, at)
                fits, new = judge(x, draft_ends, ends(at), take(token_keys, at), real)
                return jnp.concatenate([new, fits[..., None].astype(new.dtype)], axis=-1)

            canvas = jnp.concatenate([tokens, passed[..., None]], axis=-1)
            canvas = mar_plain.written(checking, order, of_round, canvas, verdict)
            return canvas[..., :channels], canvas[..., channels]

        # A condition and no mask: a step that does not end a round pays for no call of the target.
        tokens, passed = jax.lax.cond(step["ends"], check, lambda *same: same, tokens, passed)
        return (tokens, drafts, passed), None

    shape = len(label), num_tokens
    tokens = jnp.zeros((*shape, channels), jnp.float32)
    for steps in alone:
        tokens, _ = jax.lax.scan(functools.partial(prefill, steps), tokens, steps.columns())
    state = tokens, jnp.zeros((*shape, 3 * channels), jnp.float32), jnp.zeros(shape, jnp.float32)
    (tokens, _, passed), _ = jax.lax.scan(draft, state, columns)
    # Slot s of an order is revealed by the step that brings the unknown ones from above s to s.
    left = np.array([after for _, after in unknown_counts(num_tokens, ar_steps)])
    turn = (np.arange(num_tokens)[:, None] < left).sum(axis=1)
    by_step = jnp.asarray(turn[:, None] == np.arange(ar_steps), jnp.int32)
    passed = jnp.take_along_axis(passed, order, axis=-1).astype(jnp.int32)
    return tokens, passed @ by_step


def plans_of(
    model: Model, settings: Any, params: Mapping[str, Any]
) -> tuple[tuple[Plan, ...], Plan, Plan, dict[str, np.ndarray]]:
    """Return the target's steps alone, the draft's, the target's checks, and the draft's columns.

    The columns also say which steps end a round (`ends`), and what its check has to know (`check
    ...`).
    """
    num_tokens, ar_steps = model.images.num_tokens, settings.ar_steps
    first, ends = checked_steps(ar_steps, settings.draft_steps, settings.draft_prefill)
    now, after = np.asarray(unknown_counts(num_tokens, ar_steps)).T
    scale = guidance_at(settings.guidance, num_tokens, ar_steps, settings.guidance_schedule)
    nfe = np.full(ar_steps, settings.nfe)
    most = mar_plain.most_sizes(model, settings, params)
    of_draft = mar_plain.most_sizes(model.drafter, settings, params["drafter"])

    def plan(begin, end, most):
        # As released, all tokens of a check take the scale of the round's last step.
        return Plan.of(
            num_tokens, now[begin], after[end], scale[end], nfe[end], most, settings.guided
        )

    alone, rest, ends = slice(0, first), slice(first, None), np.array(ends)
    begins = np.append(first, ends[:-1] + 1)
    prefill, drafting, checking = (
        plan(alone, alone, most),
        plan(rest, rest, of_draft),
        plan(begins, ends, most),
    )
    columns = drafting.columns()
    columns["ends"] = np.isin(np.arange(first, ar_steps), ends)
    for name, column in checking.columns().items():
        spread = np.zeros(ar_steps - first, column.dtype)
        spread[ends - first] = column
        columns[f"check {name}"] = spread
    return prefill.first_apart() if settings.guided else (prefill,), drafting, checking, columns
