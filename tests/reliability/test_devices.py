"""A run of each host and head on one device and on eight: the same losses, the same pictures."""

import json

import numpy as np
import pytest
import sharded_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
MESHES = [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]


@pytest.mark.parametrize("task", sharded_run.TASKS)
def test_eight_devices_train_and_draw_as_one(python, tmp_path, task):
    meshes = map(json.dumps, MESHES)
    done = python("tests/sharded_run.py", tmp_path, task, *meshes, devices=8, timeout=1500)
    assert done.returncode == 0, done.stderr[-2000:]
    one = sharded_run.run(task, {}, tmp_path / "one.npy")
    assert np.std(one) > 1e-4
    for number, line in enumerate(done.stdout.splitlines()[-len(MESHES) :]):
        many = json.loads(line)
        assert len(many) == sharded_run.STEPS
        np.testing.assert_allclose(many, one, rtol=1e-5, err_msg=str(MESHES[number]))
        if task == "draft":
            continue  # the draft head alone learns, and it makes no picture
        images = [np.load(tmp_path / f"{name}.npy").astype(int) for name in ("one", number)]
        assert images[0].std() > 5
        # One level of 255: rounding of another order of sums may fall on the other side of a half.
        assert np.abs(images[0] - images[1]).max() <= 1
