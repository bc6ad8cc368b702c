"""A whole-grid host trained with its own head: what learns, and which images stand in a row."""

import functools
import importlib

import jax
import numpy as np
import pytest
import tiny
from flax import linen as nn

from driftar_jax.training import tasks

LABELS = (0, 1, 2, 1, 1, 1, 1)


def task_of(size, **changes):
    config = importlib.import_module("configs.transdiff_small").get_config(size)
    config.host.update(width=8, num_heads=2, buffer_size=3, row_patch=1)
    config.update_from_flattened_dict(changes)
    return tasks.build(config, tiny.IMAGES)


@functools.cache
def compiled(size):
    """`(params, key, batch) -> (loss, metrics), gradients`, after a bank has taken the batch in."""
    task = task_of(size)

    @jax.jit
    def run(params, key, batch):
        own = ()
        if size.endswith("mrar"):
            own = (task.update_extra(nn.unbox(task.init_extra(key)), batch, key),)
        return jax.value_and_grad(task.loss, has_aux=True)(params, batch, key, 0, False, *own)

    return functools.partial(run, tiny.params(task.init), jax.random.key(3))


@functools.cache
def gradients(size, labels=LABELS):
    batch = tiny.batch(len(labels)) | {"label": np.array(labels, np.int32)}
    (value, metrics), grads = compiled(size)(batch)
    return float(value), jax.tree.map(float, metrics), grads


@pytest.mark.parametrize(
    ("size", "quiet"),
    [
        # The 1-step form keeps a projection that nothing reads.
        ("tiny", {"host.z_proj.kernel", "host.z_proj.bias"}),
        pytest.param("tiny_mrar", set(), marks=pytest.mark.slow),
    ],
)
def test_the_loss_reaches_every_parameter(size, quiet):
    value, metrics, grads = gradients(size)
    without = {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
        if not np.abs(leaf).max() > 0
    }
    # Whether a label was dropped is the key's business.
    assert without - {"host.fake_latent"} == quiet
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert value > 0 and 0 < metrics["entropy_mean"] <= 1


@pytest.mark.slow  # of one odd set
def test_classes_with_too_few_images_are_left_out():
    _, metrics, grads = gradients("tiny_mrar")
    np.testing.assert_allclose(metrics["bank_present"], 5 / 7, rtol=1e-6)
    moved = np.abs(grads["host"]["class_emb"]).max(axis=1) > 0
    np.testing.assert_array_equal(moved, [False, True, False])


@pytest.mark.slow  # of one odd set
def test_a_bank_without_a_row_of_images_teaches_nothing():
    value, metrics, grads = gradients("tiny_mrar", (0, 1, 2, 0, 1, 2, 0))
    assert value == metrics["bank_present"] == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))


def test_a_bank_beyond_its_limit_is_refused():
    with pytest.raises(ValueError, match="^bank.size: got 64 .*allowed at most"):
        task_of("tiny_mrar", **{"bank.limit_gib": 1e-6})
