"""Sampling many: layouts by the public command, going on, several devices."""

import json
import os

import numpy as np
import pytest
from PIL import Image

import driftar_jax


def _bytes(folder):
    names = [p for p in folder.rglob("*") if p.is_file() and p.name not in ("counts.json",)]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in names}


def _done(call, workdir, out, *words):
    done = call("sample", f"--workdir={workdir}", f"--out={out}", "--batch_size=4", *words)
    assert (done.status, done.stderr) == (0, "")
    return done


@pytest.mark.parametrize("layout", ["flat", "adm"])
def test_a_command_goes_on_where_it_was_and_leaves_the_same_bytes(call, workdirs, tmp_path, layout):
    words = ("--num=10", f"--layout={layout}", "--seed=3")
    _done(call, workdirs.drift, tmp_path / "straight", *words)
    _done(call, workdirs.drift, tmp_path / "stopped", *words)
    place = tmp_path / "stopped" / ("images" if layout == "adm" else "")
    for number in (2, 7, 8, 9):
        next(place.glob(f"{number:05d}*.png")).unlink()
    done = _done(call, workdirs.drift, tmp_path / "stopped", *words)
    assert "6 of 10 images are there" in done.stdout and ": 4 images," in done.stdout
    assert _bytes(tmp_path / "stopped") == _bytes(tmp_path / "straight")
    again = _done(call, workdirs.drift, tmp_path / "stopped", *words)
    assert "10 of 10 images are there" in again.stdout
    other = call(
        "sample",
        f"--workdir={workdirs.drift}",
        f"--out={tmp_path / 'stopped'}",
        "--num=10",
        f"--layout={layout}",
        "--seed=4",
    )
    assert other.status == 2 and "seed 3, as its manifest says, not 4" in other.stderr


def test_the_pictures_are_those_of_the_api_in_any_layout(call, workdirs, tmp_path):
    want = driftar_jax.load(workdirs.drift).sample(np.arange(6) % 10, seed=0).images
    _done(call, workdirs.drift, tmp_path / "adm", "--num=6", "--layout=adm")
    order = np.random.default_rng(2020).permutation(6)
    with np.load(tmp_path / "adm" / "samples.npz") as archive:
        np.testing.assert_array_equal(archive["arr_0"], np.repeat(want[order], 3, axis=-1))
    _done(call, workdirs.drift, tmp_path / "folder", "--num=6", "--layout=folder")
    assert sorted(os.listdir(tmp_path / "folder" / "images"))[1] == "00001_class1.png"
    with Image.open(tmp_path / "folder" / "images" / "00001_class1.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), want[1, ..., 0])
    counts = json.loads((tmp_path / "folder" / "counts.json").read_text())
    assert counts["images"] == 6 and set(counts["seconds"]) == {
        "first call, compilation included",
        "further calls",
    }


def test_what_a_layout_wants_is_said_before_anything_is_compiled(call, workdirs, tmp_path):
    (tmp_path / "p.txt").write_text("a red heart\n")
    for words, said in (
        (("--layout=geneval",), "evaluation_metadata.jsonl"),
        (("--layout=fid",), "layout: got 'fid', allowed flat | folder"),
        ((f"--prompts={tmp_path / 'p.txt'}",), "this checkpoint makes images of classes"),
        ((f"--prompts={tmp_path / 'none'}",), "prompts: got"),
        ((f"--prompts={tmp_path / 'p.txt'}", "--num=3"), "num: got 3, allowed none beside"),
        (("--labels=sevn",), "a class name: 0, 1, 2"),
        (("--warm", "--image=a.png", "--mask=b.png"), "warm: got True, allowed false with --mask"),
    ):
        done = call("sample", f"--workdir={workdirs.drift}", f"--out={tmp_path / 'o'}", *words)
        assert done.status == 2 and said in done.stderr, done.stderr
        assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_warm_compiles_what_the_same_command_then_finds(workdirs, tmp_path, python, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setenv("DRIFTAR_COMPILE_CACHE", str(tmp_path / "programs"))
    words = ("-m", "driftar_jax.sample", f"--workdir={workdirs.drift}", "--num=6")
    warmed = python(*words, "--warm")
    assert warmed.returncode == 0 and "kept in" in warmed.stdout, warmed.stderr
    kept = {path.name for path in (tmp_path / "programs").glob("jit_*-cache")}
    assert {name.rsplit("-", 2)[0] for name in kept} >= {"jit_generate", "jit_to_uint8"}
    done = python(*words, f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    after = {path.name for path in (tmp_path / "programs").glob("jit_*-cache")}
    made = {name for name in after - kept if name.startswith(("jit_generate", "jit_to_uint8"))}
    assert not made
