"""Meshes and shardings; the same losses on one device and on eight simulated ones."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sharded_steps
from flax import linen as nn
from jax.sharding import AbstractMesh, PartitionSpec

from driftar_jax import sharding

pytestmark = pytest.mark.timeout(300)

MESHES = [{"data": 4, "fsdp": 2}, {"data": 2, "fsdp": 2, "tensor": 2}]


def _boxed(shape, axes):
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), axes)


@pytest.fixture
def eight():
    """A mesh of shapes alone: rules need no devices."""
    return AbstractMesh((2, 2, 2), sharding.AXES)


@pytest.mark.parametrize(
    ("axes", "want"),
    [
        (("embed", "mlp"), ("fsdp", "tensor")),
        (("heads", "embed"), ("tensor", "fsdp")),
        (("position", "embed"), (None, "fsdp")),
        ((None, "embed"), (None, "fsdp")),
        (("class", "embed"), (None, "fsdp")),
    ],
)
def test_logical_axes_become_mesh_axes(eight, axes, want):
    tree = {"kernel": _boxed((4, 6), axes), "bias": jax.ShapeDtypeStruct((3,), jnp.float32)}
    found = sharding.state_shardings(tree, eight)
    assert tuple(found["kernel"].spec) == want
    assert found["bias"].spec == PartitionSpec()


def test_a_dimension_that_does_not_divide_is_named(eight):
    tree = {"host": {"fc1": {"kernel": _boxed((4, 7), ("embed", "mlp"))}}}
    message = r"host.fc1.kernel: got size 7 over mesh axes \('tensor',\), allowed a multiple of 2"
    with pytest.raises(ValueError, match=message):
        sharding.state_shardings(tree, eight)


def test_a_logical_axis_without_a_rule_is_refused():
    named = {name for name, _ in sharding.RULES}
    assert named == {
        "batch",
        "embed",
        "mlp",
        "heads",
        "position",
        "class",
        "layers",
        "table",
        "bank",
    }


def test_the_bank_is_split_by_class_where_its_classes_divide(eight):
    for classes, want in ((8, ("data", "fsdp")), (10, None)):
        tree = {"bank": _boxed((classes, 3, 2, 5), ("bank", None, None, None))}
        assert sharding.state_shardings(tree, eight)["bank"].spec[0] == want


def test_a_batch_divides_over_data_and_fsdp(eight):
    sharding.check_batch(12, eight)
    with pytest.raises(ValueError, match="train.batch_size: got 6 .* allowed a multiple of 4"):
        sharding.check_batch(6, eight)


def test_the_mesh_takes_all_devices():
    assert dict(sharding.make_mesh().shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    for wrong in ({"fsdp": 2}, {"data": -1, "fsdp": -1}, {"data": 1, "tensor": 3}):
        with pytest.raises(ValueError, match="mesh: got .* device count 1"):
            sharding.make_mesh(**wrong)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    return sharded_steps.losses(tmp_path_factory.mktemp("one"), {})


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param(MESHES[0], marks=pytest.mark.slow, id="fsdp"),
        pytest.param(MESHES[1], id="tensor"),
    ],
)
def test_eight_devices_make_the_steps_of_one(python, one_device, tmp_path, mesh):
    done = python("tests/sharded_steps.py", tmp_path, json.dumps(mesh), devices=8)
    assert done.returncode == 0, done.stderr[-2000:]
    many = json.loads(done.stdout)
    assert many["split"] > 30 and one_device["split"] == 0
    np.testing.assert_allclose(many["losses"], one_device["losses"], rtol=1e-5)
    np.testing.assert_allclose(many["total"], one_device["total"], rtol=1e-4)
