"""What a report may say in a sentence, and how it writes numbers."""

import pytest

from driftar_jax.reports import report

RECORDS = [
    {"method": "own", "nfe_per_step": 50, "frechet": 10.0},
    {
        "method": "drift",
        "speed_ratio": 7.61,
        "speed_ratio_low": 7.5,
        "speed_ratio_high": 7.7,
        "frechet": 0.0412,
    },
]


def _real(pictures=2048, accuracy=0.95, classes=10):
    return report.RealRow("classifier", classes, pictures, 7.0, {"accuracy": accuracy})


def test_a_judge_that_knows_its_set_gives_a_sentence():
    said = report.verdict(RECORDS, _real())
    assert said.startswith("Drift-AR at 1 NFE per AR step makes 7.6x the images per second")
    assert said.endswith("(0.0412 against 10.00).")


@pytest.mark.parametrize(
    ("real", "said"),
    [
        (_real(pictures=511), "No verdict: 511 pictures of each method, 512 are needed"),
        (
            _real(accuracy=0.32),
            "0.320 of the real images right, 0.325 are needed",
        ),
        (_real(accuracy=0.62, classes=2), "0.625 are needed (chance is 0.500)"),
    ],
)
def test_few_pictures_or_a_judge_near_chance_give_none(real, said):
    found = report.verdict(RECORDS, real)
    assert said in found and "7.6x" not in found


@pytest.mark.parametrize(
    ("value", "decimals", "want"),
    [
        (0, 1, "0.0"),
        (483.123, 1, "483.1"),
        (0.03456, 1, "0.0346"),
        (-0.5, 2, "-0.500"),
        (10.744, 2, "10.74"),
        (float("nan"), 2, "nan"),
    ],
)
def test_numbers_have_three_digits_at_least(value, decimals, want):
    assert report.digits(value, decimals) == want
