"""Looking ahead end to end on the `:tiny` config: train, measure, and the table of it."""

import json

import pytest

IMAGES = "--config.data.name=emoji32", "--config.data.image_size=12", "--config.data.patch_size=4"


@pytest.mark.slow
def test_the_table_holds_every_window_and_bound(call, tmp_path):
    run, judge, out = (tmp_path / name for name in ("run", "judge", "out"))
    for config, workdir, more in (("drift_nextstep", run, ()), ("classifier", judge, IMAGES)):
        done = call("train", f"--config=configs/{config}.py:tiny", f"--workdir={workdir}", *more)
        assert (done.status, done.stderr) == (0, "")
    words = f"--workdir={run}", f"--judge={judge}", "--num=12", "--batch_sizes=1,6", "--rounds=1"
    asked = "--lookahead=4,9", "--deltas=0,0.5", "--bounds=entropy,sigma", "--gammas=2"
    done = call("evaluate_drafts", *words, *asked, f"--out={out}")
    assert done.status == 0 and "Where looking ahead pays" in done.stdout
    found = json.loads((out / "lookahead.json").read_text())
    bounds = "0", "0.5, entropy", "0.5, sigma"
    names = [f"lookahead {window}, {bound}" for window in (4, 9) for bound in bounds]
    assert [row["method"] for row in found["ahead"]] == ["plain", "drafts, gamma 2", *names]
    rows = {row["method"]: row for row in found["ahead"]}
    for row in rows.values():
        assert 1 <= row["backbone_calls"] <= 9 and set(row["time"]) == {"1", "6"}
    assert rows["lookahead 4, 0"]["deviation"] < 1e-4 and rows["plain"]["backbone_calls"] == 9
    saved = [rows[f"lookahead 4, {bound}"]["backbone_calls"] for bound in bounds]
    assert max(saved[1:]) <= saved[0]
    assert [m["move"] for m in found["contraction"]["run"]] == [0.02, 0.2, 1.0]
    assert {(c["batch_size"], c["window"]) for c in found["calls"]} >= {(1, 4), (6, 9)}
    assert "farther than it was moved" in (out / "lookahead.md").read_text()
    again = call("evaluate_drafts", *words, *asked, f"--out={out}")
    assert again.status == 2 and "a folder without lookahead.json" in again.stderr
