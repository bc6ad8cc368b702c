"""A sweep: cut, gone on with, measured once, and never again; draws held against draws."""

import json
import shutil

import pytest

from driftar_jax.reports import ablation_table
from driftar_jax.sweeps import ablation, arms

SWEEP = """
def get_sweep():
    own = dict(config="configs/mar_small.py:tiny", set=("train.checkpoint_every=100",))
    again = dict(question="again", of="own", sample={})
    judge = dict(config="configs/classifier.py:tiny")
    arms = dict(own=own, again=again)
    return dict(arms=arms, judge=judge, reference="own", seeds=(0, 1), images=16)
"""


@pytest.fixture
def out(tmp_path, workdirs, monkeypatch):
    """Folder of a sweep whose judge is trained, and its own head of seed 0."""
    monkeypatch.setattr(ablation.jax, "clear_caches", lambda: None)  # other tests' programs
    monkeypatch.setattr(ablation, "CONTEXTS", 8)
    monkeypatch.setattr(ablation, "PREMISE", 32)
    (tmp_path / "sweep.py").write_text(SWEEP)
    for name, workdir in (("judge", workdirs.judge), ("own_seed0", workdirs.own)):
        shutil.copytree(workdir, tmp_path / "out" / "runs" / name)
    return tmp_path / "out"


def _run(out, stop=lambda: ""):
    """Whether the sweep came to its end, and what it said."""
    said = []
    asked = arms.read(str(out.parent / "sweep.py"))
    with ablation.Ablation(asked, out, say=said.append, stop=stop) as sweeping:
        return sweeping.run(asked.seeds), said


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_was_cut(out):
    asked = []

    def stop():
        asked.append(None)
        return "SIGTERM" if len(asked) == 4 else ""  # before the first step, and after each

    done, said = _run(out, stop)
    assert not done and "own, seed 1: step 0 of 6" in said
    assert sorted(p.name for p in (out / "results").iterdir()) == [
        "again.seed0.json",
        "own.seed0.json",
    ]
    done, said = _run(out)
    assert done and said[0] == "own, seed 1: step 3 of 6" and len(said) == 3
    assert _run(out) == (True, [])

    own, again = ablation_table.summary(ablation_table.read(out))
    assert own["seeds"] == again["seeds"] == [0, 1] and again["against"] == "own"
    assert own["figures"]["head_evaluations"]["mean"] == 12
    assert own["figures"]["held_out_energy_score"]["mean"] > 0
    # The same run and the same seeds: nothing else may decide a figure.
    found = again["differences"]["frechet"]
    assert (found["mean"], found["pairs"]) == (0, 2) and again["seconds"] < own["seconds"]
    record = json.loads((out / "results" / "own.seed1.json").read_text())
    assert record["cost"]["steps"] == 6 and record["command"].endswith(f"{out}/runs/own_seed1")

    (out.parent / "sweep.py").write_text(SWEEP.replace("sample={}", "sample=dict(nfe=3)"))
    with pytest.raises(ValueError, match="arm again, sample: got {'nfe': 3}, allowed {}"):
        _run(out)


@pytest.mark.slow  # test_converted_runs reads captions
def test_a_host_that_reads_captions_is_measured(data_dir, compiled_programs, monkeypatch, tmp_path):
    monkeypatch.setattr(ablation.jax, "clear_caches", lambda: None)
    monkeypatch.setattr(ablation, "PREMISE", 32)
    asked = arms.read("configs/sweeps/nextstep_small.py:tiny")
    with ablation.Ablation(asked, tmp_path / "out", say=lambda line: None) as sweeping:
        assert sweeping.run((0,), ["own"])
    figures = json.loads((tmp_path / "out" / "results" / "own.seed0.json").read_text())["figures"]
    assert figures["frechet"] > 0 and [p["num_unknown"] for p in figures["spearman"]] == [6, 4, 2]


def test_draws_of_both_heads_are_compared(call, workdirs, tmp_path):
    out = tmp_path / "deviation"
    runs = f"--workdir={workdirs.drift}", f"--baseline={workdirs.own}"
    sizes = "--contexts=6", "--tokens=2", "--draws=4"
    done = call("deviation", *runs, *sizes, f"--out={out}", terminal=True)
    assert done.status == 0 and "0/3 [" in done.stderr and "6 contexts, loaded in" in done.stdout
    (pair,) = json.loads((out / "deviation.json").read_text())["pairs"]
    assert list(pair["ways"]) == ["drift", "floor", "own, 2 steps", "prior mean"]
    assert pair["ways"]["prior mean"]["spread"] == 0 < pair["ways"]["drift"]["spread"]
    assert sum(sum(row) for row in pair["map"]["tokens"]) == 12
    assert sum(row["tokens"] for row in pair["by_entropy"]) == 12
    assert (out / "deviation.png").exists() and "One evaluation deviates" in done.stdout
    again = call("deviation", *runs, f"--out={out}")
    assert (again.status, again.compiled) == (2, 0)


@pytest.mark.parametrize(
    ("program", "words", "complaint"),
    [
        ("ablate", ("--sweep=no.py", "--out=O"), "sweep: got 'no.py', allowed FILE.py[:SIZE]"),
        ("ablate", ("--sweep=configs/sweeps/mar_small.py:big", "--out=O"), "sweep size: got 'big'"),
        (
            "ablate",
            ("--sweep=configs/sweeps/mar_small.py:tiny", "--out=O", "--only=refrence"),
            "did you mean 'reference'?",
        ),
        (
            "ablate",
            ("--sweep=configs/sweeps/mar_small.py:tiny", "--out=O", "--seeds=7"),
            "seeds: got '7', allowed 0 | 1",
        ),
        ("report", ("--results=nowhere", "--out=O"), "results: got 'nowhere', allowed folders"),
        ("deviation", ("--workdir=a", "--baseline=b,c", "--out=O"), "baseline: got 2, allowed as"),
        ("deviation", ("--workdir=a", "--baseline=b", "--out=O", "--draws=5"), "draws: got 5"),
    ],
)
def test_mistakes_are_one_line(call, tmp_path, program, words, complaint):
    words = [word.replace("--out=O", f"--out={tmp_path / 'out'}") for word in words]
    done = call(program, *words)
    assert (done.status, done.compiled, done.stdout) == (2, 0, "")
    assert complaint in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
