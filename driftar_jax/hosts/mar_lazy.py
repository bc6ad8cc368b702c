"""Train-free caches for MAR's sampling loop, after LazyMAR (arXiv 2503.12450): a rival to measure.

Neighbouring AR steps see nearly the same context. Some steps are full, and leave what they computed
behind; in between them

- `condition_cache` runs the conditional rows alone: the unconditional ones are those plus the
  difference that the last full step found, in what the last decoder block returns;
- `token_cache` lets, besides, only new tokens through the encoder, on keys and values of the rest,
  and behind the decoder's fourth block only rows whose values changed most, the new ones always;
- `lazymar` caches in the own head as well (`heads/lazy.py`);
- `recap`, of others, is planned here and runs in `mar_recap.py`.

Read in `models/mar_cache.py` and `models/basic.py` of feihongyan1/LazyMAR at b5fac6a; what differs
here stands in docs/rivals.md.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from driftar_jax.hosts import mar_plain, orders
from driftar_jax.hosts.base import Head, Model
from driftar_jax.hosts.mar import MAR, take
from driftar_jax.hosts.mar_plan import padded
from driftar_jax.hosts.schedules import full_steps, unknown_counts
from driftar_jax.types import Encoding

# As released: the first steps are full, then every ninth.
FULL_FIRST, FULL_EVERY = 5, 9
# The block behind whose attention rows are left out, and rows kept beside the new ones.
_PRUNED_AT, _SPARE = 3, 15
# Share of the rows that stay, of 64 AR steps: (from step, share).
_RETAINED = (
    (0, 1.0),
    (20, 0.6),
    (21, 0.5),
    (25, 0.4),
    (30, 0.15),
    (35, 0.12),
    (40, 0.05),
)
_RETAINED_STEPS = 64
# Most numbers of kept rows: each is a program of its own.
_SIZES = 6


@dataclasses.dataclass(frozen=True)
class Lazy:
    """What each of T AR steps computes; `[T]` arrays of NumPy, known before anything is traced.

    Attributes:
      full: bool.
      new: tokens that the step reveals.
      last: tokens that the step before revealed.
      kept: decoder rows behind the fourth block, of a step that is not full; of `recap` in all.
      encoded: encoder rows of an image and branch.
      rows: all decoder rows, F + N.
      guided: whether a full step runs the unconditional rows too, all or each of them.
      both: whether every step does.
    """

    full: np.ndarray
    new: np.ndarray
    last: np.ndarray
    kept: np.ndarray
    encoded: np.ndarray
    rows: int
    guided: bool | np.ndarray
    both: bool = False

    @property
    def branches(self) -> np.ndarray:
        """Count the rows of an image in each step: an unconditional one in full steps alone, or in
        all.
        """
        return np.where((self.full | self.both) & self.guided, 2, 1)


def plan(
    host: MAR, name: str, now: np.ndarray, after: np.ndarray, guided: bool | np.ndarray
) -> Lazy:
    """Return what an accelerator computes in each step.

    Args:
      host: the backbone.
      name: of `mar.ACCELERATORS`; `none` has full steps alone.
      now, after: unknown tokens before and after each step, `[T]`.
      guided: whether unconditional rows run; without caches also `[T]`.
    """
    steps = np.arange(len(now))
    # Counted from the first full steps on, so that no step leans on a memory that is more than
    # eight steps old.
    full = (steps < FULL_FIRST) | ((steps - FULL_FIRST) % FULL_EVERY == 0) | (name == "none")
    if name == "recap":
        full = np.array(full_steps(len(now)))
    new, rows = now - after, host.buffer_size + host.num_tokens
    last = np.concatenate([[0], new[:-1]])
    # The rows of the buffer count as known: they pass the encoder in every step.
    known = host.buffer_size + host.num_tokens - now
    kept, encoded = np.full(len(now), rows), known
    if name in ("token_cache", "lazymar"):
        # The shares belong to 64 steps; any other number of them walks through the same table in
        # proportion.
        place = steps * _RETAINED_STEPS // len(now)
        # `select` takes the first condition that holds, so the latest entry stands first.
        since, shares = zip(*reversed(_RETAINED), strict=True)
        share = np.select([place >= first for first in since], shares)
        # New and last rows stay whatever their share is: the new ones are what the step is for, and
        # the context of the last ones has changed from unknown to known.
        kept = np.minimum(np.maximum(new + last + _SPARE, (rows * share).astype(int)), rows)
        encoded = np.where(full, known, host.buffer_size + last)
    if name == "recap":
        encoded = np.where(full, known, host.buffer_size + last)
        kept = host.buffer_size + last + new
    kept = np.where(full, rows, kept)
    return Lazy(full, new, last, kept, encoded, rows, guided, both=name == "recap")


def rows(model: Model, settings: Any) -> int:
    """Return the backbone rows of an image: one for each branch of each call."""
    unknown = np.asarray(unknown_counts(model.images.num_tokens, settings.ar_steps))
    steps = plan(model.host, settings.accelerator, *unknown.T, settings.guided)
    return int(steps.branches.sum())


def pruned_at(host: MAR) -> int:
    """Return the decoder block behind whose attention rows go: the fourth, or the last."""
    return min(_PRUNED_AT, host.decoder_depth - 1)


def tokens_of(
    model: Model,
    settings: Any,
    params: Mapping[str, Any],
    label: jax.Array,
    keys: jax.Array,
    head: Head | None,
) -> jax.Array:
    """Generate all tokens `[B, N, C]` with the caches; arguments as for `Family.plain`."""
    images, host = model.images, model.host
    order = orders.draw(keys, images.grid, settings.order)
    rank = jnp.argsort(order, axis=-1)
    (steps,) = mar_plain.plans_of(model, settings, params, whole=True)
    lazy = plan(host, settings.accelerator, steps.now, steps.next, settings.guided)
    most = int(lazy.new.max())
    # Every number of kept rows is a program of its own. Rounding up to a few of them is safe: more
    # rows are made anew than asked for, never fewer.
    sizes = padded(lazy.kept[~lazy.full], _SIZES) if (~lazy.full).any() else np.array([lazy.rows])
    # Branch 0 is a full step, branch i + 1 keeps sizes[i] rows.
    kind = np.where(lazy.full, 0, 1 + np.searchsorted(sizes, np.minimum(lazy.kept, sizes[-1])))
    batch = label.shape[0]
    shape = (batch, images.num_tokens, images.token_dim)
    run = functools.partial(host.apply, {"params": params["host"]})
    slim = settings.accelerator == "condition_cache"

    def ar_step(state, step):
        tokens, memory = state
        known = rank >= step["now"]

        last, new = groups(order, step, most)

        def whole(memory):
            return run(memory, tokens, known, label, settings.guided, method=_full)

        def part(kept, memory):
            if slim:
                return run(memory, tokens, known, label, method=_conditional)
            return run(memory, tokens, known, label, last, new, kept, method=_new_rows)

        # A switch and no masks: a step pays for the rows of its own branch alone.
        calls = [whole, *(functools.partial(part, int(size)) for size in sizes)]
        out, entropy, memory = jax.lax.switch(step["kind"], calls, memory)
        # What the last block returns, of both branches: those without a condition lag behind.
        if settings.guided:
            out = jnp.concatenate([out, out + memory["difference"]])
            entropy = jnp.concatenate([entropy, entropy + memory["entropy_difference"]])
        z = run(out, method=features)
        # The entropy difference is that of an earlier step, so the sum may leave [0, 1].
        encoding = Encoding(z=z, entropy=jnp.clip(entropy, 0.0, 1.0))
        tokens = mar_plain.reveal(
            model,
            settings,
            steps,
            params,
            tokens,
            encoding,
            order,
            keys,
            step,
            head,
            features=lambda rows: take(z, rows),
        )
        return (tokens, memory), None

    columns = steps.columns() | {
        name: np.asarray(column, np.int32)
        for name, column in (("kind", kind), ("new", lazy.new), ("last", lazy.last))
    }
    start = jnp.zeros(shape, jnp.float32), _memory(host, batch)
    (tokens, _), _ = jax.lax.scan(ar_step, start, columns)
    return tokens


def groups(order: jax.Array, step: Mapping[str, jax.Array], most: int) -> list[jax.Array]:
    """Return positions `[B, most]` of the last and of the new group, N where there is none."""
    num_tokens = order.shape[1]

    def at(first, count):
        slots = first + jnp.arange(most)
        positions = jnp.take(order, jnp.minimum(slots, num_tokens - 1), axis=1)
        return jnp.where(slots[None] < first + count, positions, num_tokens)

    return [at(step["now"], step["last"]), at(step["next"], step["new"])]


def _memory(host: MAR, batch: int) -> dict[str, Any]:
    """Return what steps hand on, before the first: it is overwritten by a full step."""
    rows, width = host.buffer_size + host.num_tokens, host.width
    shape = (batch, rows, host.num_heads, width // host.num_heads)
    pairs = lambda depth: tuple((jnp.zeros(shape, host.dtype),) * 2 for _ in range(depth))  # noqa: E731
    return {
        "encoder": pairs(host.encoder_depth),
        "decoder": pairs(host.decoder_depth),
        "canvas": jnp.zeros((batch, rows, width), host.dtype),
        "difference": jnp.zeros((batch, rows, width), host.dtype),
        "entropy_difference": jnp.zeros((batch, host.num_tokens), jnp.float32),
    }


def encode(mar: MAR, tokens, known, label):
    """Run the encoder on all rows; its canvas and the keys and values of each block."""
    rows, key_mask = _rows(mar, tokens, known, label)
    pairs = []
    for block in mar.encoder_blocks:
        q, k, v = block.heads(rows)
        pairs.append((k, v))
        rows, _ = block.attend(rows, q, k, v, key_mask[:, None], content_start=None)
    return mar.canvas(mar.encoder_norm(rows), known), tuple(pairs)


def _rows(mar: MAR, tokens, known, label):
    """Return what enters the encoder, `[R, F + N, D]`, and which rows are keys."""
    buffer = jnp.where((label < 0)[:, None], mar.fake_latent, mar.class_emb[jnp.maximum(label, 0)])
    buffer = jnp.broadcast_to(buffer[:, None], (len(label), mar.buffer_size, mar.width))
    image = mar.z_proj(jnp.where(known[..., None], tokens, 0))
    rows = (
        jnp.concatenate([buffer.astype(image.dtype), image], axis=1) + mar.encoder_pos_embed[None]
    )
    rows = mar.z_proj_ln(rows).astype(mar.dtype)
    return rows, jnp.concatenate([jnp.ones(buffer.shape[:2], bool), known], axis=1)


def decode(mar: MAR, canvas):
    """Run the decoder on all rows: last block's output, entropy, keys and values."""
    pairs, entropy, x = [], None, canvas
    of_entropy = mar.loops["decoder_blocks"]
    for number, block in enumerate(mar.decoder_blocks):
        q, k, v = block.heads(x)
        pairs.append((k, v))
        start = mar.buffer_size if number == of_entropy else None
        x, rows = block.attend(x, q, k, v, content_start=start)
        entropy = rows[:, mar.buffer_size :] if number == of_entropy else entropy
    return x, entropy, tuple(pairs)


def _full(mar: MAR, memory, tokens, known, label, guided):
    """Run a full step: conditional output and entropy, and all that later steps want."""
    batch = len(label)
    if guided:
        tokens, known = jnp.concatenate([tokens] * 2), jnp.concatenate([known] * 2)
        label = jnp.concatenate([label, jnp.full_like(label, -1)])
    canvas, encoder = encode(mar, tokens, known, label)
    out, entropy, decoder = decode(mar, canvas)
    conditional = lambda tree: jax.tree.map(lambda a: a[:batch], tree)  # noqa: E731
    # Of the conditional branch alone: the other one runs in full steps only, where all is made
    # anew.
    memory = {
        "encoder": conditional(encoder),
        "decoder": conditional(decoder),
        "canvas": canvas[:batch],
        "difference": out[batch:] - out[:batch] if guided else memory["difference"],
        "entropy_difference": (
            entropy[batch:] - entropy[:batch] if guided else memory["entropy_difference"]
        ),
    }
    return out[:batch], entropy[:batch], memory


def _conditional(mar: MAR, memory, tokens, known, label):
    """Run all rows of the conditional branch; the memory stays."""
    canvas, _ = encode(mar, tokens, known, label)
    out, entropy, _ = decode(mar, canvas)
    return out, entropy, memory


def _new_rows(mar: MAR, memory, tokens, known, label, last, new, kept):
    """Run the new rows of the conditional branch.

    Args:
      mar: the backbone.
      memory: of the step before.
      tokens, known, label: as the backbone's.
      last, new: positions `[B, K]` revealed before and to be revealed now; N where there is none.
      kept: decoder rows behind the pruned block.
    """
    count, num = mar.buffer_size, mar.buffer_size + mar.num_tokens
    canvas, encoder = encode_new(mar, memory, tokens, known, label, last)
    x, decoder, entropy, rows, of_entropy = canvas, [], None, None, mar.loops["decoder_blocks"]
    for number, block in enumerate(mar.decoder_blocks):
        before_k, before_v = memory["decoder"][number]
        q, k, v = block.heads(x)
        if rows is not None:
            # Attention still looks at every row: those left out lend the keys and values that they
            # had.
            k, v = put(before_k, rows, k), put(before_v, rows, v)
        if number == pruned_at(mar) and kept < num:
            rows = _changed(v, before_v, count + last, count + new, kept)
            # Rows are independent behind their keys and values: those that go need not ask.
            x, q = at(x, rows), at(q, rows)
        decoder.append((k, v))
        start = count if number == of_entropy else None
        x, row_entropy = block.attend(x, q, k, v, content_start=start)
        if number == of_entropy:
            # Rows left out become 0, here and in the output below. The tokens that this step
            # reveals are never among them.
            entropy = (
                row_entropy if rows is None else put(jnp.zeros((len(x), num)), rows, row_entropy)
            )
            entropy = entropy[:, count:]
    if rows is not None:
        x = put(jnp.zeros_like(canvas), rows, x)
    return (
        x,
        entropy,
        memory
        | {
            "encoder": encoder,
            "decoder": tuple(decoder),
            "canvas": canvas,
        },
    )


def encode_new(mar: MAR, memory, tokens, known, label, last):
    """Run the encoder on the buffer and on what the last step revealed; canvas, keys and values."""
    all_rows, key_mask = _rows(mar, tokens, known, label)
    # The buffer and what the last step revealed: the encoder has seen all others.
    count, num = mar.buffer_size, mar.buffer_size + mar.num_tokens
    buffer = jnp.broadcast_to(jnp.arange(count), (len(label), count))
    fresh = jnp.concatenate([buffer, count + last], axis=1)
    x, encoder = at(all_rows, fresh), []
    for block, pair in zip(mar.encoder_blocks, memory["encoder"], strict=True):
        q, k, v = block.heads(x)
        # All other rows keep the keys and values of the step that last ran them.
        k, v = put(pair[0], fresh, k), put(pair[1], fresh, v)
        encoder.append((k, v))
        x, _ = block.attend(x, q, k, v, key_mask[:, None], content_start=None)
    x = mar.decoder_embed(mar.encoder_norm(x)) + mar.decoder_pos_embed[jnp.minimum(fresh, num - 1)]
    # Unknown places hold the mask token, which no context changes: the canvas of the step before is
    # right there, and in the known places it is what the encoder last said.
    canvas = put(memory["canvas"], fresh, x.astype(mar.dtype))
    return canvas, tuple(encoder)


def _changed(v, before, last, new, kept):
    """Return the rows `[B, kept]` whose values turned the most; those of both groups always."""
    v, before = v.astype(jnp.float32), before.astype(jnp.float32)
    along = jnp.sum(v * before, axis=-1)
    length = jnp.linalg.norm(v, axis=-1) * jnp.linalg.norm(before, axis=-1)
    # Each head is compared by itself: one with long values would else speak for all.
    alike = jnp.mean(along / jnp.maximum(length, 1e-8), axis=-1)
    wanted = jnp.concatenate([last, new], axis=1)
    # Below every cosine, so that the sort puts both groups first.
    alike = jax.vmap(lambda a, at: a.at[at].set(-2.0, mode="drop"))(alike, wanted)
    return jnp.argsort(alike, axis=-1)[:, :kept]


def at(values, rows):
    """Return `values [B, F + N, ...]` at `rows [B, M]`; a row beyond the last is the last."""
    # A place without a token reads some row here, and `_put` drops what came of it.
    return jax.vmap(lambda v, r: jnp.take(v, r, axis=0, mode="clip"))(values, rows)


def put(values, rows, new):
    """Return `values [B, F + N, ...]` with `new [B, M, ...]` in its rows; none beyond the last."""
    each = lambda v, r, n: v.at[r].set(n.astype(v.dtype), mode="drop")  # noqa: E731
    return jax.vmap(each)(values, rows, new)


def features(mar: MAR, out):
    """Return `z [R, N, D]` of the last block's output."""
    return mar.decoder_norm(out)[:, mar.buffer_size :] + mar.diffusion_pos_embed[None]
