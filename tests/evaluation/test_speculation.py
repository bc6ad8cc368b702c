"""The table of drafts: its rows, and a distance that equal distributions make zero on average."""

import dataclasses
import json

import numpy as np
import pytest
import tiny

from driftar_jax.evaluation import speculation
from driftar_jax.reports import speculation_report
from driftar_jax.sampling import batches, generator


def test_the_energy_distance_is_the_mean_over_pairs_of_different_rows():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 3)), rng.normal(size=(7, 3)) + 1

    def mean(x, y):
        far = [np.linalg.norm(x[i] - y[j]) for i in range(7) for j in range(7) if i != j]
        return np.mean(far)

    want = 2 * mean(a, b) - mean(a, a) - mean(b, b)
    np.testing.assert_allclose(speculation.energy_distance(a, b), want, rtol=1e-9)


def test_shared_labels_make_no_distance():
    """Rows i of both sets belong to one class; the classes are far apart."""
    rng, found = np.random.default_rng(0), []
    for _ in range(200):
        centre = 5.0 * rng.integers(0, 3, (24, 1)) * np.ones((1, 2))
        found.append(speculation.energy_distance(*(centre + rng.normal(size=(2, 24, 2)))))
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(200)
    moved = speculation.energy_distance(centre + rng.normal(size=(24, 2)), centre + 3.0)
    assert moved > 5 * np.std(found)


def test_every_rule_has_every_number_of_drafts():
    config, parts = tiny.config("drift", sample__ar_steps=4), tiny.parts("drift")
    loaded = generator.Generator(config, parts, {}, 0, {}, batches.as_pixels)
    ways = speculation.ways(loaded, {"coupled": (0.5, 2.0), "feature": ()})
    assert ways[0] == speculation.Way("plain", loaded.settings(gamma=0))
    # Four AR steps leave three to draft.
    asked = [(w.name, w.settings.gamma) for w in ways[1:]]
    names = ("gaussian", "coupled 0.5", "coupled 2")
    assert asked == [(name, gamma) for name in names for gamma in (1, 2, 3)]
    for way in ways:
        way.settings.check(parts)
    assert len({dataclasses.astuple(w.settings) for w in ways}) == len(ways)


def test_reports_are_joined_row_by_row(tmp_path):
    """One line for each method and report, plain rows left out."""
    values = {"match": 0.75, "none": 0.5}
    for name, share in values.items():
        plain = {"method": "plain", "gamma": 0}
        row = {"method": "gaussian", "gamma": 2, "accepted_groups": share}
        others = ("backbone_calls", "accepted_per_call", "frechet", "energy_distance")
        row |= dict.fromkeys(others, 1.0)
        row |= {f"{key}_std": 0.25 for key in ("accepted_groups", *others)}
        facts = {"checkpoints": "3 of task draft, step 4", "images": "7 per row"}
        (tmp_path / name).mkdir()
        report = {"facts": facts, "rows": [plain, row]}
        (tmp_path / name / "drafts.json").write_text(json.dumps(report))
    text = speculation_report.join(tmp_path, [tmp_path / name for name in values])
    assert (tmp_path / "joined.md").read_text() == text
    lines = [line for line in text.splitlines() if line.startswith("| gaussian")]
    assert len(lines) == 2 and "\n| plain" not in text
    assert "| match | 1.00 +- 0.25 | 0.750 +- 0.250 | 1.00" in lines[0]
    assert "| none | 1.00 +- 0.25 | 0.500 +- 0.250 | 1.00" in lines[1]
    with pytest.raises(ValueError, match="^join: got .*allowed folders of different names$"):
        speculation_report.join(tmp_path, [tmp_path / "none"] * 2)
    with pytest.raises(ValueError, match="^join: got .*allowed folders of evaluate_drafts "):
        speculation_report.join(tmp_path, [tmp_path])
