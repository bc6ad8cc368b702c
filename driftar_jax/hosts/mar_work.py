"""What an image of MAR costs, counted and not run: rows, calls and operations of every AR step.

Operations are those of the matrix products, two for each multiplication with its addition, of the
rows that a method asks for: without the padding that static shapes add.
"""

import dataclasses
from typing import Any

import numpy as np

from driftar_jax.heads import lazy
from driftar_jax.hosts import mar_lazy
from driftar_jax.hosts.base import Model
from driftar_jax.hosts.mar import ACCELERATORS
from driftar_jax.hosts.schedules import unknown_counts


@dataclasses.dataclass(frozen=True)
class Work:
    """Hold the cost of one image.

    Attributes:
      method: name.
      full_calls: backbone calls of all rows.
      cheap_calls: backbone calls that lean on a cache.
      backbone_rows: images and branches that pass a call, over all calls.
      token_rows: rows of tokens that pass a block and ask, over all blocks.
      head_evaluations: of the head, over all AR steps.
      backbone_flops, head_flops: operations.
    """

    method: str
    full_calls: int
    cheap_calls: int
    backbone_rows: int
    token_rows: int
    head_evaluations: int
    backbone_flops: float
    head_flops: float

    @property
    def flops(self) -> float:
        """Sum up the operations of backbone and head."""
        return self.backbone_flops + self.head_flops


def table(model: Model, settings: Any) -> list[Work]:
    """Count the loop without caches, and with each of them."""
    return [of(model, dataclasses.replace(settings, accelerator=name)) for name in ACCELERATORS]


def block(width: int, asking: int, keys: int, projected: int, passing: int | None = None) -> int:
    """Count the operations of a transformer block.

    Args:
      width: D; its MLP is four times as wide.
      asking: rows with queries.
      keys: rows that they look at.
      projected: rows of which queries, keys and values are made.
      passing: rows that pass the MLP; None: those that ask.
    """
    passing = asking if passing is None else passing
    attention = 3 * width * projected + 2 * keys * asking + width * asking
    return 2 * width * (attention + 8 * width * passing)


def of(model: Model, settings: Any) -> Work:
    """Count checked settings as MAR was published: every block runs all of its rows.

    Args:
      model: modules.
      settings: `sampling.settings.Settings`; their accelerator is counted.
    """
    host, name = model.host, settings.accelerator
    unknown = np.asarray(unknown_counts(host.num_tokens, settings.ar_steps))
    now, after = unknown[:, 0], unknown[:, 1]
    steps = mar_lazy.plan(host, name, now, after, settings.guided)
    width, rows, buffer = host.width, steps.rows, host.buffer_size
    flops = passed = 0
    for t in range(len(now)):
        known, kept = buffer + host.num_tokens - int(now[t]), int(steps.kept[t])
        encoded, branches = int(steps.encoded[t]), int(steps.branches[t])
        at = mar_lazy.pruned_at(host) if kept < rows else host.decoder_depth
        # Up to the pruned block all rows ask, behind it those that stay.
        step = host.encoder_depth * block(width, encoded, known, encoded)
        step += at * block(width, rows, rows, rows)
        passed += branches * (host.encoder_depth * encoded + at * rows)
        if at < host.decoder_depth:
            behind = host.decoder_depth - at - 1
            step += block(width, rows, rows, rows, kept) + behind * block(width, kept, rows, kept)
            passed += branches * (rows + behind * kept)
        # Two products of every encoded row: from its token, and on to the decoder.
        step += 2 * encoded * width * (width + host.token_dim)
        flops += branches * step
    head_flops, evaluations = _head(model, settings, steps.new)
    full = int(steps.full.sum())
    return Work(
        name,
        full,
        len(now) - full,
        int(steps.branches.sum()),
        passed,
        evaluations,
        float(flops),
        float(head_flops),
    )


def _head(model: Model, settings: Any, new: np.ndarray) -> tuple[int, int]:
    """Operations and evaluations of the head; of a one-step head the evaluations alone."""
    evaluations = sum(settings.head_steps)
    if settings.method != "own":
        return 0, evaluations
    head, branches = model.head, 1 + settings.guided
    per_token = 2 * model.host.width * head.width
    flops = 0
    for count, length in zip(new, settings.head_steps, strict=True):
        fresh = length
        if settings.accelerator == "lazymar":
            numbers = np.arange(length)
            full = lazy.is_fresh(numbers, length)
            hot = ~full & (numbers > lazy.HOT * length)
            fresh, left = int(full.sum()), len(set(range(head.depth)) - set(lazy.LEFT_OUT))
            cheap = int((~full & ~hot).sum()) * head_row(head, 0, left)
            flops += int(count) * (cheap + int(hot.sum()) * head_row(head, left, 0))
        flops += int(count) * branches * (fresh * head_row(head, head.depth, 0) + per_token)
    return flops, evaluations


def head_row(head: Any, blocks: int, modulated: int) -> int:
    """Count the operations of one row in one evaluation, but for the embedding of its time.

    Args:
      head: the own head.
      blocks: of it that run.
      modulated: blocks of which the modulation alone runs.
    """
    width, channels = head.width, head.token_dim
    return 6 * channels * width + 4 * width**2 + width**2 * (10 * blocks + 6 * modulated)
