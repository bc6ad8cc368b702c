"""Both heads in one checkpoint, a backbone that stays, and rivals, by the public commands."""

import functools
import json
import pathlib

import chex
import jax
import numpy as np
import pytest

import driftar_jax

OWN = "--config=configs/drift_mar_own.py:tiny"


def test_rows_and_operations_are_counted_without_weights(call):
    words = "--config=configs/mar_base.py:tiny", "--random_weights", "--count", "--guidance=2"
    done = call("benchmark", *words)
    # Keys of random weights are made, and no model.
    assert done.status == 0 and done.compiled <= 2, done.stderr
    names = [line.split("|")[1].strip() for line in done.stdout.splitlines()[2:]]
    assert names == ["none", "condition_cache", "token_cache", "lazymar"]
    other = call("benchmark", "--config=configs/transdiff_base.py:tiny", "--count")
    assert other.status == 2 and "count: got True, allowed false for this host" in other.stderr


@pytest.mark.slow
def test_a_frozen_backbone_with_positives_of_its_own_head(call, workdirs, tmp_path):
    words = ("drift.backbone=frozen", "drift.own_positives=2", "drift.own_steps=2")
    words = [f"--config.{w}" for w in (*words, f"init_from={workdirs.own}")]
    done = call("train", OWN, *words, f"--workdir={tmp_path / 'run'}")
    assert done.status == 0, done.stderr
    before, after = (driftar_jax.load(w).params for w in (workdirs.own, tmp_path / "run"))
    chex.assert_trees_all_equal(before["host"], after["host"])
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-8)  # an average
    jax.tree.map(close, before["head"], after["head"])
    (line,) = (tmp_path / "run" / "held_out_draws.jsonl").read_text().splitlines()
    found = json.loads(line)
    assert found["step"] == 6 and len(found["spread_to_error"]) == 4
    assert "spread over error" in done.stdout
    # The own head of this checkpoint makes the images of the run that it is from.
    images = [
        driftar_jax.load(w).sample([1, 2], seed=3, method="own").images
        for w in (workdirs.own, tmp_path / "run")
    ]
    np.testing.assert_array_equal(*images)
    drift = driftar_jax.load(tmp_path / "run")
    assert drift.settings().method == "drift" and drift.sample([1], seed=3).images.shape[0] == 1


@pytest.mark.slow
def test_both_heads_learn_and_the_run_goes_on(call, workdirs, tmp_path):
    words = f"--config.init_from={workdirs.own}", f"--workdir={tmp_path / 'run'}"
    assert call("train", OWN, *words, "--config.train.steps=3").status == 0
    done = call("train", OWN, *words)
    assert done.status == 0, done.stderr
    records = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert all(np.isfinite(json.loads(r)["own"]) for r in records if "own" in json.loads(r))
    steps = [json.loads(r)["step"] for r in records]
    assert steps == [2, 3, 4, 6] and "own" in json.loads(records[0])
    alone = f"--config.init_from={workdirs.drift}"
    wrong = call("train", OWN, alone, f"--workdir={tmp_path / 'other'}")
    assert wrong.status == 2 and "a checkpoint that holds a host's own head" in wrong.stderr


@pytest.mark.slow
def test_caches_and_orders_by_the_command(call, workdirs, tmp_path):
    for name, words in (
        ("lazy", ["--accelerator=lazymar", "--guidance=2"]),
        ("halton", ["--order=halton"]),
    ):
        out = pathlib.Path(tmp_path / name)
        done = call("sample", f"--workdir={workdirs.own}", f"--out={out}", "--num=2", *words)
        assert done.status == 0, done.stderr
        counts = json.loads((out / "counts.json").read_text())
        assert counts["backbone_calls"] == 3
    wrong = call("sample", f"--workdir={workdirs.own}", f"--out={tmp_path / 'x'}", "--order=no")
    assert wrong.status == 2 and "order: got 'no', allowed random" in wrong.stderr
