"""Whole-grid hosts through the public programs: trained, sampled and compared."""

import json

import pytest


@pytest.mark.slow
def test_transdiff_trains_samples_and_is_compared(call, workdirs, tmp_path):
    own, drift = (str(tmp_path / name) for name in ("own", "drift"))
    for name, workdir in (("transdiff_small", own), ("drift_transdiff", drift)):
        done = call("train", f"--config=configs/{name}.py:tiny", f"--workdir={workdir}")
        assert (done.status, done.stderr) == (0, "")
    done = call("sample", f"--workdir={drift}", "--num=3", f"--out={tmp_path / 'images'}")
    assert (done.status, done.stderr) == (0, "")
    counts = json.loads((tmp_path / "images" / "counts.json").read_text())["per_image"]
    assert counts["backbone_calls"] == counts["head_evaluations"] == 1
    done = call(
        "evaluate",
        f"--workdir={drift}",
        f"--baseline={own}",
        f"--judge={workdirs.judge}",
        f"--out={tmp_path / 'report'}",
        "--num=12",
        "--seeds=1",
        "--batch_sizes=4",
        "--metrics=",
    )
    assert (done.status, done.stderr) == (0, "")
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    methods = [(r["method"], r["nfe_per_step"]) for r in report["rows"]]
    # Half of the evaluations; one is less than a flow head can take.
    assert methods == [("own", 4), ("own", 2), ("prior mean", 0), ("drift", 1)]
    assert [p["num_unknown"] for p in report["premise"]["Drift-AR"]] == [4]
    assert report["facts"]["mask law"] == "own head none, Drift-AR none"
