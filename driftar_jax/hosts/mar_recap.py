"""ReCAP's cheap AR steps for MAR (arXiv 2505.19089): features of the context are kept.

The first half of the AR steps is full. Then full and cheap ones take turns. A cheap step runs, in
both branches of guidance, the few rows that the two steps are about: the buffer and the tokens that
the full step revealed through the encoder, and with them the tokens to be revealed now through the
decoder. They attend to keys and values of all other rows as the full step left them. Its own head
takes 0.4 of the evaluations.

Read in `examples/MAR+ReCAP` of liebenxj/ReCAP at 4d1da38; what differs here stands in
docs/rivals.md.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from driftar_jax.hosts import mar_lazy, mar_plain, orders
from driftar_jax.hosts.base import Head, Model
from driftar_jax.hosts.mar import MAR, take
from driftar_jax.types import Encoding


def tokens_of(
    model: Model,
    settings: Any,
    params: Mapping[str, Any],
    label: jax.Array,
    keys: jax.Array,
    head: Head | None,
) -> jax.Array:
    """Generate all tokens `[B, N, C]` with cheap steps; arguments as for `Family.plain`."""
    images, host = model.images, model.host
    order = orders.draw(keys, images.grid, settings.order)
    rank = jnp.argsort(order, axis=-1)
    (steps,) = mar_plain.plans_of(model, settings, params, whole=True)
    lazy = mar_lazy.plan(host, "recap", steps.now, steps.next, settings.guided)
    most, batch = int(lazy.new.max()), len(label)
    run = functools.partial(host.apply, {"params": params["host"]})
    # Conditional rows first, as the head wants them; both branches see one image.
    both = lambda a: jnp.concatenate([a] * settings.branches)  # noqa: E731
    labels = jnp.concatenate([label, *([jnp.full_like(label, -1)] if settings.guided else [])])

    def ar_step(state, step):
        tokens, memory = state
        context = both(tokens), both(rank >= step["now"]), labels
        last, new = (both(group) for group in mar_lazy.groups(order, step, most))

        def whole(memory):
            return run(*context, method=full)

        def part(memory):
            return *run(memory, *context, last, new, method=local), memory

        # A branch and no mask: a cheap step pays for its rows alone.
        out, entropy, memory = jax.lax.cond(step["full"], whole, part, memory)
        z = run(out, method=mar_lazy.features)
        encoding = Encoding(z=z, entropy=entropy)
        state = model, settings, steps, params, tokens, encoding, order, keys, step, head
        return (mar_plain.reveal(*state, features=lambda rows: take(z, rows)), memory), None

    columns = steps.columns() | {
        "full": lazy.full,
        "new": lazy.new.astype(np.int32),
        "last": lazy.last.astype(np.int32),
    }
    tokens = jnp.zeros((batch, images.num_tokens, images.token_dim), jnp.float32)
    # What a memory looks like; the first step is full, and overwrites it.
    shapes = jax.eval_shape(
        lambda t, k: run(t, k, labels, method=full)[2], both(tokens), both(rank > 0)
    )
    empty = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    (tokens, _), _ = jax.lax.scan(ar_step, (tokens, empty), columns)
    return tokens


def full(mar: MAR, tokens, known, label):
    """Run a full step: last block's output, entropy, and what a cheap step attends to."""
    canvas, encoder = mar_lazy.encode(mar, tokens, known, label)
    out, entropy, decoder = mar_lazy.decode(mar, canvas)
    return out, entropy, {"encoder": encoder, "decoder": decoder, "canvas": canvas}


def local(mar: MAR, memory, tokens, known, label, last, new):
    """Run the rows of the buffer, of the last and of the new group; all others are 0.

    Args:
      mar: the backbone.
      memory: of the full step.
      tokens, known, label: as the backbone's.
      last, new: positions `[R, K]` revealed before and to be revealed now; N where there is none.

    Returns:
      Last block's output `[R, F + N, D]` and entropy `[R, N]`, right where rows were run.
    """
    count, num = mar.buffer_size, mar.buffer_size + mar.num_tokens
    canvas, _ = mar_lazy.encode_new(mar, memory, tokens, known, label, last)
    buffer = jnp.broadcast_to(jnp.arange(count), (len(label), count))
    rows = jnp.concatenate([buffer, count + last, count + new], axis=1)
    x, entropy = mar_lazy.at(canvas, rows), None
    for number, (block, pair) in enumerate(zip(mar.decoder_blocks, memory["decoder"], strict=True)):
        q, k, v = block.heads(x)
        k, v = mar_lazy.put(pair[0], rows, k), mar_lazy.put(pair[1], rows, v)
        start = count if number == mar.loops["decoder_blocks"] else None
        x, row_entropy = block.attend(x, q, k, v, content_start=start)
        entropy = row_entropy if start is not None else entropy
    out = mar_lazy.put(jnp.zeros_like(canvas), rows, x)
    return out, mar_lazy.put(jnp.zeros((len(x), num), jnp.float32), rows, entropy)[:, count:]
