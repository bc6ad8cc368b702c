"""Pictures and training metrics of every host and method are those that were recorded once.

Bits may differ between processors, so the tests leave room for rounding; `DRIFTAR_EXACT=1`, on the
machine and with the flags of the recording, does not.
"""

import json
import os

import numpy as np
import pytest
from recorded import cases

EXACT = bool(os.environ.get("DRIFTAR_EXACT"))
IMAGES = np.load(cases.FOLDER / "images.npz")
METRICS = json.loads((cases.FOLDER / "metrics.json").read_text())


def _slow(names, fast):
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", _slow(cases.PICTURES, cases.FAST))
def test_pictures(name):
    found, want = cases.picture(name), IMAGES[name]
    assert found.shape == want.shape and found.dtype == want.dtype
    off = np.abs(found.astype(int) - want)
    assert not off.any() if EXACT else (off.max() <= 1 and (off > 0).mean() < 0.02)
    # Two images of one class, without noise of their own, may be the same.
    assert len(np.unique(want.reshape(len(want), -1), axis=0)) >= len(want) - 1


@pytest.mark.parametrize("run", _slow(cases.RUNS, ("mar_drift",)))
def test_metrics(run):
    found, want = cases.metrics(run), METRICS[run]
    for phase, terms in want.items():
        assert found[phase].keys() == terms.keys()
        for name, value in terms.items():
            rtol = 1e-6 if EXACT else 2e-4
            np.testing.assert_allclose(found[phase][name], value, rtol, 1e-6, err_msg=name)
