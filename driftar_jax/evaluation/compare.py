"""Own head against Drift-AR: the same labels and seeds, one process, one table."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from tqdm import tqdm

from driftar_jax.evaluation import quality, speed
from driftar_jax.hosts.schedules import NFE_SCHEDULES
from driftar_jax.sampling import batches, plain, two_models
from driftar_jax.sampling.generator import Generator
from driftar_jax.sampling.settings import Settings
from driftar_jax.storage import compiled
from driftar_jax.types import Counts

FEW_STEPS = (1, 2, 5, 10, 25)
PART_BYTES = 2**28
MOST_IMAGES = 8192
# What others speed the loop up by, as settings of the sampler (docs/rivals.md).
RIVALS = {
    "accelerator": ("condition_cache", "token_cache", "lazymar", "recap"),
    "order": ("halton", "far", "chessboard"),
}


@dataclasses.dataclass(frozen=True)
class Method:
    """One row: which of a seed's checkpoints, and how it is sampled.

    Attributes:
      name: of the row.
      baseline: whether it is the own head's, with a draft model where `settings` have draft steps.
      settings: checked.
      rival: whether it is what others speed the loop up by.
    """

    name: str
    baseline: bool
    settings: Settings
    rival: bool = False


@dataclasses.dataclass(frozen=True)
class Runs:
    """The checkpoints of a training seed.

    Attributes:
      own: with the host's own head.
      drift: with the one-step head.
      drafted: `own` with another model that drafts for it (CSpD); None: there is none.
    """

    own: Generator
    drift: Generator
    drafted: Generator | None = None

    def of(self, method: Method) -> Generator:
        """Return the one that a row samples."""
        if method.settings.draft_steps:
            return self.drafted
        return self.own if method.baseline else self.drift


@dataclasses.dataclass(frozen=True)
class Row:
    """One method measured; `quality` holds one entry per seed."""

    method: str
    ar_steps: int
    nfe_per_step: int
    cost: Counts
    rival: bool
    speed: dict[int, speed.Speed]
    quality: tuple[quality.Quality, ...]

    def as_json(self) -> dict:
        """Return the flat record of `report.json`; the speed is that of the largest batch."""
        largest = self.speed[max(self.speed)]
        return {
            "method": self.method,
            "ar_steps": self.ar_steps,
            "nfe_per_step": self.nfe_per_step,
            "rival": self.rival,
            **dataclasses.asdict(self.cost),
            "images_per_s": largest.median,
            "images_per_s_low": largest.low,
            "images_per_s_high": largest.high,
            "compile_s": largest.compile_s,
            "speed_ratio": largest.ratio,
            "speed_ratio_low": min(largest.ratios),
            "speed_ratio_high": max(largest.ratios),
            "by_batch_size": {
                str(size): {
                    "images_per_s": s.median,
                    "speed_ratio": s.ratio,
                    "speed_ratio_low": min(s.ratios),
                    "speed_ratio_high": max(s.ratios),
                }
                for size, s in self.speed.items()
            },
            **quality.summary(self.quality),
            "seeds": len(self.quality),
        }


@dataclasses.dataclass(frozen=True)
class Extras:
    """Which rows a table has beside the own head with its and with fewer steps, and Drift-AR.

    Attributes:
      controls: the own head with head steps that fall over the AR steps (as DiSA), and both with
        half and a quarter of the AR steps, where the host can do so.
      guidance: further scales, each for every way to reach it.
      lookahead: window of further rows, both heads looking ahead; 0: none.
      delta: their bound; None: the default.
      ar_steps: further numbers of AR steps, each for both heads, where the host can do so.
      rivals: caches and orders of others (`RIVALS`) under both heads, with the largest of the
        scales; of hosts of any order. And the own head with a draft model, where there is one.
    """

    controls: bool = False
    guidance: tuple[float, ...] = ()
    lookahead: int = 0
    delta: float | None = None
    ar_steps: tuple[int, ...] = ()
    rivals: bool = False


def methods(runs: Runs, extras: Extras = Extras()) -> list[Method]:
    """List the reference (own head, default steps) first, then its fewer steps, then Drift-AR's
    rows.
    """
    own, drift = runs.own, runs.drift
    base = own.settings()
    # A flow head needs two steps at least.
    few = [n for n in FEW_STEPS if 2 * n <= base.nfe and _possible(own, nfe=n)]
    rows = [Method("own", True, base)]
    rows += [Method("own", True, own.settings(nfe=n)) for n in reversed(few)]
    if extras.controls:
        last = max(1, base.nfe // 10)
        rows += [
            Method(f"own, {name} to {last}", True, own.settings(nfe_schedule=name, nfe_last=last))
            for name in NFE_SCHEDULES
            if name != "constant" and _possible(own, nfe_schedule=name, nfe_last=last)
        ]
        rows += [
            Method(f"own, {n} AR steps", True, own.settings(ar_steps=n))
            for n in _fewer(base.ar_steps)
            if _possible(own, ar_steps=n)
        ]
    rows += [
        Method("prior mean", False, drift.settings(method="mean")),
        Method("drift", False, drift.settings()),
    ]
    if extras.controls:
        steps = [n for n in _fewer(drift.settings().ar_steps) if _possible(drift, ar_steps=n)]
        rows += [Method(f"drift, {n} AR steps", False, drift.settings(ar_steps=n)) for n in steps]
    for name, generator in (("own", own), ("drift", drift)):
        base_steps = generator.settings().ar_steps
        rows += [
            Method(f"{name}, {n} AR steps", generator is own, generator.settings(ar_steps=n))
            for n in extras.ar_steps
            if n != base_steps and not (extras.controls and n in _fewer(base_steps))
        ]
    learned = drift.settings().guidance_form == "trained"
    for scale in extras.guidance:
        rows.append(Method(f"own, guidance {scale:g}", True, own.settings(guidance=scale)))
        for form in ("extrapolate", "trained") if learned else ("extrapolate",):
            settings = drift.settings(guidance=scale, guidance_form=form)
            rows.append(Method(f"drift, guidance {scale:g} {form}", False, settings))
    if extras.lookahead:
        for name, generator in (("own", own), ("drift", drift)):
            settings = generator.settings(lookahead=extras.lookahead, delta=extras.delta)
            ahead = f"{name}, lookahead {settings.lookahead} ({settings.delta:g})"
            rows.append(Method(ahead, generator is own, settings))
    return rows + (_rivals(runs, max((1.0, *extras.guidance))) if extras.rivals else [])


def _rivals(runs: Runs, scale: float) -> list[Method]:
    """Return a row for each cache and order, under either head, and those of a draft model."""
    rows, own = [], runs.own
    guided = f", guidance {scale:g}" if scale != 1 else ""
    for name, generator in (("own", own), ("drift", runs.drift)):
        for setting, values in RIVALS.items():
            for value in values:
                changes = {setting: value, "guidance": scale}
                if _possible(generator, **changes):
                    extrapolated = {} if name == "own" else {"guidance_form": "extrapolate"}
                    settings = generator.settings(**changes, **extrapolated)
                    words = f"{name}, {value}{guided}"
                    rows.append(Method(words, generator is own, settings, rival=True))
    if runs.drafted is not None:
        settings = runs.drafted.settings(guidance=scale)
        words = f"own, {settings.draft_steps} AR steps drafted{guided}"
        rows.append(Method(words, True, settings, rival=True))
        # What the target does alone in as many calls: its control.
        calls = two_models.counts(settings).backbone_calls
        alone = own.settings(guidance=scale, ar_steps=calls)
        rows.append(Method(f"own, {calls} AR steps{guided}", True, alone, rival=True))
    return rows


def _possible(generator: Generator, **changes) -> bool:
    try:
        return generator.can(generator.settings(**changes))
    except ValueError:
        return False


def _fewer(ar_steps: int) -> list[int]:
    return sorted({max(1, ar_steps // 2), max(1, ar_steps // 4)} - {ar_steps}, reverse=True)


def measure(
    runs: Sequence[Runs],
    real: quality.RealSet,
    *,
    num: int,
    sampling_seeds: int,
    batch_sizes: Sequence[int],
    extras: Extras = Extras(),
    say: Callable[[str], None] = print,
) -> list[Row]:
    """Measure quality over all training and sampling seeds, and the speed of the first one's runs.

    Args:
      runs: checkpoints of each training seed.
      real: what samples are held against; their labels follow its shares of the classes, and are
        the same for all methods.
      num: images per seed.
      sampling_seeds: seeds per training seed.
      batch_sizes: for the speed.
      extras: further rows.
      say: takes a line for every method and seed, when it is measured.

    Returns:
      One row per method of `methods`.
    """
    first = runs[0]
    table = methods(first, extras)
    # Before the quality: afterwards everything is compiled, and its cost could not be told.
    say(f"compiling and timing {len(table)} methods, {batch_sizes} images a call")
    with real.ledger("speed"):
        timed = {size: _speeds(first, table, real.labels, size) for size in batch_sizes}
        cost = [costs(first.of(m), m.settings, real.labels, max(batch_sizes)) for m in table]
    qualities: list[list[quality.Quality]] = [[] for _ in table]
    asked_for = [
        (trained, seed, i)
        for trained in runs
        for seed in range(sampling_seeds)
        for i in range(len(table))
    ]
    with tqdm(total=num * len(asked_for), unit="image", disable=None, leave=False) as bar:
        for trained, seed, i in asked_for:
            # The same for every method: the rows of a seed differ by the method alone.
            labels = np.random.default_rng(seed).choice(real.labels, num)
            method = table[i]
            how = method.settings, real, labels, seed, max(batch_sizes)
            result = judge(trained.of(method), *how, bar.update)
            say(
                f"{method.name}, {method.settings.evaluations:g} NFE per step, seed {seed}: "
                f"fd_{real.network.name} {result.frechet:.2f}, accuracy {result.accuracy:.3f}"
            )
            qualities[i].append(result)
    return [
        Row(
            method=method.name,
            ar_steps=method.settings.ar_steps,
            nfe_per_step=method.settings.evaluations,
            cost=cost[i],
            rival=method.rival,
            speed={size: speeds[i] for size, speeds in timed.items()},
            quality=tuple(qualities[i]),
        )
        for i, method in enumerate(table)
    ]


def judge(
    loaded: Generator,
    settings: Settings,
    real: quality.RealSet,
    labels: np.ndarray,
    seed: int,
    batch_size: int,
    done: Callable[[int], object] = lambda number: None,
) -> quality.Quality:
    """Sample and measure part by part, so that the images of all labels are never there at once.

    `done` takes the number of images of every part.
    """
    tally = real.tally(len(labels))
    part = part_size(real.images.shape[1:])
    for number, first in enumerate(range(0, len(labels), part)):
        # In parts of a size that the image decides: images, and so figures, do not depend on the
        # batch size.
        chosen = labels[first : first + part]
        with real.ledger("sampling"):
            images = sample(loaded, settings, chosen, part_seed(seed, number), batch_size)
        tally.add(images, chosen)
        done(len(chosen))
    return tally.quality()


def part_size(image_shape: tuple[int, ...]) -> int:
    """Say how many images are sampled at a time: a power of two, for batches divide it;
    `PART_BYTES` at most.

    A function of the image alone: the batch size must not change which images are made.
    """
    fit = max(PART_BYTES // int(np.prod(image_shape)), 1)
    return min(MOST_IMAGES, 1 << (fit.bit_length() - 1))


def part_seed(seed: int, number: int) -> int:
    """Return the seed of a part; the first has the seed itself."""
    if number == 0:
        return seed
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0]) % 2**31


def sample(loaded: Generator, settings: Settings, labels, seed: int, batch_size: int) -> np.ndarray:
    """Sample uint8 images `[n, H, W, C]` for classes `labels [n]`."""
    return batches.sample_images(
        loaded.model,
        settings,
        loaded.params,
        loaded.conditions(labels, seed, settings),
        seed,
        batch_size=batch_size,
        to_pixels=loaded.to_pixels,
    )[0]


def costs(loaded: Generator, settings: Settings, labels: np.ndarray, size: int) -> Counts:
    """Say what an image costs: known beforehand, or the mean of a batch where images differ."""
    if settings.draft_steps:
        return two_models.counts(settings)
    if not settings.speculates:
        return jax.tree.map(int, plain.counts(loaded.model, settings))
    condition = loaded.conditions(np.resize(labels, size), 0, settings)
    rest = {"batch_size": size, "to_pixels": loaded.to_pixels}
    return batches.sample_images(loaded.model, settings, loaded.params, condition, 0, **rest)[1]


def _speeds(runs: Runs, table: Sequence[Method], labels, size: int) -> list[speed.Speed]:
    chosen = np.resize(labels, size)
    calls = [lambda m=m: sample(runs.of(m), m.settings, chosen, 0, size) for m in table]
    # The seconds of the compiler stand in the table: nothing kept may shorten them.
    with compiled.afresh():
        return speed.alternate(calls, size)
