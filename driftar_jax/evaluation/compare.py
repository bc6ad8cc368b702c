"""Own head against Drift-AR: the same labels and seeds, one process, one table."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from driftar_jax import sampler
from driftar_jax.evaluation import quality, speed
from driftar_jax.generator import Loaded

FEW_STEPS = (1, 2, 5, 10)


@dataclasses.dataclass(frozen=True)
class Method:
    """One row: a checkpoint (index into `runs`) and how it is sampled."""

    name: str
    baseline: bool
    settings: sampler.Settings


@dataclasses.dataclass(frozen=True)
class Row:
    """One method measured; `frechet` and `accuracy` hold one value per seed."""

    method: str
    ar_steps: int
    nfe_per_step: int
    backbone_calls: int
    speed: dict[int, speed.Speed]
    frechet: tuple[float, ...]
    accuracy: tuple[float, ...]

    def as_json(self) -> dict:
        """Flat record of `report.json`; the speed is that of the largest batch."""
        largest = self.speed[max(self.speed)]
        return {
            "method": self.method,
            "ar_steps": self.ar_steps,
            "nfe_per_step": self.nfe_per_step,
            "backbone_calls": self.backbone_calls,
            "images_per_s": largest.median,
            "images_per_s_low": largest.low,
            "images_per_s_high": largest.high,
            "compile_s": largest.compile_s,
            "speed_ratio": largest.ratio,
            "speed_ratio_low": min(largest.ratios),
            "speed_ratio_high": max(largest.ratios),
            "by_batch_size": {
                str(size): {"images_per_s": s.median, "speed_ratio": s.ratio}
                for size, s in self.speed.items()
            },
            "frechet": float(np.mean(self.frechet)),
            "frechet_std": _std(self.frechet),
            "accuracy": float(np.mean(self.accuracy)),
            "accuracy_std": _std(self.accuracy),
            "seeds": len(self.frechet),
        }


def _std(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def methods(own: Loaded, drift: Loaded) -> list[Method]:
    """The reference (own head, default steps) first, then its fewer steps, then Drift-AR's rows."""
    base = own.settings()
    few = [n for n in FEW_STEPS if n < base.nfe]
    rows = [Method("own", True, base)]
    rows += [Method("own", True, own.settings(nfe=n)) for n in reversed(few)]
    rows += [
        Method("prior mean", False, drift.settings(method="mean")),
        Method("drift", False, drift.settings()),
    ]
    return rows


def measure(
    baselines: Sequence[Loaded],
    drifts: Sequence[Loaded],
    judge: quality.Judge,
    real: quality.Moments,
    real_labels: np.ndarray,
    *,
    num: int,
    sampling_seeds: int,
    batch_sizes: Sequence[int],
) -> list[Row]:
    """Quality over all checkpoint pairs and sampling seeds, speed of the first pair.

    Args:
      baselines, drifts: checkpoints, paired by training seed.
      judge: feature network.
      real: moments of the real features.
      real_labels: `[n]`; the samples' labels follow their shares.
      num: images per seed.
      sampling_seeds: seeds per pair.
      batch_sizes: for the speed.

    Returns:
      One row per method of `methods`.
    """
    table = methods(baselines[0], drifts[0])
    # Before the quality: afterwards everything is compiled, and its cost could not be told.
    first = baselines[0], drifts[0]
    timed = {size: _speeds(first, table, real_labels, size) for size in batch_sizes}
    frechet: list[list[float]] = [[] for _ in table]
    accuracy: list[list[float]] = [[] for _ in table]
    for pair in zip(baselines, drifts, strict=True):
        for seed in range(sampling_seeds):
            labels = np.random.default_rng(seed).choice(real_labels, num)
            for i, method in enumerate(table):
                made = _sample(pair, method, labels, seed, max(batch_sizes))
                judged = quality.measure(judge, real, made, labels)
                frechet[i].append(judged.frechet)
                accuracy[i].append(judged.accuracy)
    return [
        Row(
            method=method.name,
            ar_steps=method.settings.ar_steps,
            nfe_per_step=method.settings.evaluations,
            backbone_calls=method.settings.ar_steps,
            speed={size: speeds[i] for size, speeds in timed.items()},
            frechet=tuple(frechet[i]),
            accuracy=tuple(accuracy[i]),
        )
        for i, method in enumerate(table)
    ]


def _sample(pair, method: Method, labels, seed: int, batch_size: int) -> np.ndarray:
    loaded = pair[0] if method.baseline else pair[1]
    return sampler.sample_images(
        loaded.parts, method.settings, loaded.params, labels, seed, batch_size=batch_size
    )[0]


def _speeds(pair, table: Sequence[Method], labels: np.ndarray, size: int) -> list[speed.Speed]:
    chosen = np.resize(labels, size)
    calls = [lambda m=method: _sample(pair, m, chosen, 0, size) for method in table]
    return speed.alternate(calls, size)
