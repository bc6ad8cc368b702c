"""NextStep-1 over several devices: what each holds of the 14B, and that tokens do not change."""

import json

import nextstep_meshes
import numpy as np
import pytest

MESHES = ({"tensor": 8}, {"fsdp": 8}, {"fsdp": 2, "tensor": 4})


@pytest.mark.slow  # three meshes of the released size
def test_a_device_holds_an_eighth_of_the_14b(python):
    """Compiled, not run: 29.9 GB of parameters and 1.8 GB of cache for four guided images."""
    asked = map(json.dumps, MESHES)
    done = python("tests/nextstep_meshes.py", "14b", *asked, devices=8)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["mesh"] for line in found] == list(MESHES), done.stderr
    layers, heads, width, slots = 48, 8, 128, nextstep_meshes.SLOTS
    cache = 2 * layers * nextstep_meshes.ROWS * slots * heads * width * 2
    for line in found:
        assert line["parameters"] == 14_953_814_080
        # Norms, biases and tables of a few megabytes are on every device.
        assert 0 <= line["parameter_bytes"] - 2 * line["parameters"] / 8 < 8e6
        assert 0 <= line["cache_bytes"] - cache / 8 < 1e5
        assert line["kept_bytes"] == line["cache_bytes"]
        # The step reads neither embedding nor text head nor flow head.
        assert line["argument_bytes"] < line["parameter_bytes"] + line["cache_bytes"]


@pytest.mark.slow  # eight devices; test_rows_of_devices holds the pictures
def test_the_mesh_does_not_change_the_tokens(python):
    want = nextstep_meshes.sample({})
    meshes = map(json.dumps, ({"fsdp": 2, "tensor": 4}, {"fsdp": 4, "tensor": 2}))
    done = python("tests/nextstep_meshes.py", "tiny", *meshes, devices=8)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 2, done.stderr
    for line in found:
        assert line["split"] > 20
        # Sums over devices round otherwise; a random model makes the most of it.
        np.testing.assert_allclose(line["tokens"], want["tokens"], rtol=1e-3, atol=1e-3)


def test_a_stored_checkpoint_is_read_onto_the_mesh(python):
    asked = json.dumps({"fsdp": 2, "tensor": 4})
    done = python("tests/nextstep_meshes.py", "read", asked, devices=8)
    (line,) = map(json.loads, done.stdout.splitlines())
    assert line["same"] and line["placed"] and line["split"] > 20, done.stderr
