"""One evaluation against many, in the same contexts: where and by how much draws differ.

Both runs read the same tokens with their own backbones, so that what differs is head and backbone
together. Two halves of the own head's draws are the floor; the same head trained again, from
another seed, is what two trainings differ by; fewer steps and the prior's mean are the scale.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from driftar_jax.data import pictures
from driftar_jax.sampling import contexts
from driftar_jax.sampling.generator import Generator

FEW_STEPS = (10, 5, 2)
BINS = 4
# Noise of draws that are compared with others must not be shared with them.
_OWN, _OTHER = 0, 1


@dataclasses.dataclass(frozen=True)
class Deviation:
    """Per token asked for, `[n, M]` each.

    Attributes:
      energy: squared energy distance of the draws to the own head's, in token units; without bias,
        so that it may be negative.
      shift: distance of the means over the own head's spread.
      spread: spread of the draws over that of the own head's; spread is the root of the summed
        variances of the channels.
      score: energy score of the draws against the real token.
    """

    energy: np.ndarray
    shift: np.ndarray
    spread: np.ndarray
    score: np.ndarray

    def means(self, chosen: np.ndarray | None = None) -> dict[str, float]:
        """Return the mean of every field, over the tokens `chosen [n, M]` bool."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {
            k: float(v[chosen].mean() if chosen is not None else v.mean())
            for k, v in fields.items()
        }


def compare(own: np.ndarray, other: np.ndarray, real: np.ndarray) -> Deviation:
    """Say how draws `other [n, M, G, C]` differ from `own [n, M, H, C]`; `real [n, M, C]`.

    Raises:
      ValueError: fewer than two draws of either.
    """
    for name, draws in (("own", own), ("other", other)):
        if draws.shape[2] < 2:
            raise ValueError(f"draws: got {draws.shape[2]} of {name}, allowed at least 2")
    shape = real.shape[:2]
    fields = {f.name: np.empty(shape) for f in dataclasses.fields(Deviation)}
    for at in np.ndindex(shape):
        # float64: a small distance is the difference of means that are nearly equal.
        a, b, y = (v[at].astype(np.float64) for v in (own, other, real))
        within = _mean_distance(b, b)
        # Distances within a set leave out pairs of a draw with itself, which makes the estimate
        # unbiased.
        fields["energy"][at] = 2 * _mean_distance(a, b) - _mean_distance(a, a) - within
        spread = _spread(a)
        fields["shift"][at] = np.linalg.norm(a.mean(0) - b.mean(0)) / spread
        fields["spread"][at] = _spread(b) / spread
        fields["score"][at] = np.linalg.norm(b - y, axis=1).mean() - within / 2
    return Deviation(**fields)


def _mean_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean distance of the rows of `a` and `b`; of different rows where they are one array."""
    square = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    # Rounding leaves squares just below 0 where two draws are the same.
    far = np.sqrt(np.maximum(square, 0.0))
    if a is b:
        np.fill_diagonal(far, 0.0)
        return far.sum() / (len(a) * (len(a) - 1))
    return far.mean()


def _spread(draws: np.ndarray) -> float:
    return float(np.sqrt(draws.var(axis=0, ddof=1).sum()))


def measure(
    own: Generator,
    drift: Generator,
    cases: contexts.Contexts,
    count: int,
    again: Generator | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure everything of one pair of runs, as plain data.

    Args:
      own: a run of task `host`; `drift`: one of task `drift`, of the same images.
      cases: contexts.
      count: draws per token and way, an even number of at least 4.
      again: the own head of another training seed.
      say: takes a line per way.

    Returns:
      `ways`: means by way (`floor`, `drift`, `own, trained again`, `prior mean`,
      `own, K steps`); `by_entropy`: of
      `drift` and `floor` in quarters of the entropy's rank; `map`: `energy`, `floor`, `spread` and
      `tokens` by grid position, None where no token was asked for.
    """
    nfe = own.settings().nfe
    reference = contexts.draw(own, cases, count, _OWN).x
    half = count // 2
    ways = {"drift": (drift, count, {}), "prior mean": (drift, 2, {"method": "mean"})}
    if again is not None:
        ways["own, trained again"] = (again, count, {})
    # What the own head itself loses with fewer steps: the scale on which one step is read.
    for steps in FEW_STEPS:
        if 2 * steps <= nfe:
            few = {"nfe": steps, "nfe_schedule": "constant"}
            ways[f"own, {steps} steps"] = (own, count, few)
    shown = tqdm(ways.items(), unit="way", disable=None, leave=False)
    drawn = {
        name: contexts.draw(by, cases, number, _OTHER, **changes)
        for name, (by, number, changes) in shown
    }
    real = cases.targets
    # Two halves of the same draws: what is left of a distance where nothing differs.
    deviations = {"floor": compare(reference[:, :, :half], reference[:, :, half:], real)}
    deviations |= {name: compare(reference, draws.x, real) for name, draws in drawn.items()}
    for name, of in deviations.items():
        words = ", ".join(f"{key} {value:.4f}" for key, value in of.means().items())
        say(f"{name}: {words}")
    return {
        "own_steps": nfe,
        "ways": {name: of.means() for name, of in deviations.items()},
        "by_entropy": _by_entropy(deviations, drawn["drift"].entropy),
        "map": _map(deviations, cases.positions, own.model.images.grid),
    }


def _by_entropy(deviations: dict[str, Deviation], entropy: np.ndarray) -> list[dict[str, Any]]:
    # Quarters by rank hold equally many tokens, however the entropies are spread.
    rank = np.argsort(np.argsort(entropy, axis=None)).reshape(entropy.shape)
    rows = []
    for number in range(BINS):
        chosen = rank * BINS // entropy.size == number
        rows.append(
            {
                "from": float(entropy[chosen].min()),
                "to": float(entropy[chosen].max()),
                "tokens": int(chosen.sum()),
                **{name: deviations[name].means(chosen) for name in ("drift", "floor")},
            }
        )
    return rows


def _map(deviations: dict[str, Deviation], positions: np.ndarray, grid: tuple[int, int]) -> dict:
    """Means by grid position, as nested lists."""
    columns = {
        "energy": deviations["drift"].energy,
        "floor": deviations["floor"].energy,
        "spread": deviations["drift"].spread,
    }
    count = np.bincount(positions.ravel(), minlength=grid[0] * grid[1])
    maps = {"tokens": count.reshape(grid).tolist()}
    for name, values in columns.items():
        total = np.bincount(positions.ravel(), weights=values.ravel(), minlength=len(count))
        means = [t / n if n else None for t, n in zip(total, count, strict=True)]
        maps[name] = np.array(means, object).reshape(grid).tolist()
    return maps


def picture(path: pathlib.Path, pairs: Sequence[dict[str, Any]]) -> None:
    """Draw distance and spread over the grid, and the distance by entropy; means of pairs."""
    plt = pictures.pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4))
    for axis, (key, title) in zip(
        axes, (("energy", "energy distance"), ("spread", "spread / own spread")), strict=False
    ):
        grids = np.array([pair["map"][key] for pair in pairs], float)
        heat = axis.imshow(np.nanmean(grids, axis=0), cmap="magma")
        axis.set_title(title)
        figure.colorbar(heat, ax=axis)
    for name in ("drift", "floor"):
        rows = [pair["by_entropy"] for pair in pairs]
        x = np.mean([[(r["from"] + r["to"]) / 2 for r in of] for of in rows], axis=0)
        y = np.mean([[r[name]["energy"] for r in of] for of in rows], axis=0)
        axes[2].plot(x, y, marker="o", label=name)
    axes[2].set(title="energy distance by entropy", xlabel="entropy E")
    axes[2].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
