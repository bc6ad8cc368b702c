"""Both heads in one checkpoint, a backbone that stays, and rivals, by the public commands."""

import functools
import json
import pathlib
import shutil

import chex
import jax
import numpy as np
import pytest
from PIL import Image

import driftar_jax
from driftar_jax.training import runs

OWN = "--config=configs/drift_mar_own.py:tiny"


def test_rows_and_operations_are_counted_without_weights(call):
    words = "--config=configs/mar_base.py:tiny", "--random_weights", "--count", "--guidance=2"
    done = call("benchmark", *words)
    # Keys of random weights are made, and no model.
    assert done.status == 0 and done.compiled <= 2, done.stderr
    names = [line.split("|")[1].strip() for line in done.stdout.splitlines()[2:]]
    assert names == ["none", "condition_cache", "token_cache", "lazymar", "recap"]
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
def test_a_decoder_is_taught_by_the_own_head_and_the_run_goes_on(call, workdirs, tmp_path):
    """Bit for bit, the head that follows it included, which no export holds."""
    words = ("drift.backbone=frozen", "drift.field=dmd", "drift.fake_rate=2")
    words = [f"--config.{w}" for w in (*words, f"init_from={workdirs.own}")]
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    done = call("train", OWN, *words, f"--workdir={straight}")
    assert done.status == 0, done.stderr
    records = [json.loads(r) for r in (straight / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(r["fake"]) and np.isfinite(r["drift"]) for r in records)
    shutil.copytree(straight, cut)
    shutil.rmtree(cut / "checkpoints" / "6")
    assert call("train", OWN, *words, f"--workdir={cut}").status == 0
    states = []
    for workdir in (straight, cut):
        with runs.open_run(driftar_jax.load(workdir).config, str(workdir)) as run:
            states.append(run.start())
    assert int(states[0].step) == 6
    chex.assert_trees_all_equal(*states)
    params = states[0].params
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), params["fake"], params["head"])
    assert max(jax.tree.leaves(moved)) > 1e-4
    run = driftar_jax.load(straight)
    assert set(run.params) - {"tracker"} == {"host", "head", "prior", "decoder", "draft"}
    assert run.settings().evaluations == 1
    out = tmp_path / "export"
    done = call("export", f"--workdir={straight}", f"--out={out}", "--dtype=float32")
    assert done.status == 0, done.stderr
    images = [driftar_jax.load(w).sample([1, 2], seed=3).images for w in (straight, out)]
    np.testing.assert_array_equal(*images)


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
        assert counts["per_image"]["backbone_calls"] == 3
    wrong = call("sample", f"--workdir={workdirs.own}", f"--out={tmp_path / 'x'}", "--order=no")
    assert wrong.status == 2 and "order: got 'no', allowed random" in wrong.stderr


def test_two_models_are_counted_without_weights(call):
    words = "--config=mar_base:tiny", "--draft_config=mar_base:tiny", "--random_weights"
    done = call("benchmark", *words, "--count", "--draft_steps=2", "--ar_steps=4")
    assert done.status == 0 and done.compiled <= 4, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in done.stdout.splitlines()]
    assert rows[2:4] == [["target alone, 4 AR steps", "4", "0"], ["2 AR steps drafted", "3", "3"]]
    wrong = call("benchmark", words[0], "--draft_config=mar_bass", "--count")
    assert wrong.status == 2 and "draft_config: got 'mar_bass', allowed FILE.py" in wrong.stderr


@pytest.mark.slow
def test_two_models_by_the_command(call, workdirs, tmp_path):
    out, asked = tmp_path / "out", (f"--workdir={workdirs.own}", "--num=3", "--ar_steps=3")
    drafts = f"--draft_workdir={workdirs.own}", "--draft_steps=1", "--guidance=2"
    assert call("sample", *asked, *drafts, f"--out={out}").status == 0
    found = json.loads((out / "counts.json").read_text())
    cost = found["per_image"]
    assert (cost["backbone_calls"], cost["draft_calls"], cost["backbone_rows"]) == (3, 2, 6)
    assert found["speculation"]["accepted_share"] == 1.0
    # The draft model is the target, and every AR step is checked.
    alone = tmp_path / "alone"
    assert call("sample", *asked, "--guidance=2", f"--out={alone}").status == 0
    both = [np.asarray(Image.open(f / "grid.png"), int) for f in (out, alone)]
    assert np.abs(both[0] - both[1]).max() <= 1
    for words, line in (
        (drafts[:1] + ("--gamma=1",), "gamma: got 1, allowed 0"),
        (drafts[:1] + ("--trace",), "trace: got True, allowed false with a draft model"),
        (
            (f"--draft_workdir={workdirs.drift}",),
            "draft_workdir: got 'drift', allowed with a draft",
        ),
        (("--draft_steps=2",), "draft_steps: got 2, allowed 0"),
    ):
        wrong = call("sample", *asked, *words, f"--out={tmp_path / 'wrong'}")
        assert wrong.status == 2 and line in wrong.stderr, wrong.stderr
        assert wrong.stderr.count("\n") == 1


@pytest.mark.slow
def test_rivals_stand_in_one_table_with_their_seconds(call, workdirs, tmp_path):
    out = tmp_path / "report"
    words = ("--rivals", f"--draft_workdir={workdirs.own}", "--num=9", "--seeds=1")
    done = call("evaluate", *_pair(workdirs, out), *words, "--batch_sizes=4")
    assert done.status == 0, done.stderr
    report = json.loads((out / "report.json").read_text())
    rows = {r["method"]: r for r in report["rows"] if r["rival"]}
    drafted, alone = rows["own, 4 AR steps drafted"], rows["own, 2 AR steps"]
    assert (drafted["backbone_calls"], drafted["draft_calls"]) == (2, 2)
    assert (alone["backbone_calls"], alone["draft_calls"]) == (2, 0)
    text = (out / "report.md").read_text()
    table = text.partition("## Beside rivals")[2].partition("##")[0].strip().splitlines()[-100:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table if "|" in line]
    head = cells[0].index("seconds an image at batch 4")
    found = {row[0]: row for row in cells[2:]}
    for name, row in rows.items():
        want = 1 / row["by_batch_size"]["4"]["images_per_s"]
        assert float(found[name][head]) == pytest.approx(want, rel=0.01)
    assert found["own, 4 AR steps drafted"][1:6] == ["3", "2", "2", "2", "16"]


def _pair(workdirs, out):
    runs = f"--workdir={workdirs.drift}", f"--baseline={workdirs.own}"
    return *runs, f"--judge={workdirs.judge}", f"--out={out}"


@pytest.mark.slow  # of three lines
def test_a_draft_model_that_cannot_be_among_the_rivals_is_named(call, workdirs, tmp_path):
    for words, line in (
        ([f"--draft_workdir={workdirs.own}"], "allowed none without --rivals"),
        (["--rivals", f"--draft_workdir={workdirs.own},x"], "draft_workdir: got 2, allowed as"),
        (["--rivals", f"--draft_workdir={workdirs.drift}"], "allowed a run of task host, not"),
    ):
        wrong = call("evaluate", *_pair(workdirs, tmp_path / "out"), *words)
        assert wrong.status == 2 and line in wrong.stderr, wrong.stderr
        assert wrong.stderr.count("\n") == 1 and wrong.compiled < 5
