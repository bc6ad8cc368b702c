"""A run of MAR with each head on one device and on eight: the same losses, the same pictures."""

import json

import numpy as np
import pytest
import sharded_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.usefixtures("quick_compile")]
MESHES = [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]


@pytest.fixture(scope="module")
def one(quick_compile, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return folder, sharded_run.run(folder, {})


@pytest.mark.parametrize("mesh", MESHES, ids=["data", "data x fsdp x tensor"])
def test_eight_devices_train_and_draw_as_one(python, one, tmp_path, mesh):
    done = python("tests/sharded_run.py", tmp_path, json.dumps(mesh), devices=8, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    folder, losses = one
    for task, many in json.loads(done.stdout.splitlines()[-1]).items():
        assert len(many) == sharded_run.STEPS
        np.testing.assert_allclose(many, losses[task], rtol=1e-5, err_msg=task)
        images = [np.load(place / f"{task}.npy").astype(int) for place in (folder, tmp_path)]
        assert images[0].std() > 5
        # One level of 255: rounding of another order of sums may fall on the other side of a half.
        assert np.abs(images[0] - images[1]).max() <= 1
