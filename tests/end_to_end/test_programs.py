"""The programs end to end on the `:tiny` configs: train, resume, sample, evaluate, and the API."""

import json
import pathlib
import re
import shutil

import chex
import jax
import numpy as np
import pytest
from PIL import Image

import driftar_jax
from driftar_jax.data import pipeline
from driftar_jax.data.labels import for_file
from driftar_jax.evaluation import frechet
from driftar_jax.storage.checkpoints import read_config
from driftar_jax.training import journal, loop, runs

DRIFT = "--config=configs/drift_mar_small.py:tiny"
TIMINGS = {"data_wait", "images_per_s", "seconds_left"}


class Interrupted(Exception):
    """A stand-in for the crash of a run."""


def _records(workdir):
    records = journal.read_metrics(pathlib.Path(workdir) / "metrics.jsonl")
    return [{k: v for k, v in r.items() if k not in TIMINGS} for r in records]


def _trees(workdir, *steps):
    """Everything that each of these checkpoints holds of a run's state."""
    with runs.open_run(driftar_jax.load(workdir).config, workdir) as run:
        a = run.loop.abstract
        rest = {"opt_state": a.opt_state, "tracked": a.tracked, "step": a.step}
        kept = run.loop.checkpoints
        return [kept.restore(step, params=a.params, ema=a.ema, train=rest) for step in steps]


@pytest.mark.parametrize("name", ["judge", "own", "drift"])
def test_a_run_leaves_all_it_promises(workdirs, name):
    folder = pathlib.Path(getattr(workdirs, name))
    steps = [r["step"] for r in _records(folder)]
    assert steps == [2, 3, 4, 6]
    assert all(np.isfinite(list(r.values())).all() for r in _records(folder))
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["3", "6"]
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["versions"]["jax"] == jax.__version__
    if name != "judge":
        grid = Image.open(folder / "samples" / "step_00000006.png")
        assert grid.size == (8 * 10 * 8, 8 * 10 * 8) and np.asarray(grid).std() > 5
        assert (folder / "curves.png").exists()


def test_drift_starts_from_the_host_it_was_given(workdirs):
    own = driftar_jax.load(workdirs.own).params["host"]
    fresh = driftar_jax.load(workdirs.drift, step=3).params["host"]
    gaps = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), own, fresh)
    # The average of three steps at a learning rate of 1e-3 is no further away than this.
    assert max(jax.tree.leaves(gaps)) < 0.01


@pytest.mark.slow  # as does the run of test_prompted_runs
def test_drift_trains_from_scratch_as_well(call, workdirs, tmp_path):
    done = call("train", DRIFT, f"--workdir={tmp_path / 'run'}")
    assert (done.status, done.stderr) == (0, "") and "step 6/6" in done.stdout
    scratch = _records(tmp_path / "run")
    assert [r["step"] for r in scratch] == [2, 3, 4, 6]
    assert scratch[0]["loss"] != _records(workdirs.drift)[0]["loss"]


def test_a_kept_step_can_be_loaded(workdirs):
    early, late = driftar_jax.load(workdirs.drift, step=3), driftar_jax.load(workdirs.drift)
    assert (early.step, late.step) == (3, 6)
    gaps = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), early.params, late.params)
    assert max(jax.tree.leaves(gaps)) > 0
    with pytest.raises(ValueError, match="checkpoint: got step 4 of .*, allowed"):
        driftar_jax.load(workdirs.drift, step=4)


@pytest.mark.slow  # the loop is tested in test_loop, the command below
def test_a_crashed_run_goes_on_bit_for_bit_and_compiles_each_phase_once(
    call, workdirs, tmp_path, monkeypatch
):
    made, workdir = [], tmp_path / "drift"
    flags = [DRIFT, f"--config.init_from={workdirs.own}", f"--workdir={workdir}"]
    flags += ["--config.train.checkpoint_every=1", "--config.train.keep=4"]
    init, step = loop.Loop.__init__, pipeline.Batches.__next__

    def remember(self, *args):
        made.append(self)
        init(self, *args)

    def crash(batches):
        if batches.state()["batch"] == 4:
            raise Interrupted
        return step(batches)

    with monkeypatch.context() as broken:
        broken.setattr(pipeline.Batches, "__next__", crash)
        with pytest.raises(Interrupted):
            call("train", *flags)
    with monkeypatch.context() as watched:
        watched.setattr(loop.Loop, "__init__", remember)
        done = call("train", *flags)
    assert (done.status, done.stderr) == (0, "")
    assert "from step 4 on" in done.stdout and "step 6/6" in done.stdout

    (straight,), (phase_one, resumed) = _trees(workdirs.drift, 6), _trees(workdir, 5, 6)
    assert straight["position"] == resumed["position"]
    for name in ("params", "ema", "train"):
        chex.assert_trees_all_equal(straight[name], resumed[name])
    assert [one.compilations for one in made] == [2]
    # Step 4 was the last of phase I; step 5, of phase II, moves the decoder alone.
    before, after = phase_one["params"], resumed["params"]
    moved = {
        name: max(
            float(np.abs(a - b).max())
            for a, b in zip(
                jax.tree.leaves(before[name]), jax.tree.leaves(after[name]), strict=True
            )
        )
        for name in before
    }
    assert moved.pop("decoder") > 0 and set(moved.values()) == {0.0}


def test_a_finished_run_says_so_and_stays(call, workdirs):
    before = _records(workdirs.judge)
    done = call("train", "--config=configs/classifier.py:tiny", f"--workdir={workdirs.judge}")
    assert done.status == 0 and "all 6 steps are done" in done.stdout
    assert _records(workdirs.judge) == before


def test_a_diverged_run_stops_with_one_line_and_status_1(call, tmp_path):
    workdir = tmp_path / "judge"
    done = call(
        "train",
        "--config=configs/classifier.py:tiny",
        "--config.optim.lr=1e30",
        "--config.optim.warmup_steps=0",
        f"--workdir={workdir}",
    )
    assert done.status == 1
    assert done.stderr.startswith("driftar_jax: loss: got a value that is not finite in steps ")
    assert done.stderr.count("\n") == 1
    assert [p.name for p in (workdir / "checkpoints").iterdir()] == []


@pytest.mark.parametrize(
    ("name", "labels", "classes", "evaluations"),
    [("own", "2,zero", (2, 0, 2, 0, 2), 3 * 4), ("drift", None, (0, 1, 2, 3, 4), 3)],
)
def test_sample_writes_pictures_and_counts(
    call, workdirs, tmp_path, name, labels, classes, evaluations
):
    names = driftar_jax.load(getattr(workdirs, name)).model.images.class_names
    flags = [f"--workdir={getattr(workdirs, name)}", f"--out={tmp_path / 'out'}", "--num=5"]
    if labels:
        flags.append("--labels=" + labels.replace("zero", names[0]))
    done = call("sample", *flags)
    assert (done.status, done.stderr) == (0, "")
    pictures = sorted(p.name for p in (tmp_path / "out").glob("0*.png"))
    assert pictures == [f"{i:05d}_{for_file(c, names[c])}.png" for i, c in enumerate(classes)]
    assert np.asarray(Image.open(tmp_path / "out" / pictures[0])).shape == (8, 8)
    assert (tmp_path / "out" / "grid.png").exists()
    facts = json.loads((tmp_path / "out" / "counts.json").read_text())
    assert facts["per_image"] == {
        "backbone_calls": 3,
        "backbone_rows": 3,
        "draft_calls": 0,
        "head_evaluations": evaluations,
    }
    assert (facts["images"], facts["seed"], facts["step"]) == (5, 0, 6)


def test_an_exported_run_is_small_and_samples_alike(call, workdirs, tmp_path):
    """All but the averaged parameters stays behind; float32 keeps every bit."""
    run = driftar_jax.load(workdirs.drift)
    for dtype, most in (("float32", 0), ("bfloat16", 24)):
        out = tmp_path / dtype
        done = call("export", f"--workdir={workdirs.drift}", f"--out={out}", f"--dtype={dtype}")
        assert done.status == 0, done.stderr
        (step,) = (out / "checkpoints").iterdir()
        assert not any((step / name).exists() for name in ("params", "train", "position"))
        small = driftar_jax.load(out)
        assert small.step == run.step and small.config.init_from == ""
        far = small.sample([0, 1]).images.astype(int) - run.sample([0, 1]).images
        assert np.abs(far).max() <= most
    again = call("export", f"--workdir={workdirs.drift}", f"--out={tmp_path / 'float32'}")
    assert again.status == 2 and "out: got" in again.stderr


def test_a_process_of_its_own_makes_the_same_pictures_as_the_api(python, workdirs, tmp_path):
    out = tmp_path / "out"
    done = python(
        "-m",
        "driftar_jax.sample",
        f"--workdir={workdirs.drift}",
        f"--out={out}",
        "--num=5",
        "--seed=3",
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-2000:]
    model = driftar_jax.load(workdirs.drift)
    samples = model.sample(labels=[0, 1, 2, 3, 4], seed=3, batch_size=2)
    assert samples.images.shape == (5, 8, 8, 1) and samples.counts.head_evaluations == 3
    for path, image in zip(sorted(out.glob("0*.png")), samples.images, strict=True):
        written = np.asarray(Image.open(path), np.int16)
        assert np.abs(written - image[..., 0]).max() <= 1
    assert samples.images.std() > 5


def test_training_in_a_process_of_its_own_goes_on(python, workdirs, tmp_path):
    """A run whose last checkpoint was lost does its last steps again."""
    workdir = tmp_path / "judge"
    shutil.copytree(workdirs.judge, workdir)
    shutil.rmtree(workdir / "checkpoints" / "6")
    done = python(
        "-m",
        "driftar_jax.train",
        "--config=configs/classifier.py:tiny",
        f"--workdir={workdir}",
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-2000:]
    assert "from step 3 on" in done.stdout
    assert _records(workdir) == _records(workdirs.judge)


def test_evaluate_compares_the_methods(call, workdirs, tmp_path):
    out = tmp_path / "report"
    done = call(
        "evaluate",
        f"--workdir={workdirs.drift}",
        f"--baseline={workdirs.own}",
        f"--judge={workdirs.judge}",
        f"--out={out}",
        "--num=12",
        "--seeds=2",
        "--batch_sizes=4",
        terminal=True,
    )
    # A bar over the images of all rows and seeds.
    assert done.status == 0 and re.search(r"0/\d+ \[", done.stderr), done.stderr
    assert "1797 real images, loaded in" in done.stdout
    assert "No verdict: 24 pictures of each method, 512 are needed" in done.stdout
    report = json.loads((out / "report.json").read_text())
    rows = {(r["method"], r["nfe_per_step"]): r for r in report["rows"]}
    assert {("own", 4), ("drift", 1)} <= rows.keys()
    for row in report["rows"]:
        assert {
            "method",
            "ar_steps",
            "nfe_per_step",
            "backbone_calls",
            "images_per_s",
            "speed_ratio",
            "frechet",
            "accuracy",
        } <= row.keys()
        assert row["backbone_calls"] == row["ar_steps"] == 3
        assert row["frechet"] > 0 and 0 <= row["accuracy"] <= 1 and row["images_per_s"] > 0
    assert report["rows"][0]["method"] == "own" and report["rows"][0]["speed_ratio"] == 1.0
    assert report["judged"] == {
        "pictures": 24,
        "pictures_needed": 512,
        "accuracy_needed": pytest.approx(0.325),
    }
    assert report["floor"] > 0 and report["network"] == "classifier"
    measured = {
        "frechet",
        "accuracy",
        "kid",
        "kid_spread",
        "precision",
        "recall",
        "inception_score",
        "nearest",
    }
    assert measured | {"copied"} <= report["real"].keys() & report["rows"][0].keys()
    width = read_config(workdirs.judge)["classifier"]["width"]
    assert frechet.read(out / "reference.npz", "classifier", width).count == 1797
    assert "| real images |" in done.stdout
    assert re.search(r"time: .*sampling [\d.]+ s.* MiB of memory", done.stdout)
    text = (out / "report.md").read_text()
    for line in text.splitlines():
        if line.startswith("!["):
            assert (out / line.rpartition("](")[2].rstrip(")")).stat().st_size > 1000
    assert text.count("![") >= 5


def test_evaluate_measures_pictures_of_anybody(call, workdirs, tmp_path):
    made = driftar_jax.load(workdirs.drift).sample(np.arange(40) % 10, seed=0).images
    np.savez(tmp_path / "made.npz", made)
    words = (f"--images={tmp_path / 'made.npz'}", f"--judge={workdirs.judge}")
    done = call("evaluate", *words, f"--out={tmp_path / 'report'}")
    assert (done.status, done.stderr) == (0, "")
    record = json.loads((tmp_path / "report" / "report.json").read_text())
    assert record["count"] == 40 and record["kid"] > 5 * record["kid_real_halves"]
    assert "| kid_classifier |" in done.stdout and record["frechet"] > 0
    done = call("evaluate", *words, f"--out={tmp_path / 'other'}", f"--workdir={workdirs.drift}")
    assert done.status == 2 and "allowed none beside --images" in done.stderr


def test_an_export_has_a_card_with_what_was_measured(call, workdirs, tmp_path):
    report = {
        "rows": [
            {"method": "own", "nfe_per_step": 50, "frechet": 10.738, "accuracy": 0.952},
            {"method": "drift", "nfe_per_step": 1, "frechet": 11.541, "accuracy": 0.961},
        ],
        "real": {"frechet": 6.27},
        "floor": 7.13,
    }
    (tmp_path / "report.json").write_text(json.dumps(report))
    words = (f"--workdir={workdirs.drift}", f"--report={tmp_path / 'report.json'}")
    done = call("export", *words, f"--out={tmp_path / 'small'}")
    assert (done.status, done.stderr) == (0, "")
    card = (tmp_path / "small" / "README.md").read_text()
    assert card.startswith("# small\n") and "6 steps of 8 images" in card
    assert "| drift | 1 | 11.54 | 0.96 |" in card and "7.13 apart" in card
    assert "0.0 hours in all" in card and "begun from `own`" in card
    assert "`digits8`, 10 class(es)" in card and "embedded/LICENSES.md" in card
    assert str(tmp_path) not in card and str(pathlib.Path(workdirs.own).parent) not in card
    (tmp_path / "report.json").write_text("[]")
    done = call("export", *words, f"--out={tmp_path / 'other'}")
    assert done.status == 2 and "report: got" in done.stderr and not (tmp_path / "other").exists()
