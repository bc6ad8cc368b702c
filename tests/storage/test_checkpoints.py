"""Checkpoints: what was written is read, what does not fit is named in one line."""

import json
import os
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftar_jax import sharding
from driftar_jax.storage import checkpoints, digests, jsons

TREE = {"host": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(3)}}


def _abstract(tree):
    everywhere = sharding.replicated(sharding.make_mesh())
    placed = jax.tree.map(lambda _: everywhere, tree)
    return checkpoints.abstract_like(jax.tree.map(jnp.asarray, tree), placed)


@pytest.fixture
def saved(tmp_path):
    made = checkpoints.Checkpoints(tmp_path / "run", keep=2)
    tree = jax.tree.map(jnp.asarray, TREE)
    for step in (1, 2, 5):
        params = jax.tree.map(lambda a, s=step: a * s, tree)
        made.save(step, manifest={"task": "host"}, position={"batch": step}, params=params)
    made.wait()
    yield made
    made.close()


def test_the_newest_are_kept_and_read_exactly(saved):
    assert saved.latest_step() == 5
    assert sorted(p.name for p in (saved.workdir / "checkpoints").iterdir()) == ["2", "5"]
    read = saved.restore(2, params=_abstract(TREE))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, 2 * b), read["params"], TREE)
    assert read["manifest"] == {"format": checkpoints.FORMAT, "task": "host"}
    assert read["position"] == {"batch": 2}


def test_a_relative_workdir_is_as_good(saved, monkeypatch):
    monkeypatch.chdir(saved.workdir.parent)
    again = checkpoints.Checkpoints("run", create=False)
    assert again.latest_step() == 5
    again.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t["host"].update(kernel=np.ones((2, 4))), ["host.kernel (2, 3)", "(2, 4)"]),
        (lambda t: t["host"].update(scale=np.ones(3)), ["host.scale missing", "(3,)"]),
        (lambda t: t["host"].pop("bias"), ["host.bias (3,)", "no such array"]),
    ],
    ids=["other shape", "missing", "too many"],
)
def test_arrays_that_do_not_fit_are_named(saved, change, words):
    wanted = {"host": dict(TREE["host"])}
    change(wanted)
    with pytest.raises(ValueError) as caught:
        saved.restore(5, params=_abstract(wanted))
    message = str(caught.value)
    assert message.startswith("checkpoint: got params ") and "\n" not in message
    assert all(word in message for word in words) and "step 5" in message


def test_a_tree_or_step_that_is_not_there_is_named(saved):
    for step, name in ((5, "ema"), (3, "params")):
        with pytest.raises(ValueError, match="checkpoint: got step .*, allowed") as caught:
            saved.restore(step, **{name: _abstract(TREE)})
        assert "\n" not in str(caught.value)


def test_arrays_of_another_type_are_refused_not_converted(saved):
    for dtype in (jnp.bfloat16, jnp.float16, jnp.int32):
        other = jax.tree.map(lambda a, d=dtype: jnp.asarray(a, d), TREE)
        with pytest.raises(ValueError, match="params host.bias of type float32 .*, allowed ") as e:
            saved.restore(5, params=_abstract(other))
        assert str(jnp.dtype(dtype)) in str(e.value) and "\n" not in str(e.value)


def test_what_export_made_narrow_is_read_wide_on_demand_alone(tmp_path):
    made = checkpoints.Checkpoints(tmp_path)
    made.save(3, manifest={}, ema=jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), TREE))
    made.wait()
    with pytest.raises(ValueError, match="of type bfloat16 .* allowed float32"):
        made.restore(3, ema=_abstract(TREE))
    read = made.restore(3, widen=True, ema=_abstract(TREE))["ema"]
    chex.assert_trees_all_equal(read, TREE)
    made.close()


def test_a_save_that_would_save_nothing_is_an_error_at_once(saved):
    for step in (5, 4):
        with pytest.raises(checkpoints.SaveFailed, match=f"got step {step} beside step 5 .*above"):
            saved.save(step, manifest={})
    assert saved.latest_step() == 5


@pytest.mark.parametrize("name", ["9", "20000000000000000000000"])
def test_a_copy_under_another_number_is_named(saved, name):
    shutil.copytree(saved.workdir / "checkpoints" / "5", saved.workdir / "checkpoints" / name)
    again = checkpoints.Checkpoints(saved.workdir, create=False)
    with pytest.raises(ValueError, match=f"step {name} .* with the manifest of step 5, allowed "):
        again.restore(again.latest_step())
    assert again.newest_whole() == (5, {int(name): "the manifest of step 5"})
    again.close()


def test_other_copies_are_no_steps(saved):
    for name in ("5 (copy)", "00009", "9.bak", "step_9"):
        shutil.copytree(saved.workdir / "checkpoints" / "5", saved.workdir / "checkpoints" / name)
    again = checkpoints.Checkpoints(saved.workdir)
    assert again.latest_step() == 5
    again.save(6, manifest={})
    again.wait()
    assert again.latest_step() == 6
    again.close()


def test_text_beside_the_arrays_is_in_the_digests(tmp_path):
    for name in digests.BESIDE:
        (tmp_path / name).write_text('["a red heart"]')
    made = checkpoints.Checkpoints(tmp_path)
    made.save(1, manifest={}, ema={"a": jnp.ones(2)})
    made.wait()
    assert made.damage(1) is None
    for name in digests.BESIDE:
        (tmp_path / name).write_text('["a rod heart"]')
        with pytest.raises(ValueError, match=f"step 1 of .* with a damaged {name}"):
            made.restore(1)
        (tmp_path / name).unlink()
        with pytest.raises(ValueError, match=f"no readable {name}"):
            made.restore(1)
        (tmp_path / name).write_text('["a red heart"]')
    made.restore(1)
    made.close()


def test_a_config_that_was_changed_under_its_step_is_refused(tmp_path):
    config = {"task": "host", "host": {"num_heads": 4, "dtype": "float32"}, "train": {"steps": 9}}
    jsons.write_json(tmp_path / "config.json", config)
    made = checkpoints.Checkpoints(tmp_path)
    kept = {"task": "host", "host.num_heads": 4, "host.dtype": "float32"}
    made.save(1, manifest={"task": "host"}, config=kept, ema={"a": jnp.ones(2)})
    made.wait()
    config["train"]["steps"] = 20
    jsons.write_json(tmp_path / "config.json", config)
    assert made.restore(1)["manifest"] == {"format": checkpoints.FORMAT, "task": "host"}
    config["host"]["num_heads"] = 2
    jsons.write_json(tmp_path / "config.json", config)
    with pytest.raises(ValueError, match="^workdir: got host.num_heads 2 .*, allowed 4 as step 1"):
        made.restore(1)
    made.close()


def test_another_format_is_refused(saved, monkeypatch):
    monkeypatch.setattr(checkpoints, "FORMAT", 2)
    with pytest.raises(ValueError, match="checkpoint format: got 1, allowed 2"):
        saved.restore(5)


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(ValueError, match="workdir: got .*, allowed a folder with checkpoints/"):
        checkpoints.Checkpoints(tmp_path, create=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="workdir: got .*, allowed a folder written by"):
        checkpoints.read_config(tmp_path)


def test_json_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    jsons.write_json(path, {"b": 1, "a": [2]})
    assert json.loads(path.read_text()) == {"b": 1, "a": [2]}
    with pytest.raises(TypeError):
        jsons.write_json(path, {"bad": object()})

    def crash(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="no space"):
        jsons.write_json(path, {"b": 2})
    assert json.loads(path.read_text()) == {"b": 1, "a": [2]}
