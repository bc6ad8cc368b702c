"""MAR's lock-step loop: all images of a batch take the same AR steps together.

The order of the tokens is drawn for each image; an AR step runs the backbone on what is known,
then the head on the tokens that the step reveals.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from driftar_jax import seeds
from driftar_jax.config import wrong
from driftar_jax.heads import randomness
from driftar_jax.hosts import mar_plan, orders
from driftar_jax.hosts.base import Head, Model
from driftar_jax.hosts.mar import take
from driftar_jax.layers import stacked
from driftar_jax.types import Encoding, Hole, Trace


def tokens_of(
    model: Model,
    settings: Any,
    params: Mapping[str, Any],
    label: jax.Array,
    keys: jax.Array,
    head: Head | None,
    hole: Hole | None = None,
    trace: bool = False,
) -> jax.Array | Trace:
    """Generate all tokens `[B, N, C]`; arguments as for `Family.plain`."""
    if settings.accelerator != "none":
        if hole is not None or trace:
            allowed = "none where tokens are given, or a trace is asked for"
            raise wrong("accelerator", settings.accelerator, allowed)
        from driftar_jax.hosts import mar_lazy, mar_recap  # of rivals alone

        rival = mar_recap if settings.accelerator == "recap" else mar_lazy
        return rival.tokens_of(model, settings, params, label, keys, head)
    images = model.images
    shape = (label.shape[0], images.num_tokens, images.token_dim)
    order, tokens = orders.draw(keys, images.grid, settings.order), jnp.zeros(shape, jnp.float32)
    if hole is not None:
        # The order is revealed from its end, so tokens that are there already stand last: they
        # count as revealed before the first step.
        order = randomness.unknown_first(order, hole.known)
        tokens = jnp.where(hole.known[None, :, None], hole.tokens[None], tokens)
    # The inverse permutation: at which turn each position is revealed. With it "known before the
    # step" is one comparison per position instead of a scatter.
    rank = jnp.argsort(order, axis=-1)

    def ar_step(steps, tokens, step):
        # The first `now` places of the order are still unknown, all behind them are known.
        known = rank >= step["now"]
        encoding = backbone(model, settings, steps, params, tokens, known, label, step["keep"])
        tokens = reveal(model, settings, steps, params, tokens, encoding, order, keys, step, head)
        record = (encoding.entropy[: len(tokens)], rank < step["next"]) if trace else None
        return tokens, record

    records = []
    for steps in plans_of(model, settings, params, hole and hole.unknown):
        # A scan, not a Python loop: 64 or 256 copies of the backbone would take minutes to compile.
        # What differs between steps is either a traced column or a branch of a `switch`.
        tokens, some = jax.lax.scan(functools.partial(ar_step, steps), tokens, steps.columns())
        records.append(some)
    if not trace:
        return tokens
    # A token that is unknown after k steps was made by step k; what was given, before all.
    entropy, unknown = (jnp.concatenate(parts) for parts in zip(*records, strict=True))
    turn = unknown.sum(axis=0, dtype=jnp.int32)
    if hole is not None:
        turn = jnp.where(hole.known[None], -1, turn)
    return Trace(tokens, turn, jnp.moveaxis(entropy, 0, 1))


def plans_of(
    model: Model,
    settings: Any,
    params: Mapping[str, Any],
    unknown: int | None = None,
    *,
    whole: bool = False,
) -> tuple[mar_plan.Plan, ...]:
    """Split the AR steps of checked settings into plans, each compiled separately.

    The first step of large guided grids is one, and so are steps with guidance and without;
    `whole` keeps them in one.
    """
    steps = mar_plan.make(
        model.images.num_tokens,
        settings.ar_steps,
        guidance=settings.guidance,
        guidance_schedule=settings.guidance_schedule,
        head_steps=settings.head_steps,
        unknown=unknown,
        most=most_sizes(model, settings, params),
    )
    begin, end = settings.guided_steps
    # Outside of the interval there is one row an image, and a decoder that was trained with the
    # scale is told 1.
    outside = np.arange(settings.ar_steps)
    outside = (outside < begin) | (outside >= end)
    steps = dataclasses.replace(steps, scale=np.where(outside, np.float32(1), steps.scale))
    if whole or not settings.guided:
        return (dataclasses.replace(steps, guided=settings.guided),)
    return steps.guided_from(begin, end)


def most_sizes(model: Model, settings: Any, params: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return `Plan.most` for these parameters."""
    if not stacked.is_stack(params["host"], model.host.loops):
        return None
    # The host's own head takes nearly all of the time, and each row of it many evaluations.
    sizes = mar_plan.MOST_SIZES if settings.method == "own" else mar_plan.LOOP_SIZES
    return mar_plan.LOOP_KEEPS, sizes


def backbone(
    model: Model,
    settings: Any,
    steps: mar_plan.Plan,
    params: Mapping[str, Any],
    tokens: jax.Array,
    known: jax.Array,
    label: jax.Array,
    keep: jax.Array,
) -> Encoding:
    """Run one backbone call of the AR loop, up to where the revealed tokens have to be known.

    Args:
      model, settings, params: as for `Family.plain`; `steps` of `plans_of`.
      tokens: `[B, N, C]`; read where `known [B, N]` is True.
      label: `[B]`.
      keep: int32 scalar, index into `steps.keeps`: the encoder runs on about as many tokens as are
        known, not on all.

    Returns:
      `Encoding` for `reveal`, `[B, ...]`, or `[2B, ...]` with the unconditional rows.
    """
    batch = label.shape[0]
    # Without a known token the unconditional rows are all alike: one is run, and repeated below.
    others = 0 if not steps.guided else 1 if steps.empty else batch
    if others:
        # Both branches of guidance go through the backbone as one batch, conditional rows first;
        # the unconditional ones see the same tokens and label -1.
        tokens, known = (jnp.concatenate([a, a[:others]]) for a in (tokens, known))
        label = jnp.concatenate([label, jnp.full_like(label[:others], -1)])
    variables = {"params": params["host"]}

    def place(size):
        # With room for all tokens nothing needs to be gathered: the encoder masks instead.
        size = None if size == model.images.num_tokens else size
        return model.host.apply(variables, tokens, known, label, keep=size, method="place")

    # One branch for each padded size: a traced size could not be an array's.
    canvas = jax.lax.switch(keep, [functools.partial(place, size) for size in steps.keeps])
    encoding = model.host.apply(variables, canvas, method="look")
    if others < batch and steps.guided:
        repeat = lambda a: jnp.concatenate([a[:batch], jnp.repeat(a[batch:], batch, axis=0)])  # noqa: E731
        encoding = jax.tree.map(repeat, encoding)
    return encoding


def reveal(
    model: Model,
    settings: Any,
    steps: mar_plan.Plan,
    params: Mapping[str, Any],
    tokens: jax.Array,
    encoding: Encoding,
    order: jax.Array,
    keys: jax.Array,
    step: dict[str, jax.Array],
    head: Head | None,
    features: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Run the head's part of an AR step: `tokens [B, N, C]` with the step's group filled in.

    Args:
      model, settings, params, head: as for `Family.plain`; `steps` of `plans_of`.
      tokens: so far.
      encoding: of `backbone`.
      order: `[B, N]` int32; `keys [B]`, one per image.
      step: the step's entries of `steps.columns()`.
      features: of positions `[R, M]`, `-> z [R, M, D]`; None: the last block runs on `encoding`.
    """
    batch = len(tokens)
    if head is not None and head.guided and not steps.guided:
        head = dataclasses.replace(head, guided=False)
    if features is None:

        def features(rows):
            variables = {"params": params["host"]}
            return model.host.apply(variables, encoding.z, rows, method="features")

    entropies = () if head is None else head.shown(encoding.entropy, randomness.prior_keys(keys))
    token_keys = randomness.token_keys(keys, tokens.shape[1])

    def make(positions, _):
        rows = jnp.concatenate([positions] * (encoding.z.shape[0] // batch))
        revealed = Encoding(
            # The last decoder block runs here, with queries for the group alone: a step reveals a
            # few tokens of hundreds.
            z=features(rows),
            entropy=take(encoding.entropy, rows),
        )
        revealed_keys = take(token_keys, positions)
        if head is None:
            from driftar_jax.hosts import mar_own  # a Drift-AR run has none

            return mar_own.tokens(model, settings, steps, params, revealed, revealed_keys, step)
        # `shown` was made for the whole grid outside the switch: a prior whose entropies are
        # shuffled over the positions has to shuffle all of them, not those of one group.
        mu, std = head.starts_of(revealed.z, take(entropies, rows))
        eps = randomness.normal(revealed_keys, 0, model.images.token_dim)
        return head.tokens(revealed, mu, std, eps, step["scale"])

    return written(steps, order, step, tokens, make)


def written(
    steps: mar_plan.Plan,
    order: jax.Array,
    step: Mapping[str, jax.Array],
    canvas: jax.Array,
    make: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """Return `canvas [B, N, K]` with the step's group filled in.

    Args:
      steps, order, step: as for `reveal`.
      canvas: so far.
      make: `(positions [B, M], real [M]) -> [B, M, K]`; what is not real is made and dropped.
    """
    num_tokens = canvas.shape[1]

    def fill(size):
        # The slots from `next` on are revealed; padding past `now` writes nowhere.
        # The group's slots of the order are `next..now-1`.
        slots = step["next"] + jnp.arange(size)
        # Padding slots are clamped to stay inside the order; they cost arithmetic and are dropped
        # below.
        positions = jnp.take(order, jnp.minimum(slots, num_tokens - 1), axis=1)
        real = slots < step["now"]
        new = make(positions, real)
        target = jnp.where(real, positions, num_tokens)
        return jax.vmap(lambda t, p, x: t.at[p].set(x, mode="drop"))(canvas, target, new)

    return jax.lax.switch(step["size"], [functools.partial(fill, size) for size in steps.sizes])


def backbone_alone(model: Model, settings: Any, params, label):
    """Run the loop's backbone calls, on contexts of the right sizes."""
    images = model.images
    batch, num_tokens = label.shape[0], images.num_tokens
    tokens = jnp.zeros((batch, num_tokens, images.token_dim), jnp.float32)
    # Which tokens are known does not change the cost, how many does: any order will do.
    rank = jnp.broadcast_to(jnp.arange(num_tokens), (batch, num_tokens))

    def call(steps, total, step):
        known = rank >= step["now"]
        encoding = backbone(model, settings, steps, params, tokens, known, label, step["keep"])
        # Drift-AR reads the entropy, the own head does not: what is not read is not computed.
        read = encoding.z.sum() + (encoding.entropy.sum() if model.prior is not None else 0.0)
        return total + read, None

    total = jnp.float32(0)
    for steps in plans_of(model, settings, params):
        total, _ = jax.lax.scan(functools.partial(call, steps), total, steps.columns())
    return total


def head_alone(model: Model, settings: Any, head_of, params, index):
    """Run the loop's head calls with what the backbone leaves to them, on features all alike."""
    images = model.images
    batch, num_tokens = index.shape[0], images.num_tokens
    keys = jax.vmap(functools.partial(jax.random.fold_in, seeds.key(0)))(index)
    order = jnp.broadcast_to(jnp.arange(num_tokens), (batch, num_tokens))
    head = head_of(params)

    def call(steps, tokens, step):
        rows = 2 * batch if steps.guided else batch
        encoding = Encoding(
            # As `look` leaves it, buffer rows included: the last decoder block belongs to the
            # head's part.
            z=jnp.ones((rows, model.host.buffer_size + num_tokens, model.host.width), jnp.float32),
            entropy=jnp.full((rows, num_tokens), 0.5, jnp.float32),
        )
        new_tokens = reveal(
            model, settings, steps, params, tokens, encoding, order, keys, step, head
        )
        return new_tokens, None

    tokens = jnp.zeros((batch, num_tokens, images.token_dim), jnp.float32)
    for steps in plans_of(model, settings, params):
        tokens, _ = jax.lax.scan(functools.partial(call, steps), tokens, steps.columns())
    return tokens
