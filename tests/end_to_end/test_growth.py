"""Growth by the public command: two heads in one moving picture."""

import json

import numpy as np
import pytest
from PIL import Image

from driftar_jax.sampling import traces


@pytest.mark.slow
def test_two_heads_grow_side_by_side(call, workdirs, tmp_path):
    words = (f"--workdir={workdirs.drift}", "--num=3", "--labels=3,1,4")
    pair = (f"--baseline={workdirs.own}", "--nfe=2", "--trace")
    done = call("sample", *words, *pair, f"--out={tmp_path / 'traced'}")
    assert (done.status, done.stderr) == (0, "")
    assert "own head, 2 evaluations per step: 3 images in" in done.stdout
    assert "Drift-AR, 1 evaluation per step: 3 images in" in done.stdout
    plain = call("sample", *words, f"--out={tmp_path / 'plain'}")
    assert plain.status == 0
    for file in ("grid.png", "00000_class3.png"):
        assert (tmp_path / "traced" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()
    counts = [json.loads((tmp_path / d / "counts.json").read_text()) for d in ("traced", "plain")]
    assert counts[0]["per_image"] == counts[1]["per_image"]
    with Image.open(tmp_path / "traced" / "growth.gif") as moving:
        assert moving.n_frames >= 2 and moving.width > 600
        first = np.asarray(moving.convert("RGB"), int)
        moving.seek(moving.n_frames - 1)
        last = np.asarray(moving.convert("RGB"), int)
    grey = np.abs(first - traces.BLANK).max(axis=-1) < 6
    assert grey.mean() > 0.1 > (np.abs(last - traces.BLANK).max(axis=-1) < 6).mean()
    assert (tmp_path / "traced" / "growth.png").is_file()
    assert not (tmp_path / "plain" / "growth.gif").exists()


def test_what_cannot_grow_is_said_at_once(call, workdirs, tmp_path):
    words = f"--workdir={workdirs.drift}", f"--out={tmp_path / 'o'}"
    for more, said in (
        ((f"--baseline={workdirs.own}",), "baseline: got"),
        (("--trace", "--nfe=2"), "nfe: got 2, allowed 4 (this model does not read it)"),
        (("--trace", f"--baseline={workdirs.own}", "--nfe=0"), "nfe: got 0"),
        (("--sheet", "--labels=3"), "labels: got '3', allowed none beside --sheet"),
        (("--real=digits8",), "real: got 'digits8', allowed none without --sheet"),
        (
            ("--sheet", "--real=fashion28"),
            "real: got 'fashion28', allowed a set of the checkpoint's 10 classes",
        ),
    ):
        done = call("sample", *words, *more)
        assert done.status == 2 and said in done.stderr, done.stderr
        assert done.compiled == 0 and not (tmp_path / "o").exists()


@pytest.mark.slow
def test_samples_stand_beside_held_out_pictures(call, workdirs, tmp_path):
    out = tmp_path / "o"
    done = call("sample", f"--workdir={workdirs.drift}", "--sheet", f"--out={out}")
    assert (done.status, done.stderr) == (0, "")
    made = sorted(path.name for path in out.glob("000*.png"))
    # Twelve of ten classes: two of them twice.
    assert len(made) == 12 and len({name.partition("_")[2] for name in made}) == 10
    with Image.open(out / "sheet.png") as sheet:
        pixels = np.asarray(sheet, int)
    assert pixels.shape[1] > 800 and pixels.std() > 20
