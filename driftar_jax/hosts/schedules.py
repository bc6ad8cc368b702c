"""How MAR spends its AR steps: tokens, guidance and head steps, and the order inside a patch.

Source: `sample_tokens`, `patchify` of LTH14/mar at fe470ac. Host-side numbers, known before
anything is traced.
"""

import math

import numpy as np

from driftar_jax.config import wrong

# Last timestep of MAR's spacing `trimmed`.
TRIMMED_LAST = 950
NFE_SCHEDULES = ("constant", "two_stage", "linear", "cosine")
# Guidance in all AR steps.
EVERYWHERE = "0,1"
# By the order in which a host reveals tokens.
GUIDANCE_SCHEDULES = {
    "any": ("linear", "constant"),
    "grid": ("linear", "constant"),
    "raster": ("constant", "linear", "rising"),
}


def cosine_counts(num_tokens: int, ar_steps: int) -> tuple[int, ...]:
    """Return tokens that each AR step fixes under MAR's cosine schedule.

    Args:
      num_tokens: N.
      ar_steps: T, 1..N.

    Returns:
      T counts, each at least 1, with sum N.

    Raises:
      ValueError: `ar_steps` is outside 1..num_tokens.
    """
    return tuple(before - after for before, after in unknown_counts(num_tokens, ar_steps))


def guidance_at(
    scale: float, num_tokens: int, ar_steps: int, schedule: str = "linear"
) -> np.ndarray:
    """Return the guidance scale handed to the head at each AR step.

    `linear` follows the share of tokens known after the step. The official program leaves one
    token unknown in that count at the last step, so the nominal scale is never quite reached.

    Args:
      scale: s, nominal scale; 1 is no guidance.
      num_tokens: N.
      ar_steps: T, 1..N.
      schedule: "linear" or "constant".

    Returns:
      `[T]` float32.

    Raises:
      ValueError: unknown `schedule`, or `ar_steps` is outside 1..num_tokens.
    """
    steps = unknown_counts(num_tokens, ar_steps)
    if schedule == "constant":
        return np.full(ar_steps, scale, np.float32)
    if schedule != "linear":
        raise ValueError(f"schedule: got {schedule!r}, allowed 'linear' or 'constant'")
    left = np.array([max(after, 1) for _, after in steps], np.float64)
    return (1.0 + (scale - 1.0) * (num_tokens - left) / num_tokens).astype(np.float32)


def guided_steps(ar_steps: int, interval: str) -> tuple[int, int]:
    """Return the AR steps in which guidance acts: from the first number up to before the second.

    Args:
      ar_steps: T.
      interval: `a,b` with `0 <= a < b <= 1`; step k acts where `a <= k / T < b`.

    Raises:
      ValueError: `interval` is something else, or holds no step.

    Source: the idea is eMIGM's (arXiv 2503.07197), guidance in late steps alone.
    """
    try:
        begin, end = (float(part) for part in interval.split(","))
    except ValueError:
        begin, end = math.nan, math.nan
    if not 0 <= begin < end <= 1:
        raise wrong("guidance_interval", interval, "A,B with 0 <= A < B <= 1 (of the AR steps)")
    # A bound that is k / T up to rounding means step k.
    first, last = (math.ceil(bound * ar_steps - 1e-6) for bound in (begin, end))
    if first >= last:
        allowed = f"one that holds at least one of {ar_steps} AR steps"
        raise wrong("guidance_interval", interval, allowed)
    return first, last


def grid_guidance_at(scale: float, groups: int, schedule: str) -> tuple[float, ...]:
    """Return the scale of each image in a row: `constant`, or rising to s in equal steps."""
    if schedule == "constant":
        return (scale,) * groups
    return tuple(1.0 + (scale - 1.0) * (g + 1) / groups for g in range(groups))


def head_steps(first: int, last: int, ar_steps: int, schedule: str) -> tuple[int, ...]:
    """Return the head steps of each AR step: constant, or annealed as more tokens are known.

    Args:
      first: steps of the first AR step.
      last: steps of the last one; not read by `constant`.
      ar_steps: T, at least 1.
      schedule: `constant`; `two_stage` changes after half of the AR steps; `linear` and `cosine`
        (half a period) fall all the way.

    Returns:
      T counts.

    Raises:
      ValueError: an unknown `schedule`.

    Source: the idea and the names are DiSA's (arXiv 2505.20297); the formulas are ours.
    """
    # 0 at the first AR step and 1 at the last; a single step counts as the first.
    progress = np.arange(ar_steps) / max(ar_steps - 1, 1)
    if schedule == "constant":
        share = np.zeros(ar_steps)
    elif schedule == "two_stage":
        share = (np.arange(ar_steps) >= (ar_steps + 1) // 2).astype(float)
    elif schedule == "linear":
        share = progress
    elif schedule == "cosine":
        share = 0.5 - 0.5 * np.cos(np.pi * progress)
    else:
        raise ValueError(f"nfe_schedule: got {schedule!r}, allowed {' | '.join(NFE_SCHEDULES)}")
    return tuple(int(n) for n in np.rint(first + (last - first) * share))


def checked_steps(ar_steps: int, draft_steps: int, prefill: float) -> tuple[int, tuple[int, ...]]:
    """Return how two models share the AR steps in CSpD.

    Args:
      ar_steps: T.
      draft_steps: AR steps between two checks, at least 1.
      prefill: share of the AR steps that the target makes alone at first, 0 to below 1.

    Returns:
      How many steps the target makes alone, at least one; and the steps behind which it checks.

    Source: mar.md section 9.1 (CSpD, arXiv 2411.11925, as released).
    """
    first = min(math.floor(ar_steps * prefill) + 1, ar_steps)
    last = ar_steps - 1
    ends = tuple(k for k in range(first, ar_steps) if k % draft_steps == 0 or k == last)
    return first, ends


# Share of the head's evaluations that a cheap step of ReCAP takes, as released.
CHEAP_HEAD = 0.4


def full_steps(ar_steps: int) -> tuple[bool, ...]:
    """Return which AR steps ReCAP runs in full: the first half, then every other one.

    Source: `run_mar_recap.sh` of liebenxj/ReCAP at 4d1da38 (arXiv 2505.19089).
    """
    half = ar_steps // 2
    return tuple(k < half or (k - half) % 2 == 0 for k in range(ar_steps))


def unknown_counts(num_tokens: int, ar_steps: int) -> list[tuple[int, int]]:
    """Return the unknown tokens before and after each AR step; arguments as `cosine_counts`."""
    if not 1 <= ar_steps <= num_tokens:
        raise ValueError(f"ar_steps: got {ar_steps}, allowed 1..{num_tokens}")
    steps, before = [], num_tokens
    for k in range(ar_steps):
        after = math.floor(num_tokens * math.cos(math.pi / 2.0 * (k + 1) / ar_steps))
        # Each step reveals at least one token and leaves one for the steps to come: where the
        # cosine is flat and T near N, its rounded counts would repeat.
        after = max(1, min(before - 1, after)) if k + 1 < ar_steps else 0
        steps.append((before, after))
        before = after
    return steps
