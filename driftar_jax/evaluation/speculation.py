"""What drafts save and what they cost in quality, held against doing without them.

Every row is measured on the same labels. The control of a row is the target alone with as many
backbone calls, in fewer and larger AR steps. If it saves as much, drafts get no credit for it.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from driftar_jax.evaluation import quality, speed
from driftar_jax.sampling import batches, draft_count
from driftar_jax.sampling.generator import Generator
from driftar_jax.sampling.settings import Settings

GAMMAS = (1, 2, 4)
# The seeds of a second plain set, which no row shares noise with.
_APART = 1000


@dataclasses.dataclass(frozen=True)
class Way:
    """One row: a name and how images are made."""

    name: str
    settings: Settings


def ways(
    loaded: Generator, deltas: dict[str, Sequence[float]], stop: float | None = None
) -> list[Way]:
    """Return the plain decoding first, then every rule with every number of drafts.

    Args:
      loaded: a Drift-AR checkpoint with its draft head.
      deltas: bounds to measure, of the rules that have one.
      stop: of `sampling.settings.Settings`; None: the checkpoint's own.
    """
    plain = loaded.settings(gamma=0, stop=stop)
    rows = [Way("plain", plain)]
    for rule, bounds in {"gaussian": (0.0,), **deltas}.items():
        for delta in bounds:
            for drafts in sorted({min(g, plain.ar_steps - 1) for g in GAMMAS}):
                name = rule if rule == "gaussian" else f"{rule} {delta:g}"
                rows.append(Way(name, plain.changed(gamma=drafts, rule=rule, delta=float(delta))))
    return rows


def energy_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the squared energy distance `2 E|a-b| - E|a-a'| - E|b-b'|` of samples `[n, d]`.

    Without bias: its mean is 0 where both come from one distribution, so that it may be negative.
    Row i of both was made for one label; such pairs are left out, or the labels that the two sets
    share would make them look closer than two draws.
    """

    def mean(x, y):
        square = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
        far = np.sqrt(np.maximum(square, 0.0))
        # Of two different sets as well: row i of both was made for one label.
        np.fill_diagonal(far, 0.0)
        return far.sum() / (len(x) * (len(x) - 1))

    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(2 * mean(a, b) - mean(a, a) - mean(b, b))


@dataclasses.dataclass
class Bench:
    """Measures ways on the checkpoints `runs`; every result is a plain record.

    Attributes:
      runs: Drift-AR checkpoints, one per training seed.
      real: the real set, with its networks.
      num: images per run and seed.
      seeds: sampling seeds.
      batch_sizes: images per call; quality is measured with the largest.
      tell: takes a line per row.
    """

    runs: Sequence[Generator]
    real: quality.RealSet
    num: int
    seeds: int
    batch_sizes: Sequence[int]
    tell: Callable[[str], None] = print

    def measure(self, table: Sequence[Way]) -> dict:
        """Measure all rows, their controls, what `auto` chose, and the floor.

        Args:
          table: of `ways`, checked with every run.

        Returns:
          `rows` and `controls` (by AR steps) as lists of records, `auto` per rule and batch size,
          `floor`: energy distances of two plain sets, one value per run and sampling seed.
        """
        shown = {"unit": "method", "disable": None, "leave": False}
        rows = [self._row(way) for way in tqdm(table, **shown)]
        plain = table[0].settings
        for row in rows:
            steps = max(1, round(row["backbone_calls"]))
            # Where a step makes one token, there is no other control than plain decoding.
            fits = self._possible(plain.changed(ar_steps=steps))
            row["control_ar_steps"] = steps if fits else plain.ar_steps
        wanted = {row["control_ar_steps"] for row in rows[1:]} - {plain.ar_steps}
        fewer = [Way("plain", plain.changed(ar_steps=steps)) for steps in sorted(wanted)]
        controls = {way.settings.ar_steps: self._row(way) for way in tqdm(fewer, **shown)}
        controls[plain.ar_steps] = rows[0]
        self._time([*table, *fewer], [*rows, *(controls[w.settings.ar_steps] for w in fewer)])
        return {
            "rows": rows,
            "controls": [controls[steps] for steps in sorted(controls)],
            "auto": self._auto(table),
            "floor": rows[0]["energy_distances"],
        }

    def _possible(self, settings: Settings) -> bool:
        try:
            settings.check(self.runs[0].model)
        except ValueError:
            return False
        return True

    # --- quality -------------------------------------------------------------------------------

    def _labels(self, seed: int) -> np.ndarray:
        # In the shares that the real set has, and the same for every row.
        return np.random.default_rng(seed).choice(self.real.labels, self.num)

    def _made(self, run: Generator, settings: Settings, seed: int, condition):
        """Images, counts and, where drafts were made, what became of them."""
        rest = {"batch_size": max(self.batch_sizes), "to_pixels": run.to_pixels}
        arguments = run.model, settings, run.params, condition, seed
        if settings.drafts:
            images, speculation = batches.sample_drafted(*arguments, **rest)
            return images, batches.drafted_counts(speculation), speculation
        return *batches.sample_images(*arguments, **rest), None

    @functools.cached_property
    def _second(self) -> list[np.ndarray]:
        """Features of plain images that share labels with the rows' images and no noise."""
        features = []
        for run in self.runs:
            plain = run.settings(gamma=0)
            for seed in range(self.seeds):
                condition = run.conditions(self._labels(seed), seed)
                images, _, _ = self._made(run, plain, _APART + seed, condition)
                features.append(self.real.network.read(images)[0])
        return features

    def _row(self, way: Way) -> dict:
        qualities, distances, counts, speculations = [], [], [], []
        for i, run in enumerate(self.runs):
            for seed in range(self.seeds):
                labels = self._labels(seed)
                condition = run.conditions(labels, seed)
                images, cost, drafted = self._made(run, way.settings, seed, condition)
                tally = self.real.tally(self.num)
                tally.add(images, labels)
                qualities.append(tally.quality())
                features = self.real.network.read(images)[0]
                # Plain images of other noise, for the plain row too: its own distance is the floor.
                distances.append(energy_distance(features, self._second[i * self.seeds + seed]))
                counts.append(dataclasses.asdict(cost))
                speculations += [] if drafted is None else [drafted]
        row = {
            "method": way.name,
            "gamma": way.settings.gamma,
            "ar_steps": way.settings.ar_steps,
            **{name: float(np.mean([c[name] for c in counts])) for name in counts[0]},
            **quality.summary(qualities),
            **_spread("energy_distance", distances),
            **_spread("backbone_calls", [c["backbone_calls"] for c in counts]),
            "energy_distances": distances,
        }
        if speculations:
            num = sum(len(f.backbone_calls) for f in speculations)
            row["speculation"] = batches.summary(batches.joined(speculations, num))
            each = [batches.summary(f) for f in speculations]
            for name in ("accepted_groups", "accepted_per_call"):
                row |= _spread(name, [e[name] for e in each])
        self.tell(line(row))
        return row

    # --- speed ---------------------------------------------------------------------------------

    def _time(self, table: Sequence[Way], records: Sequence[dict]) -> None:
        """Images per second of the first run, all ways by turns, added to their records."""
        run = self.runs[0]
        for size in self.batch_sizes:
            labels = run.conditions(np.resize(self._labels(0), size), 0)

            def call(way, labels=labels, size=size):
                arguments = run.model, way.settings, run.params, labels, 0
                make = batches.sample_drafted if way.settings.drafts else batches.sample_images
                return make(*arguments, batch_size=size, to_pixels=run.to_pixels)

            timed = speed.alternate([functools.partial(call, way) for way in table], size)
            for record, timing in zip(records, timed, strict=True):
                record.setdefault("speed", {})[str(size)] = {
                    "images_per_s": timing.median,
                    "low": timing.low,
                    "high": timing.high,
                    "ratio": timing.ratio,
                }

    def _auto(self, table: Sequence[Way]) -> list[dict]:
        """What `gamma=auto` chooses for each rule, at each batch size."""
        run, chosen = self.runs[0], []
        for name, settings in {way.name: way.settings for way in table[1:]}.items():
            for size in self.batch_sizes:
                condition = run.conditions(self._labels(0), 0)
                unknown = settings.changed(gamma=-1)
                choice = draft_count.choose(run.model, unknown, run.params, size, condition)
                gamma = choice.settings.gamma
                record = dataclasses.asdict(choice) | {"settings": None}
                chosen.append(record | {"method": name, "batch_size": size, "gamma": gamma})
                self.tell(f"{name}, batch {size}: auto takes gamma {gamma}")
        return chosen


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Mean over checkpoints and sampling seeds, and the standard deviation, 0 of a single one."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {name: float(np.mean(values)), f"{name}_std": std}


def line(row: dict) -> str:
    """Return one row for a reader."""
    return (
        f"{row['method']}, gamma {row['gamma']}, {row['ar_steps']} AR steps: "
        f"{row['backbone_calls']:.2f} backbone calls, {row['draft_calls']:.2f} draft calls, "
        f"distance {row['frechet']:.2f}, accuracy {row['accuracy']:.3f}, energy distance to plain "
        f"{row['energy_distance']:.4f}"
    )
