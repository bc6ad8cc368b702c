"""The table of drafts: its rows, and a distance that equal distributions make zero on average."""

import dataclasses

import numpy as np
import tiny

from driftar_jax import generator, sampler
from driftar_jax.evaluation import speculation


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
    loaded = generator.Loaded(config, parts, {}, 0, {}, sampler.as_pixels)
    ways = speculation.ways(loaded, {"coupled": (0.5, 2.0), "feature": ()})
    assert ways[0] == speculation.Way("plain", loaded.settings(gamma=0))
    # Four AR steps leave three to draft.
    asked = [(w.name, w.settings.gamma) for w in ways[1:]]
    names = ("gaussian", "coupled 0.5", "coupled 2")
    assert asked == [(name, gamma) for name in names for gamma in (1, 2, 3)]
    for way in ways:
        way.settings.check(parts)
    assert len({dataclasses.astuple(w.settings) for w in ways}) == len(ways)
