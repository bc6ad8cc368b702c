"""What lookahead saves and what it leaves of plain decoding: calls, deviation, distance, time.

Every row is made with the noise of plain decoding, so that its tokens are held against those one by
one. Several checkpoints, such as arms of a training ablation, are rows of one table, each against
its own plain decoding.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from driftar_jax import seeds
from driftar_jax.data.pixels import patchify
from driftar_jax.evaluation import quality, speed
from driftar_jax.evaluation.speculation import energy_distance
from driftar_jax.heads import randomness
from driftar_jax.sampling import batches, plain
from driftar_jax.sampling.generator import Generator
from driftar_jax.sampling.settings import LOOKAHEAD_DELTA, Settings
from driftar_jax.types import Counts, Speculation

# The seeds of a second plain set, which no row shares noise with.
_APART = 1000
# How far a token is moved, as shares of the spread, and into how many bins of entropy the tokens
# behind it are sorted.
MOVES = (0.02, 0.2, 1.0)
QUARTERS = 4
# Every so manieth token of an image is moved, in a whole call of its own.
_STRIDE = 3
# Images whose tokens are moved.
_MOVED = 16


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Images of one way and seed: `tokens [n, N, C]`, uint8 `images`, and what they cost."""

    tokens: np.ndarray
    images: np.ndarray
    counts: Counts | Speculation


def ways(
    loaded: Generator,
    windows: Sequence[int],
    deltas: Sequence[float] = (0.0, LOOKAHEAD_DELTA),
    bounds: Sequence[str] = ("entropy",),
    gammas: Sequence[int] = (),
) -> dict[str, Settings]:
    """Return settings by name: plain decoding, then drafts, then every window, delta and bound.

    Args:
      loaded: a checkpoint whose host makes one token after another.
      windows: of `Settings.lookahead`.
      deltas: mean bounds; with 0 every kind of bound is the same, and there is one row.
      bounds: kinds of them.
      gammas: drafts per call, of the rule `gaussian`.
    """
    base = loaded.settings(gamma=0)
    rows = {"plain": base}
    for gamma in gammas:
        rows[f"drafts, gamma {gamma}"] = base.changed(gamma=gamma, rule="gaussian")
    for window in windows:
        for delta in deltas:
            for bound in bounds if delta else bounds[:1]:
                name = f"{delta:g}, {bound}" if delta else "0"
                settings = base.changed(lookahead=window, delta=float(delta), bound=bound)
                rows[f"lookahead {window}, {name}"] = settings
    return rows


def make(run: Generator, settings: Settings, condition, seed: int, batch_size: int) -> Outputs:
    """Generate the images of checked settings, with their tokens."""
    args = run.model, settings, run.params, condition, seed
    # What comes as pixels elsewhere stays a grid here.
    parts = list(batches.stream(*args, batch_size=batch_size, to_pixels=lambda grids: grids))
    grids = np.concatenate([part.images for part in parts])
    counts = [part.counts for part in parts]
    counts = batches.joined(counts, len(grids)) if settings.speculates else counts[0]
    tokens = np.asarray(patchify(grids, run.model.images.patch_size))
    return Outputs(tokens, np.asarray(run.to_pixels(grids)), counts)


def deviation(first: Outputs, other: Outputs) -> dict[str, np.ndarray]:
    """Measure how far tokens and pixels are from plain decoding of the same noise.

    Returns:
      `tokens [n, N]`, root mean square of the difference over the spread of all plain tokens; and
      `levels`, the differences of the pixels, in levels of 255.
    """
    off = np.sqrt(np.square(other.tokens - first.tokens).mean(axis=-1))
    levels = np.abs(other.images.astype(int) - first.images)
    return {"tokens": off / first.tokens.std(), "levels": levels}


def against_plain(
    run: Generator, window: int, condition, seed: int, batch_size: int
) -> dict[str, dict[str, float]]:
    """Measure one window against plain decoding of the same noise, without times.

    Args:
      run: a checkpoint whose host makes one token after another.
      window: of `Settings.lookahead`.
      condition: of n images, leaves `[n, ...]`.
      seed: of the images.
      batch_size: images per call.

    Returns:
      Calls, tokens per call, their ends and the deviation, with no movement allowed (`exact`) and
      with the default bound (`bounded`).

    Raises:
      ValueError: this checkpoint cannot look so far ahead.
    """
    plainly, exact, bounded = ways(run, (window,)).values()
    run.check(bounded)
    first = make(run, plainly, condition, seed, batch_size)
    records = {}
    for name, settings in (("exact", exact), ("bounded", bounded)):
        outputs = [make(run, settings, condition, seed, batch_size)]
        records[name] = _costs(settings, outputs) | _far([first], outputs)
    return records


@dataclasses.dataclass
class Bench:
    """Measures ways of checkpoints; every result is a plain record.

    Attributes:
      runs: checkpoints by name.
      real: the real set, with its networks.
      num: images per seed.
      seeds: sampling seeds.
      batch_sizes: images per call; quality is measured with the largest.
      rounds: timed calls of each way and batch size.
      tell: takes a line per row.
    """

    runs: Mapping[str, Generator]
    real: quality.RealSet
    num: int
    seeds: int
    batch_sizes: Sequence[int]
    rounds: int = speed.ROUNDS
    tell: Callable[[str], None] = print

    def measure(self, ranges: tuple) -> list[dict]:
        """Return records of all checkpoints; `ranges` is what `ways` takes beside one."""
        rows = []
        for name, run in self.runs.items():
            rows += self._of_run(name, run, ways(run, *ranges))
        return rows

    def contraction(self) -> dict[str, list[dict]]:
        """Return `contraction` of every checkpoint that has a one-step head."""
        records = {}
        for name, run in self.runs.items():
            settings = run.settings(gamma=0)
            if settings.method != "own":
                condition = run.conditions(self._labels(0)[:_MOVED], 0)
                records[name] = contraction(run, settings, condition, 0)
        return records

    def _of_run(self, name: str, run: Generator, table: Mapping[str, Settings]) -> list[dict]:
        size = max(self.batch_sizes)
        labels = [self._labels(seed) for seed in range(self.seeds)]
        conditions = [run.conditions(labels[seed], seed) for seed in range(self.seeds)]
        first_way = next(iter(table.values()))
        apart = [
            self.real.network.read(make(run, first_way, conditions[s], _APART + s, size).images)[0]
            for s in range(self.seeds)
        ]
        rows, first = [], []
        for way, settings in table.items():
            outputs = [make(run, settings, conditions[s], s, size) for s in range(self.seeds)]
            first = first or outputs
            row = {"run": name, "method": way, "lookahead": settings.lookahead}
            row |= {"gamma": settings.gamma, **_costs(settings, outputs)}
            if settings.lookahead:
                row |= {"delta": settings.delta, "bound": settings.bound} | _far(first, outputs)
            rows.append(row | self._quality(outputs, labels, apart))
            self.tell(line(rows[-1]))
        self._time(run, table, conditions[0], rows)
        return rows

    def _labels(self, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).choice(self.real.labels, self.num)

    def _quality(self, outputs: Sequence[Outputs], labels, apart) -> dict:
        scores, distances = [], []
        for one, seed_labels, other in zip(outputs, labels, apart, strict=True):
            tally = self.real.tally(self.num)
            tally.add(one.images, seed_labels)
            scores.append(tally.quality())
            distances.append(energy_distance(self.real.network.read(one.images)[0], other))
        std = float(np.std(distances, ddof=1)) if len(distances) > 1 else 0.0
        energy = {"energy_distance": float(np.mean(distances)), "energy_distance_std": std}
        return quality.summary(scores) | energy

    def _time(self, run: Generator, table, condition, rows: Sequence[dict]) -> None:
        """Seconds per image, all ways by turns, added to their records."""
        for size in self.batch_sizes:
            some = jax.tree.map(lambda a, n=size: np.asarray(a)[np.arange(n) % len(a)], condition)

            def call(settings, some=some, size=size):
                args = run.model, settings, run.params, some, 0
                rest = {"batch_size": size, "to_pixels": run.to_pixels}
                return list(batches.stream(*args, **rest))

            calls = [functools.partial(call, settings) for settings in table.values()]
            timed = speed.alternate(calls, size, rounds=self.rounds)
            for row, one in zip(rows, timed, strict=True):
                row.setdefault("time", {})[str(size)] = {
                    "seconds_per_image": 1 / one.median,
                    "ratio": one.ratio,
                    "ratio_low": min(one.ratios),
                    "ratio_high": max(one.ratios),
                }


def _costs(settings: Settings, outputs: Sequence[Outputs]) -> dict:
    """What an image costs: calls and tokens per call with their ends, rows, head evaluations."""
    tokens = settings.ar_steps
    if not settings.speculates:
        calls, evaluations = np.array([settings.ar_steps]), sum(settings.head_steps)
        rows, drafts = settings.ar_steps * settings.branches, 0
    else:
        counts = [one.counts for one in outputs]
        calls = np.concatenate([f.backbone_calls for f in counts])
        evaluations = float(np.mean([f.head_evaluations.mean() for f in counts]))
        rows = float(np.mean([f.batch_rows.mean() for f in counts]))
        drafts = float(np.mean([f.draft_calls.mean() for f in counts]))
    return {
        "backbone_calls": float(calls.mean()),
        "backbone_calls_low": int(calls.min()),
        "backbone_calls_high": int(calls.max()),
        "tokens_per_call": float(tokens / calls.mean()),
        "tokens_per_call_low": float(tokens / calls.max()),
        "tokens_per_call_high": float(tokens / calls.min()),
        "backbone_rows": rows,
        "head_evaluations": evaluations,
        "draft_calls": drafts,
    }


def _far(first: Sequence[Outputs], outputs: Sequence[Outputs]) -> dict:
    """Deviation from plain decoding, over all seeds together."""
    far = [deviation(one, other) for one, other in zip(first, outputs, strict=True)]
    tokens = np.concatenate([f["tokens"].ravel() for f in far])
    levels = np.concatenate([f["levels"].ravel() for f in far])
    return {
        "deviation": float(tokens.mean()),
        "deviation_99": float(np.quantile(tokens, 0.99)),
        "deviation_largest": float(tokens.max()),
        "pixels_differing": float((levels > 0).mean()),
        "pixel_levels": float(levels.mean()),
        "pixel_levels_largest": int(levels.max()),
    }


def line(row: dict) -> str:
    """Write one row for a reader."""
    far = f", deviation {row['deviation']:.4f}" if "deviation" in row else ""
    return (
        f"{row['run']}, {row['method']}: {row['backbone_calls']:.2f} backbone calls, "
        f"{row['tokens_per_call']:.2f} tokens per call{far}, distance {row['frechet']:.2f}, "
        f"energy distance to plain {row['energy_distance']:.4f}"
    )


def contraction(
    run: Generator, settings: Settings, condition, seed: int, moves: Sequence[float] = MOVES
) -> list[dict]:
    """Measure how far a moved token moves the next one, by the entropy of that one's context.

    Args:
      run: a Drift-AR checkpoint whose host makes one token after another.
      settings: plain ones, checked; without guidance.
      condition: of n images, leaves `[n, ...]`.
      seed: of the images, and of the directions in which tokens are moved.
      moves: how far, as shares of the spread of all tokens.

    Returns:
      A record for each move: mean `factor` (movement of the next token over that of the moved one),
      the share of next tokens that moved farther than it (`expanding`), the largest movement of any
      later token over it (`later`, mean), and `by_entropy`, from certain to uncertain.
    """
    tokens = make(run, settings, condition, seed, batches.size(condition)).tokens
    index = np.arange(len(tokens), dtype=np.int32)
    keys = randomness.image_keys(seeds.argument(seed), index)

    @jax.jit
    def again(params, condition, tokens):
        """All tokens made again, each of its own noise and of the tokens before it."""
        known = jnp.ones(tokens.shape[:2], bool)
        encoding = run.model.family.known_encoding(run.model, params, tokens, known, condition)
        head = plain.one_step_head(run.model, settings, params)
        mu, std = head.starts(encoding, randomness.prior_keys(keys))
        token_keys = randomness.token_keys(keys, tokens.shape[1])
        eps = randomness.normal(token_keys, 0, tokens.shape[2])
        return head.tokens(encoding, mu, std, eps, jnp.float32(1)), encoding.entropy

    base, entropy = jax.tree.map(np.asarray, again(run.params, condition, tokens))
    rng, spread, records = np.random.default_rng(seed), tokens.std(), []
    for move in moves:
        factors, later, certain = [], [], []
        for j in range(0, tokens.shape[1] - 1, _STRIDE):
            direction = rng.normal(size=(len(tokens), tokens.shape[2])).astype(np.float32)
            direction /= np.sqrt(np.square(direction).mean(axis=-1, keepdims=True))
            moved = tokens.copy()
            moved[:, j] += move * spread * direction
            tokens = np.asarray(again(run.params, condition, moved)[0])
            far = np.sqrt(np.square(tokens - base).mean(axis=-1)) / (move * spread)
            factors.append(far[:, j + 1])
            later.append(far[:, j + 1 :].max(axis=1))
            certain.append(entropy[:, j + 1])
        factors, later, certain = map(np.concatenate, (factors, later, certain))
        by_entropy = [
            {"from": float(certain[part].min()), "to": float(certain[part].max())}
            | {"factor": float(factors[part].mean()), "tokens": len(part)}
            for part in np.array_split(np.argsort(certain, kind="stable"), QUARTERS)
        ]
        means = {"factor": float(factors.mean()), "later": float(later.mean())}
        means["expanding"] = float((factors > 1).mean())
        records.append({"move": move} | means | {"by_entropy": by_entropy})
    return records
