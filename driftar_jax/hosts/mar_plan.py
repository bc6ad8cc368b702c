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
# The same for a host whose blocks are one loop, as on chips, whose compilers take a minute a size.
# In 8 AR steps three sizes of the encoder cost 4 % more rows of the backbone than eight, and one
# size of a one-step head 12 rows a step, in one block of 24 and the head alone.
LOOP_KEEPS = 3
LOOP_SIZES = 1


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
      most: sizes of the encoder and of the head, at most; None: those of this file.
      guided: whether unconditional rows run.
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
    most: tuple[int, int] | None = None
    guided: bool = False

    @classmethod
    def of(cls, num_tokens: int, now, next, scale, head_steps, most=None, guided=False) -> "Plan":
        """Return the plan of AR steps that leave `next [T]` of `now [T]` unknown tokens."""
        counts, known = now - next, num_tokens - now
        many = num_tokens >= MANY_TOKENS
        # The encoder's cost follows the known tokens, which grow from none to nearly all: a size
        # for each step would save most and compile longest, so the steps share a few.
        most_keeps, most_sizes = most or (MOST_KEEPS, MOST_SIZES)
        keeps = padded(known, most_keeps) if many else np.array([num_tokens])
        sizes = padded(counts, most_sizes if many else min(most_sizes, MOST_SIZES_OF_FEW))
        # Head steps are not padded: an evaluation more is another distribution, not only lost time.
        lengths = np.unique(head_steps)
        return cls(
            num_tokens=num_tokens,
            now=now,
            next=next,
            scale=scale,
            keeps=tuple(int(k) for k in keeps),
            # The smallest padded size that holds the value; each value fits, since `padded` keeps
            # the largest.
            keep=np.searchsorted(keeps, known),
            sizes=tuple(int(s) for s in sizes),
            size=np.searchsorted(sizes, counts),
            lengths=tuple(int(n) for n in lengths),
            length=np.searchsorted(lengths, head_steps),
            most=most,
            guided=guided,
        )

    def first_apart(self) -> tuple["Plan", ...]:
        """Return the first AR step, which knows no token, and the rest, where that pays for a
        program.
        """
        # In the first step of a guided batch all unconditional rows are the same, and one row
        # stands for all. That saves half a backbone call but compiles a program more, so only large
        # grids get it.
        alike = self.now[0] < self.num_tokens or len(self.now) == 1
        if alike or self.num_tokens < MANY_TOKENS:
            return (self,)
        return self.part(0, 1, self.guided), self.part(1, len(self.now), self.guided)

    def part(self, begin: int, end: int, guided: bool) -> "Plan":
        """Return the AR steps from `begin` up to before `end`."""
        # The padded sizes are chosen anew for each part: each pads less alone.
        steps = self.now, self.next, self.scale, np.take(self.lengths, self.length)
        columns = (column[begin:end] for column in steps)
        return Plan.of(self.num_tokens, *columns, most=self.most, guided=guided)

    def guided_from(self, begin: int, end: int) -> tuple["Plan", ...]:
        """Return these steps in up to four parts, of which those in `begin..end-1` are guided."""
        bounds = (0, begin, end, len(self.now))
        # Guidance in all steps leaves the plan as it is: its programs have always been those.
        parts = [(a, b) for a, b in zip(bounds[:-1], bounds[1:], strict=True) if a < b]
        whole = len(parts) == 1
        plans = []
        for a, b in parts:
            guided = a == begin
            part = dataclasses.replace(self, guided=True) if whole else self.part(a, b, guided)
            plans += part.first_apart() if guided else (part,)
        return tuple(plans)

    @property
    def empty(self) -> bool:
        """Say whether no step knows a token."""
        return bool((self.now == self.num_tokens).all())

    def columns(self) -> dict[str, np.ndarray]:
        """Return what each step has to know, for a scan over the steps."""
        # int32, as everything on the device: NumPy's int64 would be cut down with a warning.
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
    most: tuple[int, int] | None = None,
) -> Plan:
    """Return the plan of MAR's cosine schedule.

    Args:
      num_tokens: N.
      ar_steps: T, 1..N, or 1..unknown.
      guidance, guidance_schedule: as in `guidance_at`.
      head_steps: T head evaluations.
      unknown: tokens to generate, the others are there; None: all.
      most: as in `Plan`.
    """
    unknown = num_tokens if unknown is None else unknown
    # With tokens given the schedule runs over the unknown ones alone, as if the grid were smaller:
    # by the whole grid's law the first steps would reveal tokens that are there.
    counts = np.asarray(cosine_counts(unknown, ar_steps))
    after = unknown - np.cumsum(counts)
    scale = guidance_at(guidance, unknown, ar_steps, guidance_schedule)
    return Plan.of(num_tokens, after + counts, after, scale, head_steps, most)


def padded(values: np.ndarray, most: int) -> np.ndarray:
    """Choose up to `most` sizes, ascending, that hold all `values` with the least padding."""
    distinct, times = np.unique(values, return_counts=True)
    n = len(distinct)
    # cost[i, j]: padding of the values i..j when all of them take the size of j.
    # Prefix sums give the padding of any range of values in one subtraction. Each value counts as
    # often as it occurs: what is minimised is the work of the whole walk.
    total, filled = np.cumsum(np.append(0, times)), np.cumsum(np.append(0, times * distinct))
    i, j = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
    cost = (total[j + 1] - total[i]) * distinct[j] - (filled[j + 1] - filled[i])
    # Empty ranges are forbidden by a cost that no sum of real ones reaches; a quarter of the
    # maximum leaves room to add to it below.
    cost = np.where(i <= j, cost, np.iinfo(np.int64).max // 4)
    # best[j]: least padding of the values 0..j with the sizes used so far; first[..][j]: where the
    # last of these sizes begins to serve.
    best, first = cost[0], [np.zeros(n, int)]
    for _ in range(min(most, n) - 1):
        # [i, j]: the last size serves i..j, the earlier ones 0..i-1 at their best; i = 0 leaves
        # nothing to them. The exact dynamic programme: T is at most some hundred values.
        with_one_more = np.append(0, best[:-1])[:, None] + cost
        first.append(with_one_more.argmin(axis=0))
        best = with_one_more.min(axis=0)
    # Walk back from the largest value: each size serves down to `begin`, where the one before ends.
    ends, end = [], n - 1
    for begin in reversed(first):
        if end < 0:
            break
        ends.append(end)
        end = begin[end] - 1
    return distinct[ends[::-1]]
