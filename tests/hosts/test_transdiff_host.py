"""Sampling of whole-grid hosts by their own head, through the one function for every host."""

import importlib

import numpy as np
import pytest
import tiny

from driftar_jax import model
from driftar_jax.hosts import schedules
from driftar_jax.sampling import batches, plain
from driftar_jax.sampling.settings import Settings
from driftar_jax.training import tasks


def made(size):
    config = importlib.import_module("configs.transdiff_small").get_config(size)
    config.host.update(width=8, num_heads=2, buffer_size=3, row_patch=1)
    parts = model.build(config, tiny.IMAGES)
    return parts, tiny.params(tasks.build(config, tiny.IMAGES).init)


@pytest.mark.parametrize(
    ("size", "steps"), [("tiny", 1), pytest.param("tiny_mrar", 4, marks=pytest.mark.slow)]
)
def test_an_image_does_not_depend_on_its_batch(size, steps):
    parts, params = made(size)
    settings = Settings("own", steps, nfe=3, guidance=1.5, guidance_schedule="linear")
    run = lambda label, index: plain.generate(  # noqa: E731
        parts, settings, params, np.array(label), np.array(index), np.uint32(5)
    )
    grids, counts = run([0, 2, -1], [4, 7, 9])
    alone, _ = run([2], [7])
    assert grids.shape == (3, 4, 6, 1)
    np.testing.assert_allclose(grids[1], alone[0], atol=1e-4)
    assert np.abs(grids[0] - grids[1]).max() > 1e-3
    want = dict(backbone_calls=steps, head_evaluations=3 * steps, backbone_rows=2 * steps)
    assert {name: int(getattr(counts, name)) for name in want} == want


def test_guidance_over_the_images_in_a_row():
    assert schedules.grid_guidance_at(3.0, 4, "linear") == (1.5, 2.0, 2.5, 3.0)
    assert schedules.grid_guidance_at(3.0, 2, "constant") == (3.0, 3.0)
    assert schedules.grid_guidance_at(1.3, 1, "linear") == (1.3,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(ar_steps=2), "^ar_steps: got 2, allowed 4"),
        (dict(nfe=1), "^nfe: got 1, allowed at least 2"),
        (dict(nfe=9, nfe_last=1, nfe_schedule="linear"), "^nfe_last: got 1, allowed at least 2"),
        (dict(drift_scale=0.0), "^drift_scale: got 0.0"),
        (dict(method="drift"), "^method: got 'drift', allowed own"),
        # Images in a row could be drafted (`TransDiffWalk`), had a checkpoint heads for it.
        (dict(gamma=2), r"^gamma: got 2, allowed 0 \(no draft head is trained on this host\)$"),
        (dict(lookahead=2), r"^lookahead: got 2, allowed 0 \(this host makes whole grids, "),
    ],
)
def test_bad_settings_are_named(changes, message):
    parts, _ = made("tiny_mrar")
    with pytest.raises(ValueError, match=message):
        Settings("own", 4, nfe=3).changed(**changes).check(parts)


@pytest.mark.parametrize("guidance", [pytest.param(1.0, marks=pytest.mark.slow), 1.5])
def test_a_table_of_classes_changes_the_calls_alone(guidance, monkeypatch):
    """What the class decides is encoded once for each, not once or twice for each image."""
    parts, params = made("tiny")
    settings = Settings("own", 1, nfe=2, guidance=guidance)
    classes = parts.images.num_classes
    labels = np.arange(2 * classes + 3) % (classes + 1) - 1
    with_table, counts = batches.sample_images(parts, settings, params, labels, 3, batch_size=8)
    assert counts.backbone_calls == counts.backbone_rows == (classes + 1) / len(labels)
    monkeypatch.setattr(type(parts.family), "prepare", lambda self, m, params, rows: (params, None))
    without, counts = batches.sample_images(parts, settings, params, labels, 3, batch_size=8)
    assert counts.backbone_calls == 1 and counts.backbone_rows == (1 if guidance == 1.0 else 2)
    assert np.abs(with_table.astype(int) - without).max() <= 1
