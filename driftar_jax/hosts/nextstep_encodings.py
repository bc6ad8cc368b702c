"""What NextStep-1 reads, and its encodings of known images.

A condition is a row of captions `[B, 1 + P]` (`data.captions`: the number of padded positions, then
the ids), or a `Prompt` that says what each branch of guidance reads.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from driftar_jax.data import captions
from driftar_jax.hosts.base import Model
from driftar_jax.hosts.nextstep import NextStep
from driftar_jax.types import Encoding, Prompt


def by_branch(
    model: Model, settings: Any, condition: Any
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Return what every branch of guidance reads, branch after branch.

    Args:
      model: modules.
      settings: how many branches there are.
      condition: rows of captions `[B, 1 + P]`, or a `Prompt`.

    Returns:
      `ids [m * B, P]` int32, `padding [m * B]` int32, and tokens of source images `[m * B, M, C]`
      or None.
    """
    if isinstance(condition, Prompt):
        # A prompt has its branches beside each other, `[B, m, 1 + P]`; the model wants branch after
        # branch.
        rows = jnp.moveaxis(condition.rows, 1, 0)
        rows = rows.reshape(-1, rows.shape[-1])
        sources = condition.sources
        if sources is not None:
            # Rows without placeholders never read theirs.
            sources = jnp.tile(sources, (settings.branches, 1, 1))
        return rows[:, 1:], rows[:, 0], sources
    rows = condition
    if settings.guided:
        nothing = jnp.asarray(captions.nothing(model.images.text))
        # The unconditional branch reads an empty caption, as it was trained with dropped ones.
        rows = jnp.concatenate([rows, jnp.broadcast_to(nothing, rows.shape)])
    return rows[:, 1:], rows[:, 0], None


def with_sources(
    held: jax.Array, sources: jax.Array | None, tokens: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Put source images before the images to be made, in the rows whose prompts hold one.

    Args:
      held: `[B]` bool, rows with the placeholders of a source image in their prompt.
      sources: `[B, M, C]`; None: there are none.
      tokens: `[B, N, C]` of the images to be made.

    Returns:
      Tokens in the order of a row's placeholders, `[B, M + N, C]`, and `[B]` int32, how many of
      them stand before the image. Rows without a source have theirs behind, where none is read.
    """
    if sources is None:
        return tokens, jnp.zeros(len(tokens), jnp.int32)
    before, behind = (
        jnp.concatenate(pair, axis=1) for pair in ((sources, tokens), (tokens, sources))
    )
    count = jnp.where(held, sources.shape[1], 0).astype(jnp.int32)
    return jnp.where(held[:, None, None], before, behind), count


def encodings(
    model: Model, params: Mapping[str, Any], ids, padding, tokens, sources=None
) -> Encoding:
    """Encode all tokens of known images in one call.

    Args:
      model, params: of a run.
      ids: `[B, P]` int32 prompts, `padding [B]`.
      tokens: `[B, N, C]`.
      sources: `[B, M, C]` tokens of source images at the placeholders of `ids`; None: none.

    Returns:
      `z [B, N, D]`, the hidden states before the tokens, and `E [B, N]`.
    """
    # The last token is in no context.
    held = jnp.full((ids.shape[0], tokens.shape[1] - 1), model.host.placeholder, ids.dtype)
    read, content = tokens[:, :-1], None
    if sources is not None:
        edited = (ids == model.host.placeholder).any(axis=1)
        read, _ = with_sources(edited, sources, read)
        # A source image is part of the prompt, whose keys do not count in the entropy.
        content = jnp.concatenate([jnp.zeros(ids.shape, bool), jnp.ones(held.shape, bool)], axis=1)
    encoding = model.host.apply(
        {"params": params["host"]},
        jnp.concatenate([ids, held], axis=1),
        read,
        padding=padding,
        content=content,
    )
    # From the begin-of-image mark on: its hidden state is the encoding of token 0.
    return jax.tree.map(lambda a: a[:, ids.shape[1] - 1 :], encoding)


def projected(host: NextStep, params: Any, encoding: Encoding) -> Encoding:
    """Return what head, prior and decoder read of an encoding; `params` are the host's."""
    z = host.apply({"params": params}, encoding.z, method="condition")
    return encoding.replace(z=z.astype(jnp.float32))
