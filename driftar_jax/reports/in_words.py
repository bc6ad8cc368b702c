"""What the numbers of an evaluation mean, in sentences, for a first reader."""

from collections.abc import Sequence

# Rank correlations below this say nothing, above `_CLEAR` a lot.
_FAINT, _CLEAR = 0.1, 0.4


def lines(
    records: Sequence[dict], floor: float, network: str, real: dict, correlations: dict
) -> list[str]:
    """Return sentences as lines of Markdown.

    Args:
      records: rows of `report.json`, the own head at its full number of evaluations first.
      floor: distance between two halves of the real images.
      network: whose features measure.
      real: what real images reach.
      correlations: `premise` of `report.json`.
    """
    own, drift = records[0], next(r for r in records if r["method"] == "drift")
    said = [
        _speed(own, drift),
        _distance(own, drift, floor, network),
        *_equal(records, drift),
        *_variety(own, drift, real),
        _recognised(own, drift, real),
        *_entropy(correlations),
    ]
    return [f"- {sentence}" for sentence in said]


def _speed(own: dict, drift: dict) -> str:
    return (
        f"**Speed.** The own head is asked {own['nfe_per_step']:g} times in every AR step, "
        "Drift-AR once. The backbone works as much for both, so the gain is "
        f"{drift['speed_ratio']:.1f} times and not {own['nfe_per_step']:g}: "
        f"{drift['images_per_s']:.0f} images a second instead of "
        f"{own['images_per_s']:.0f}, taken in turns in one process, compiling apart."
    )


def _distance(own: dict, drift: dict, floor: float, network: str) -> str:
    gap = drift["frechet"] - own["frechet"]
    spread = max(own.get("frechet_std", 0.0), drift.get("frechet_std", 0.0))
    # What two seeds differ by is no difference of the heads.
    if abs(gap) <= spread:
        beside = "no further apart than two seeds of one head"
    else:
        beside = "nearer to the real pictures" if gap < 0 else "further from the real pictures"
    return (
        f"**Distance.** The Frechet distance says how far all samples together are from the real "
        f"pictures, seen by the {network}; smaller is better. Two halves of the real set are "
        f"{floor:.2f} apart: nothing does better. The own head is {own['frechet'] / floor:.1f} "
        f"times that, Drift-AR {drift['frechet'] / floor:.1f} times: {beside}. It compares rows of "
        "this "
        "table, and nothing published."
    )


def _equal(records: Sequence[dict], drift: dict) -> list[str]:
    owns = [r for r in records if r["method"].startswith("own")]
    reach = [r for r in owns if r["frechet"] <= drift["frechet"]]
    if not reach:
        return [
            "**At equal quality.** No row of the own head is as near to the data as Drift-AR, at "
            "any number of evaluations that was tried."
        ]
    best = max(reach, key=lambda r: r["speed_ratio"])
    gain = drift["speed_ratio"] / best["speed_ratio"]
    return [
        f"**At equal quality.** The own head may be asked less often too. With "
        f"{best['nfe_per_step']:g} evaluations (`{best['method']}`) it is still as near to the "
        f"data as Drift-AR; beside that row the gain is {gain:.1f} times: the honest one."
    ]


def _variety(own: dict, drift: dict, real: dict) -> list[str]:
    if not {"precision", "recall"} <= drift.keys() & own.keys() & real.keys():
        return []
    return [
        f"**Single pictures and variety.** Precision is the share of samples that lie among real "
        f"pictures, recall the share of real ones that samples come near: a head that repeats its "
        f"best pictures has much of the first and little of the second. Own head "
        f"{own['precision']:.2f} and {own['recall']:.2f}, Drift-AR {drift['precision']:.2f} and "
        f"{drift['recall']:.2f}, real pictures {real['precision']:.2f} and {real['recall']:.2f}."
    ]


def _recognised(own: dict, drift: dict, real: dict) -> str:
    return (
        "**Recognised.** A classifier that saw none of the samples takes "
        f"{drift['accuracy']:.0%} of Drift-AR's for what was asked, "
        f"{own['accuracy']:.0%} of the own head's and "
        f"{real['accuracy']:.0%} of the real ones. Alone it says little: the mean of all pictures "
        "of a class is recognised best."
    )


def _entropy(correlations: dict) -> list[str]:
    said = []
    for name, rates in correlations.items():
        values = [p["spearman"] for p in rates]
        low, high = min(values), max(values)
        mean = sum(values) / len(values)
        if mean <= -_FAINT:
            verdict = (
                "errors are larger where it is *low*, the opposite of what the method supposes"
            )
        elif mean < _FAINT:
            verdict = "it does not predict error"
        elif mean < _CLEAR:
            verdict = "it predicts error weakly"
        else:
            verdict = "it predicts error clearly"
        span = f"{low:+.2f} to {high:+.2f}" if len(values) > 1 else f"{low:+.2f}"
        said.append(f"{name}: {verdict} ({span})")
    if not said:
        return []
    return [
        "**Does entropy predict error?** Rank correlation of a token's entropy and its error, at "
        "a fixed number of unknown tokens; 1 is a perfect forecast, 0 none. "
        f"{'; '.join(said)}. Where it predicts nothing, what helps is that the start is noisy at "
        "all, not where the noise is large: `--config.prior.scale=constant` is the control."
    ]
