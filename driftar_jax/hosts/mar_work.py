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
from driftar_jax.hosts.schedules import EVERYWHERE, checked_steps, unknown_counts


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


@dataclasses.dataclass(frozen=True)
class Pair:
    """Hold the cost of one image of two models; alone the draft's is None."""

    method: str
    target: Work
    draft: Work | None = None

    @property
    def flops(self) -> float:
        """Sum up the operations of both models."""
        return self.target.flops + (self.draft.flops if self.draft else 0.0)


# Drafted AR steps of a round that the paper's tables have.
ROUNDS = (4, 8, 16, 32)


def table(model: Model, settings: Any) -> list[Work]:
    """Count the loop without caches, and with each of them."""
    if settings.guidance_interval != EVERYWHERE:
        # No cache goes with it: it stands beside guidance in all steps alone.
        whole = of(model, dataclasses.replace(settings, guidance_interval=EVERYWHERE))
        name = f"none, guidance in {settings.guidance_interval}"
        return [whole, dataclasses.replace(of(model, settings), method=name)]
    return [of(model, dataclasses.replace(settings, accelerator=name)) for name in ACCELERATORS]


def pair(model: Model, settings: Any) -> list[Pair]:
    """Count the target alone; with the drafts of its draft model, by several lengths of a round;
    and alone in as many calls as the drafts leave it: the control of each.
    """
    alone = dataclasses.replace(settings, draft_steps=0)
    steps, total = settings.ar_steps, model.host.num_tokens
    nfe, guided = settings.nfe, settings.guided
    now, after = np.asarray(unknown_counts(total, steps)).T
    rows = [Pair(f"target alone, {steps} AR steps", of(model, alone))]
    for length in sorted({settings.draft_steps, *(n for n in ROUNDS if n < steps)}):
        first, ends = checked_steps(steps, length, settings.draft_prefill)
        ends = np.array(ends)
        # A check reveals what all drafts since the last one did.
        before = np.append(now[:first], now[np.append(first, ends[:-1] + 1)])
        left = np.append(after[:first], after[ends])
        target = _of(model, alone, before, left, [nfe] * len(before), guided)
        draft = _of(
            model.drafter, alone, now[first:], after[first:], [nfe] * (steps - first), guided
        )
        rows.append(Pair(f"{length} AR steps drafted", target, draft))
        few = dataclasses.replace(alone, ar_steps=len(before))
        rows.append(Pair(f"target alone, {len(before)} AR steps", of(model, few)))
    return rows


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
    now, after = np.asarray(unknown_counts(model.host.num_tokens, settings.ar_steps)).T
    begin, end = settings.guided_steps
    steps = np.arange(len(now))
    guided = settings.guided & (begin <= steps) & (steps < end)
    return _of(model, settings, now, after, settings.head_steps, guided)


def _of(model: Model, settings: Any, now: np.ndarray, after: np.ndarray, lengths, guided) -> Work:
    """Count calls that leave `after` of `now` unknown tokens, `lengths` head evaluations each, all
    of them or some `guided`.
    """
    guided = np.broadcast_to(guided, now.shape)
    host, name = model.host, settings.accelerator
    steps = mar_lazy.plan(host, name, now, after, guided)
    width, rows, buffer = host.width, steps.rows, host.buffer_size
    flops = passed = 0
    for t in range(len(now)):
        known, kept = buffer + host.num_tokens - int(now[t]), int(steps.kept[t])
        encoded, branches = int(steps.encoded[t]), int(steps.branches[t])
        at = mar_lazy.pruned_at(host) if kept < rows else host.decoder_depth
        if name == "recap" and kept < rows:
            # Few rows from the first block on: they alone pass and ask.
            step = host.encoder_depth * block(width, encoded, known, encoded)
            step += host.decoder_depth * block(width, kept, rows, kept)
            passed += branches * (host.encoder_depth * encoded + host.decoder_depth * kept)
            flops += branches * (step + 2 * encoded * width * (width + host.token_dim))
            continue
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
    head_flops, evaluations = _head(model, settings, steps.new, lengths, guided)
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


def _head(model: Model, settings: Any, new: np.ndarray, lengths, guided) -> tuple[int, int]:
    """Operations and evaluations of the head; of a one-step head the evaluations alone."""
    evaluations = sum(lengths)
    if settings.method != "own":
        return 0, evaluations
    head = model.head
    per_token = 2 * model.host.width * head.width
    flops = 0
    for count, length, branches in zip(new, lengths, 1 + guided, strict=True):
        fresh = length
        if settings.accelerator == "lazymar":
            numbers = np.arange(length)
            full = lazy.is_fresh(numbers, length)
            hot = ~full & (numbers > lazy.HOT * length)
            fresh, left = int(full.sum()), len(set(range(head.depth)) - set(lazy.LEFT_OUT))
            cheap = int((~full & ~hot).sum()) * head_row(head, 0, left)
            flops += int(count) * (cheap + int(hot.sum()) * head_row(head, left, 0))
        flops += int(count) * int(branches) * (fresh * head_row(head, head.depth, 0) + per_token)
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
