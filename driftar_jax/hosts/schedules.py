"""How MAR spends its AR steps: tokens, guidance and head steps, and the order inside a patch.

Source: `sample_tokens`, `patchify` of LTH14/mar at fe470ac. Host-side numbers, known before
anything is traced.
"""

import math

import numpy as np

# Last timestep of MAR's spacing `trimmed`.
TRIMMED_LAST = 950
NFE_SCHEDULES = ("constant", "two_stage", "linear", "cosine")
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
