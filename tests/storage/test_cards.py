"""What a model card says of a run's own measurements."""

import pytest

from driftar_jax.storage import cards

CONFIG = {"task": "drift", "host": {"name": "mar"}, "data": {"name": "digits8"}, "sample": {}}
MANIFEST = {"image_shape": [8, 8, 1], "class_names": ["a", "b"]}
SEEN = {"step": 1200, "split": "test", "pictures": 128, "energy_score": 0.33333, "accuracy": 0.9}
REPORT = {"rows": [{"method": "drift", "frechet": 3.5}], "real": {"frechet": 1.0}}


def _measured(text):
    return text.partition("## Measured")[2].partition("##")[0]


@pytest.mark.parametrize("report", [None, REPORT])
def test_held_out_figures_stand_there_beside_a_report(report):
    said = _measured(cards.card("m", CONFIG, MANIFEST, 5, 10, held_out=SEEN, report=report))
    assert "after 1,200 steps: pictures 128, energy score 0.3333, accuracy 0.9." in said
    assert ("| drift |" in said) == (report is not None)
    assert "`evaluate` measures it" not in said


def test_a_run_that_nobody_measured_says_so():
    assert "Nothing: `evaluate` measures it" in _measured(cards.card("m", CONFIG, MANIFEST, 5, 10))
