"""The static plan of the AR steps: what is known before tracing, so that shapes can follow it.

Arrays of a compiled program have one size, AR steps do not. So sizes are padded to a few, each of
which is compiled once and chosen at run time; the few are those that pad least.
"""

import dataclasses

import numpy as np

from driftar_jax.hosts.schedules import cosine_counts, guidance_at

# Most compiled sizes of the encoder and of the head. With few tokens a call costs less than the
# compilation of one more size, and the encoder simply masks what is unknown.
MANY_TOKENS = 128
MOST_KEEPS = 8
MOST_SIZES = 8
MOST_SIZES_OF_FEW = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """T AR steps; arrays are `[T]`.

    Attributes:
      num_tokens: N.
      now, next: tokens unknown before and after the step.
      scale: guidance.
      keeps: padded numbers of tokens the encoder runs on; `keep` is the step's index there.
      sizes: padded numbers of new tokens; `size` is the step's index.
      lengths: distinct numbers of head evaluations; `length` is the step's index.
    """

    num_tokens: int
    now: np.ndarray
    next: np.ndarray
    scale: np.ndarray
    keeps: tuple[int, ...]
    keep: np.ndarray
    sizes: tuple[int, ...]
    size: np.ndarray
    lengths: tuple[int, ...]
    length: np.ndarray

    @classmethod
    def of(cls, num_tokens: int, now, next, scale, head_steps) -> "Plan":
        """The plan of AR steps that leave `next [T]` of `now [T]` unknown tokens."""
        counts, known = now - next, num_tokens - now
        many = num_tokens >= MANY_TOKENS
        keeps = padded(known, MOST_KEEPS) if many else np.array([num_tokens])
        sizes = padded(counts, MOST_SIZES if many else MOST_SIZES_OF_FEW)
        lengths = np.unique(head_steps)
        return cls(
            num_tokens=num_tokens,
            now=now,
            next=next,
            scale=scale,
            keeps=tuple(int(k) for k in keeps),
            keep=np.searchsorted(keeps, known),
            sizes=tuple(int(s) for s in sizes),
            size=np.searchsorted(sizes, counts),
            lengths=tuple(int(n) for n in lengths),
            length=np.searchsorted(lengths, head_steps),
        )

    def first_apart(self) -> tuple["Plan", ...]:
        """The first AR step, which knows no token, and the rest, where that pays for a program."""
        alike = self.now[0] < self.num_tokens or len(self.now) == 1
        if alike or self.num_tokens < MANY_TOKENS:
            return (self,)
        steps = self.now, self.next, self.scale, np.take(self.lengths, self.length)
        return tuple(
            Plan.of(self.num_tokens, *(column[part] for column in steps))
            for part in (slice(0, 1), slice(1, None))
        )

    @property
    def empty(self) -> bool:
        """Whether no step knows a token."""
        return bool((self.now == self.num_tokens).all())

    def columns(self) -> dict[str, np.ndarray]:
        """What each step has to know, for a scan over the steps."""
        whole = ("now", "next", "keep", "size", "length")
        columns = {name: getattr(self, name).astype(np.int32) for name in whole}
        return columns | {"scale": self.scale.astype(np.float32)}


def make(
    num_tokens: int,
    ar_steps: int,
    *,
    guidance: float,
    guidance_schedule: str,
    head_steps: tuple[int, ...],
    unknown: int | None = None,
) -> Plan:
    """The plan of MAR's cosine schedule.

    Args:
      num_tokens: N.
      ar_steps: T, 1..N, or 1..unknown.
      guidance, guidance_schedule: as in `guidance_at`.
      head_steps: T head evaluations.
      unknown: tokens to generate, the others are there; None: all.
    """
    unknown = num_tokens if unknown is None else unknown
    counts = np.asarray(cosine_counts(unknown, ar_steps))
    after = unknown - np.cumsum(counts)
    scale = guidance_at(guidance, unknown, ar_steps, guidance_schedule)
    return Plan.of(num_tokens, after + counts, after, scale, head_steps)


def padded(values: np.ndarray, most: int) -> np.ndarray:
    """At most `most` sizes, ascending, that hold all `values` with the least padding in sum."""
    distinct, times = np.unique(values, return_counts=True)
    n = len(distinct)
    # cost[i, j]: padding of the values i..j when all of them take the size of j.
    total, filled = np.cumsum(np.append(0, times)), np.cumsum(np.append(0, times * distinct))
    i, j = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
    cost = (total[j + 1] - total[i]) * distinct[j] - (filled[j + 1] - filled[i])
    cost = np.where(i <= j, cost, np.iinfo(np.int64).max // 4)
    # best[j]: least padding of the values 0..j with the sizes used so far; first[..][j]: where the
    # last of these sizes begins to serve.
    best, first = cost[0], [np.zeros(n, int)]
    for _ in range(min(most, n) - 1):
        with_one_more = np.append(0, best[:-1])[:, None] + cost
        first.append(with_one_more.argmin(axis=0))
        best = with_one_more.min(axis=0)
    ends, end = [], n - 1
    for begin in reversed(first):
        if end < 0:
            break
        ends.append(end)
        end = begin[end] - 1
    return distinct[ends[::-1]]
