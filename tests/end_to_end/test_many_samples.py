"""Sampling many: layouts by the public command, going on, several processes, memory."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import weakref

import jax
import numpy as np
import pytest
from PIL import Image

import driftar_jax
from driftar_jax.sampling import generator


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


def test_the_api_takes_names_and_its_samples_save_themselves(workdirs, tmp_path):
    model = driftar_jax.load(workdirs.drift)
    lines = repr(model).splitlines()
    assert len(lines) == 5 and lines[0] == "driftar_jax model: mar, task drift, step 6"
    assert lines[1].endswith("8x8x1, 4 tokens of 16 numbers")
    assert lines[2] == "takes       10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    groups = {name: tree for name, tree in model.params.items() if name != "tracker"}
    numbers = sum(a.size for a in jax.tree.leaves(groups))
    assert f"{numbers:,} (" in lines[3] and "head evaluations a step 1" in lines[4]
    made = model.sample(labels=list("012345"), seed=0)
    np.testing.assert_array_equal(made.images, model.sample(np.arange(6), seed=0).images)
    assert made.seconds > 0 and repr(made).startswith("<6 images of 8x8x1")
    # Of 8 pixels and a border of 1, and 8 times as large.
    assert made.grid(columns=3).size == (3 * 80, 2 * 80)
    made.save(tmp_path / "out")
    with Image.open(tmp_path / "out" / "00004.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), made.images[4, ..., 0])
    counts = json.loads((tmp_path / "out" / "counts.json").read_text())
    assert counts["per_image"]["backbone_calls"] == made.counts.backbone_calls
    assert len(list((tmp_path / "out").iterdir())) == 8


def test_what_a_layout_wants_is_said_before_anything_is_compiled(call, workdirs, tmp_path):
    (tmp_path / "p.txt").write_text("a red heart\n")
    for words, said in (
        (("--layout=geneval",), "evaluation_metadata.jsonl"),
        (("--layout=fid",), "layout: got 'fid', allowed flat | folder"),
        ((f"--prompts={tmp_path / 'p.txt'}",), "this checkpoint makes images of classes"),
        ((f"--prompts={tmp_path / 'none'}",), "prompts: got"),
        ((f"--prompts={tmp_path / 'p.txt'}", "--num=3"), "num: got 3, allowed none beside"),
        (("--labels=sevn",), "a class name: 0, 1, 2"),
        (("--num_processes=2",), "process_id: got -1, allowed 0 to 1"),
        (("--process_id=1",), "num_processes: got 0, allowed a whole number of at least 1"),
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


def test_pictures_are_let_go_as_they_are_written(call, workdirs, tmp_path, monkeypatch):
    """However many are asked for, those of two calls are in memory at most."""
    parts, most, stream = [], [], generator.Generator.stream

    def watched(self, *args, **kwargs):
        for part in stream(self, *args, **kwargs):
            parts.append(weakref.ref(part.images))
            most.append(sum(images() is not None for images in parts))
            yield part

    monkeypatch.setattr(generator.Generator, "stream", watched)
    _done(call, workdirs.drift, tmp_path / "out", "--num=40")
    assert len(most) == 10 and max(most) <= 2


_MEASURED = """
import resource, runpy, sys
sys.argv = ["sample", *sys.argv[1:]]
try:
    runpy.run_module("driftar_jax.sample", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_thousand_samples_hold_no_more_memory_than_five_hundred(python, workdirs, tmp_path):
    peaks = []
    for number in (500, 20_000):
        words = (
            f"--workdir={workdirs.drift}",
            f"--num={number}",
            f"--out={tmp_path / str(number)}",
        )
        done = python("-c", _MEASURED, *words, "--layout=adm", timeout=800)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split("peak ")[1]))
    print(f"{peaks[0] / 1024:.0f} and {peaks[1] / 1024:.0f} MiB")
    assert peaks[1] <= 1.3 * peaks[0]


@pytest.fixture
def start(data_dir, compiled_programs):
    """`start(*words)`: a process of `sample`, which may be killed."""
    started = []

    def begin(*words):
        command = [sys.executable, "-m", "driftar_jax.sample", *map(str, words)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, text=True, **pipes))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["folder", "adm"])
def test_a_command_that_was_killed_goes_on_and_leaves_the_same_bytes(
    call, start, workdirs, tmp_path, layout
):
    words = ("--num=300", f"--layout={layout}", "--seed=5")
    _done(call, workdirs.drift, tmp_path / "straight", *words)
    killed = tmp_path / "killed"
    asked = (f"--workdir={workdirs.drift}", f"--out={killed}", "--batch_size=4", *words)
    draw, counts = random.Random(time.time_ns()), []
    for _ in range(2):
        process = start(*asked)
        before = len(list(killed.glob("images/*")))
        while process.poll() is None and len(list(killed.glob("images/*"))) < before + 4:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.3))
        process.send_signal(signal.SIGTERM)
        process.communicate()
        counts.append(len(list(killed.glob("images/*.png"))))
    assert 0 < counts[0] < 300, "it was too fast or too slow to be stopped"
    _done(call, workdirs.drift, killed, *words)
    assert _bytes(killed) == _bytes(tmp_path / "straight")


@pytest.mark.slow
def test_two_processes_share_the_pictures_of_one(call, start, workdirs, tmp_path):
    words = ("--num=26", "--layout=adm", "--seed=7")
    _done(call, workdirs.drift, tmp_path / "one", *words)
    both = (f"--workdir={workdirs.drift}", f"--out={tmp_path / 'two'}", "--batch_size=4", *words)
    processes = [start(*both, "--num_processes=2", f"--process_id={i}") for i in (1, 0)]
    said = [process.communicate(timeout=280) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert "13 images of process 0 of 2 are to be made" in said[1][0]
    assert _bytes(tmp_path / "one") == _bytes(tmp_path / "two")
