"""Drift of whole grids as a task: what learns, what meets in a row, and what a checkpoint holds."""

import dataclasses
import functools
import json
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn

from configs import classifier, drift_transdiff
from driftar_jax import config as config_lib
from driftar_jax.data.source import ImageSource
from driftar_jax.drift import bank as bank_lib
from driftar_jax.drift import fields
from driftar_jax.features import maps
from driftar_jax.training import drift_grid, loop, optim, phi, tasks

LABELS = np.array([0, 2, 1, 0, 0, 0, 0, 0], np.int32)


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A feature space with parameters: one key, the tokens times a number."""

    def __call__(self, params, tokens):
        return {"scaled": params["scale"] * tokens}


SPACE = (Scaled(), {"scale": np.float32(2.0)})


def config_of(**changes):
    made = drift_transdiff.get_config("tiny")
    made.host.update(width=8, num_heads=2, buffer_size=3, label_drop=0.0)
    made.data.update(image_size=12, patch_size=2)
    made.drift.update(width=6, num_heads=2, classes=4, draws=3, positives=5, field="energy")
    flat = {name.replace("__", "."): value for name, value in changes.items()}
    made.update_from_flattened_dict(flat)
    return made


def task_of(space=SPACE, **changes):
    return tasks.build(config_of(**changes), tiny.IMAGES, space)


@functools.cache
def computed(**changes):
    """Loss, metrics, gradients and the extra state of a step, at random parameters."""
    task = task_of(**changes)
    batch = tiny.batch(len(LABELS)) | {"label": LABELS}

    @jax.jit
    def run(params, key):
        extra = task.update_extra(nn.meta.unbox(task.init_extra(key)), batch, key)
        call = jax.value_and_grad(task.loss, has_aux=True)
        return *call(params, batch, key, 0, False, extra), extra

    (value, metrics), grads, extra = run(tiny.params(task.init), jax.random.key(3))
    return float(value), jax.tree.map(float, metrics), grads, extra


@pytest.mark.slow  # test_grid_tasks trains whole grids
def test_the_loss_reaches_every_parameter_but_the_unused_projection():
    value, metrics, grads, _ = computed()
    without = {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
        if not np.abs(leaf).max() > 0
    }
    # No label is dropped, and no image is read by the 1-step form.
    assert without == {"host.fake_latent", "host.z_proj.kernel", "host.z_proj.bias"}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    np.testing.assert_allclose(value, metrics["drift"] + metrics["mu"], rtol=1e-6)
    # Classes 0, 2, 1, 0 hold 6, 1, 1 and 6 samples of the 5 that are asked for.
    np.testing.assert_allclose(metrics["bank_present"], (5 + 1 + 1 + 5) / 20, rtol=1e-6)
    assert metrics["drift"] > 0 and metrics["mu"] > 0 and metrics["spread"] > 0


@pytest.mark.slow
def test_chunks_of_rows_give_the_same_step():
    value, metrics, grads, _ = computed()
    again, found, chunked, _ = computed(drift__chunk=2)
    np.testing.assert_allclose(again, value, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(chunked), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5 * np.abs(a).max() + 1e-7)
    assert found.keys() == metrics.keys()


def test_the_bank_holds_the_tokens_of_the_batch():
    _, _, _, extra = computed()
    assert extra["bank"].count.tolist() == [6, 1, 1]
    images = tiny.batch(len(LABELS))["image"] / 127.5 - 1.0
    patch = images[1].reshape(2, 2, 3, 2).swapaxes(1, 2).reshape(6, 4)
    np.testing.assert_allclose(extra["bank"].data[2, 0], patch, atol=1e-6)
    assert extra["phi"]["scale"] == 2.0


def test_unconditional_samples_carry_the_guidance():
    """Their weight is `(alpha - 1)(G - 1) / M` of those that are there."""
    task = task_of()
    bank = nn.meta.unbox(bank_lib.empty(3, 6, (6, 4), "float32"))
    bank = bank_lib.push(bank, jnp.int32([1]), tiny.normal(0, 1, 6, 4))
    alpha, present = jnp.asarray([1.0, 2.5]), jnp.ones((2, 5), bool)
    _, weights = task._negatives(bank, alpha, present, jax.random.key(0))
    assert task.samples.unconditional == 2
    np.testing.assert_array_equal(weights.negatives_present, [[True, False]] * 2)
    np.testing.assert_allclose(weights.negatives[:, 0], [0.0, 1.5 * 2], rtol=1e-6)
    assert isinstance(weights, fields.Weights) and weights.draws is None


def test_rows_without_a_label_learn_the_data_as_a_whole():
    task = task_of(host__label_drop=0.5)
    bank = nn.meta.unbox(bank_lib.empty(3, 6, (6, 4), "float32"))
    values = jnp.arange(6, dtype=jnp.float32)[:, None, None] * jnp.ones((6, 6, 4))
    bank = bank_lib.push(bank, jnp.int32([0, 0, 1, 1, 1, 1]), values)
    dropped = jnp.asarray([False, True])
    found, present = task._positives(bank, jnp.int32([0, 0]), dropped, jax.random.key(1))
    assert set(np.asarray(found[0, present[0], 0, 0])) == {0.0, 1.0}
    assert present[1].all() and len(set(np.asarray(found[1, :, 0, 0]))) == 5


@pytest.mark.parametrize("power", [0.0, 1.0, 3.0])
def test_guidance_scales_follow_their_law(power):
    law = drift_grid.GuidanceLaw(low=1.0, high=4.0, power=power)
    alpha = np.asarray(jax.jit(law.draw, static_argnums=1)(jax.random.key(0), 20_000))
    grid = np.linspace(1.0, 4.0, 10_001)
    density = grid**-power / np.trapezoid(grid**-power, grid)
    mean = np.trapezoid(grid * density, grid)
    assert alpha.min() >= 1 and alpha.max() <= 4.0001
    np.testing.assert_allclose(alpha.mean(), mean, atol=4 * alpha.std() / np.sqrt(20_000))
    plain = dataclasses.replace(law, plain=0.25).draw(jax.random.key(1), 20_000)
    np.testing.assert_allclose((plain == 1).mean(), 0.25, atol=4 * np.sqrt(3 / 16 / 20_000))


class Batches:
    """Batches that are a function of their number."""

    def __init__(self):
        self.number = 0

    def __next__(self):
        self.number += 1
        return tiny.batch(8, seed=self.number)

    def state(self):
        return {"number": self.number}

    def restore(self, state):
        self.number = state["number"]


def _loop(folder, config):
    task = tasks.build(config, tiny.IMAGES, SPACE)
    pathlib.Path(folder).mkdir(exist_ok=True)
    return loop.Loop(task, config, pathlib.Path(folder), {"task": "drift"})


@pytest.mark.slow  # test_stops and test_kills resume other tasks
def test_a_resumed_run_is_the_straight_run_bank_and_all(tmp_path):
    """Bit for bit, through both phases; the frozen features stay as they were given."""
    config = config_of(train__steps=4, train__checkpoint_every=2, train__log_every=2)
    config.loss.freeze_at = 0.75
    straight = _loop(tmp_path / "a", config)
    state = straight.fresh_state()
    want = straight.run(state, Batches(), say=lambda line: None)
    straight.checkpoints.close()

    again = _loop(tmp_path / "b", config)
    again._steps = straight._steps  # compiled already
    half = _loop(tmp_path / "a", config)
    read = half.checkpoints.restore(
        2,
        params=half.abstract.params,
        ema=half.abstract.ema,
        extra=half.abstract.extra,
        train={n: getattr(half.abstract, n) for n in ("opt_state", "tracked", "step")},
    )
    half.checkpoints.close()
    batches = Batches()
    batches.restore(read["position"])
    assert batches.number == 2
    middle = optim.TrainState(
        params=read["params"], ema=read["ema"], extra=read["extra"], **read["train"]
    )
    found = again.run(middle, batches, say=lambda line: None)
    again.checkpoints.close()
    chex.assert_trees_all_equal(found, want)
    assert int(found.extra["bank"].seen.sum()) == 32 and found.extra["phi"]["scale"] == 2.0
    assert set(found.params) == set(found.ema) == {"host", "prior", "decoder"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drift__draws": 1, "drift__field": "laplace"}, "drift.draws: got 1, allowed a whole"),
        ({"drift__classes": 9}, "drift.classes: got 9, allowed 1 to 8 images of a batch"),
        ({"drift__positives": 7}, "drift.positives: got 7, allowed 1 to bank.size 6"),
        ({"drift__chunk": 3}, "drift.chunk: got 3, allowed 0 or a divisor of drift.classes 4"),
        ({"drift__unconditional": 0}, "drift.unconditional: got 0, allowed at least 1"),
        ({"drift__features": "mae"}, "drift.features_from: got '', allowed the workdir of"),
        ({"drift__features_from": "runs/x"}, "drift.features_from: got 'runs/x', allowed '' for"),
        ({"host__form": "mrar", "sample__ar_steps": 4}, "host.form: got 'mrar', allowed one_step"),
        ({"drift__num_heads": 4}, "drift.num_heads: got 4, allowed a divisor of drift.width 6"),
    ],
)
def test_settings_that_cannot_run_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        config_lib.check(config_of(**changes))
    config_lib.check(config_of())


def test_a_bank_larger_than_its_limit_is_refused_before_it_is_made():
    with pytest.raises(ValueError, match="^bank.size: got 6 .*, allowed at most 3"):
        task_of(bank__limit_gib=1e-6)


@pytest.mark.parametrize("size", ["digits8", "fashion28", "emoji32", "base", "large", "huge"])
def test_configs_are_accepted_once_their_features_are_named(size):
    made = drift_transdiff.get_config(size)
    with pytest.raises(ValueError, match="^drift.features_from: got ''"):
        config_lib.check(made)
    made.drift.features_from = "runs/mae"
    config_lib.check(made)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (None, "no readable config.json"),
        ("{", "no readable config.json"),
        ('{"task": "dance"}', "task: got 'dance'"),
        ('{"model_type": "llama"}', "written by train or convert"),
        ("classifier", "a folder with checkpoints/ in it"),
    ],
)
@pytest.mark.parametrize("features", ["mae", "penultimate"])
def test_a_network_that_is_none_is_named_by_the_field(tmp_path, features, written, said):
    source = tmp_path / "network"
    if written == "classifier":
        written = json.dumps(classifier.get_config("tiny").to_dict())
    if written is not None:
        source.mkdir()
        (source / "config.json").write_text(written)
    settings = config_of(drift__features=features, drift__features_from=str(source))
    with pytest.raises(ValueError) as error:
        phi.load(settings, {"image_shape": [12, 12, 1], "patch_size": 2})
    line = str(error.value)
    assert line.startswith("drift.features_from: got '") and "\n" not in line
    assert said in line and "a workdir of task" in line


def test_a_class_without_images_is_refused():
    images = np.zeros((3, 4, 6, 1), np.uint8)

    def source(labels):
        return ImageSource(
            lambda wanted: [(images[i], labels[i]) for i in wanted],
            len(labels),
            name="set",
            split="train",
            image_shape=(4, 6, 1),
            class_names="abc",
            fingerprint="",
        )

    source([0, 2, 1]).check_classes()
    with pytest.raises(ValueError, match="^data.name: got 'set' without an image of class 'b'"):
        source([0, 2, 2]).check_classes()


def test_identity_features_are_the_sample():
    tokens = tiny.normal(2, 3, 6, 4)
    found = maps.Identity()(None, tokens)
    np.testing.assert_array_equal(found["sample"], tokens.reshape(3, 1, 24))
