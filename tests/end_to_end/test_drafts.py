"""Drafts end to end on the `:tiny` configs: train the head, sample with it, make the table."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

import driftar_jax
from driftar_jax.heads import early_stop

DRAFT = "--config=configs/draft_mar_small.py:tiny"


@pytest.fixture(scope="module")
def trained(call, workdirs, tmp_path_factory):
    """A run of task draft on the Drift-AR run."""
    folder = tmp_path_factory.mktemp("drafts") / "run"
    done = call("train", DRAFT, f"--config.init_from={workdirs.drift}", f"--workdir={folder}")
    assert (done.status, done.stderr) == (0, "")
    return str(folder)


def test_all_but_the_draft_head_are_the_teachers(workdirs, trained):
    teacher, pupil = (driftar_jax.load(w).params for w in (workdirs.drift, trained))
    for name in ("host", "prior", "decoder"):
        for a, b in zip(*(_leaves(p[name]) for p in (teacher, pupil)), strict=True):
            # The average of a constant, in float32.
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    heads = zip(_leaves(teacher["draft"]), _leaves(pupil["draft"]), strict=True)
    assert max(np.abs(a - b).max() for a, b in heads) > 1e-4


def test_the_early_stop_is_the_checkpoints_own(trained):
    loaded = driftar_jax.load(trained)
    assert loaded.settings().stop == early_stop.TRAINED and loaded.settings(stop=0.1).stop == 0.1
    tracker = loaded.params["tracker"]
    assert 0 < tracker.ema < 1 and early_stop.global_threshold(tracker) < 0.3
    older = {name: tree for name, tree in loaded.params.items() if name != "tracker"}
    older = dataclasses.replace(loaded, params=older)
    assert older.settings().stop == 0
    with pytest.raises(ValueError, match="^stop: got 'auto', allowed 0 to 1 .no statistics"):
        older.settings(stop=early_stop.TRAINED)


def _leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("gamma", ["1", pytest.param("auto", marks=pytest.mark.slow)])
def test_sample_counts_its_drafts(call, trained, tmp_path, gamma):
    out = tmp_path / "out"
    done = call("sample", f"--workdir={trained}", "--num=3", f"--gamma={gamma}", f"--out={out}")
    assert (done.status, done.stderr) == (0, "")
    facts = json.loads((out / "counts.json").read_text())
    assert facts["gamma"] in ((1,) if gamma == "1" else (0, 1, 2))
    per_image = facts["per_image"]
    if facts["gamma"]:
        lengths = facts["speculation"]["accepted_lengths"]
        assert sum(lengths) == pytest.approx(3 * per_image["backbone_calls"])
        # Every AR step is an accepted group or a call's own.
        assert sum((n + 1) * rounds for n, rounds in enumerate(lengths)) == 3 * 3
    assert np.asarray(Image.open(out / "grid.png")).std() > 5


def test_one_step_falls_back_and_says_so(call, trained, tmp_path):
    words = f"--workdir={trained}", "--num=2", "--gamma=2", "--ar_steps=1"
    done = call("sample", *words, f"--out={tmp_path / 'out'}")
    assert done.status == 0 and "nothing to draft" in done.stdout
    assert json.loads((tmp_path / "out" / "counts.json").read_text())["gamma"] == 0


@pytest.mark.slow
def test_the_table_holds_every_row_and_its_control(call, workdirs, trained, tmp_path):
    words = f"--workdir={trained}", f"--judge={workdirs.judge}", f"--out={tmp_path}"
    done = call(
        "evaluate_drafts", *words, "--num=80", "--batch_sizes=40", "--feature=0.5", terminal=True
    )
    assert done.status == 0 and "0/7 [" in done.stderr
    found = json.loads((tmp_path / "drafts.json").read_text())
    names = {(row["method"], row["gamma"]) for row in found["rows"]}
    rules = ("gaussian", "coupled 2", "feature 0.5")
    assert names == {("plain", 0)} | {(rule, g) for rule in rules for g in (1, 2)}
    steps = {row["ar_steps"] for row in found["controls"]}
    assert {row["control_ar_steps"] for row in found["rows"]} <= steps
    for row in found["rows"]:
        assert 1 <= row["backbone_calls"] <= 3 and np.isfinite(row["frechet"])
    assert [c["method"] for c in found["auto"]] == list(rules)
    text = (tmp_path / "drafts.md").read_text()
    assert "control: AR steps" in text and "E 0" in text


@pytest.mark.parametrize(
    ("words", "field", "allowed"),
    [
        (("--gamma=-1",), "gamma", "auto or a whole number from 0"),
        (("--gamma=3",), "gamma", "0 to 2"),
        (("--gamma=1", "--rule=exact"), "rule", "gaussian | coupled | feature"),
        (("--gamma=1", "--delta=-1"), "delta", "a number from 0"),
        (("--gamma=1", "--method=mean"), "gamma", "method drift only"),
        (("--gamma=1", "--stop=1.5"), "stop", "auto or 0 to 1"),
    ],
)
def test_bad_drafts_are_named(call, trained, tmp_path, words, field, allowed):
    done = call("sample", f"--workdir={trained}", *words, f"--out={tmp_path / 'out'}")
    assert done.status == 2 and done.compiled == 0
    assert done.stderr.startswith(f"driftar_jax: {field}: got ") and allowed in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_own_head_has_no_drafts(call, workdirs, tmp_path):
    words = f"--workdir={workdirs.own}", "--gamma=1", f"--out={tmp_path / 'out'}"
    done = call("sample", *words)
    assert done.status == 2 and "no draft head in this checkpoint" in done.stderr


@pytest.mark.parametrize(
    ("words", "field", "allowed"),
    [
        ((), "init_from", "a Drift-AR checkpoint"),
        (("--config.init_from={own}",), "init_from", "a checkpoint that holds Drift-AR"),
        (("--config.init_from={drift}", "--config.prior.tau=3.0"), "prior.tau", "as in init_from"),
        (("--config.init_from={drift}", "--config.teacher.unroll=0"), "teacher.unroll", "from 1"),
    ],
)
def test_bad_teachers_are_named(call, workdirs, tmp_path, words, field, allowed):
    words = [w.format(own=workdirs.own, drift=workdirs.drift) for w in words]
    done = call("train", DRAFT, *words, f"--workdir={tmp_path / 'run'}")
    assert done.status == 2 and done.compiled == 0
    assert done.stderr.startswith(f"driftar_jax: {field}: got ") and allowed in done.stderr
    assert not (tmp_path / "run").exists()
