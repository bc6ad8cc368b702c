"""The scripts of launch/: what --dry-run prints is what would be run, and mistakes are named."""

import os
import pathlib
import re
import runpy
import shlex
import subprocess
import sys

import jax
import pytest

from driftar_jax.targets import chips

LAUNCH = pathlib.Path(__file__).parent.parent / "launch"
TRAIN = ["--config=configs/mar_base.py", "--workdir=/mnt/runs/base"]


def _dry(script, *words, **environ):
    done = subprocess.run(
        ["bash", str(LAUNCH / script), "--dry-run", *words],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], **environ},
        timeout=30,
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


@pytest.mark.parametrize(
    ("script", "words", "environ", "starts", "holds"),
    [
        (
            "tpu_pod.sh",
            ["all", *TRAIN],
            {"NFS": "10.0.0.2:/runs", "TPU_NAME": "pod"},
            ["gcloud", "git", "gcloud", "gcloud", "gcloud", "mkdir", "gcloud"],
            ["create pod", "--worker=all", "mount -t nfs 10.0.0.2:/runs", *TRAIN],
        ),
        ("tpu_pod.sh", ["delete"], {"ZONE": "z"}, ["gcloud"], ["--zone=z", "--quiet"]),
        ("cuda.sh", TRAIN, {}, ["source", "export", "exec"], ["requirements-cuda.txt", *TRAIN]),
        (
            "cuda.sh",
            TRAIN,
            {"MACHINES": "2", "MACHINE": "1", "COORDINATOR": "a:12"},
            ["source", "export", "exec"],
            ["--coordinator=a:12 --num_processes=2 --process_id=1"],
        ),
        (
            "chips.sh",
            ["runs/chips"],
            {"TARGETS": "gpu:h100:8"},
            ["source", "python", "mkdir", *["python"] * 22],
            ["requirements-aot.txt", "--target=gpu:h100:1", "--config.mesh.fsdp=-1"],
        ),
        (
            "chips.sh",
            [],
            {
                "TARGETS": "tpu:v5e:2x4 tpu:v5e:4x4 tpu:tpu7x:2x2x4 gpu:b200:16",
                "CONFIGS": "configs/drift_transdiff.py:base",
                "FIELDS": "optim.b2=0.9 optim.accumulate=4 drift.features=identity",
            },
            # One sampler for both slices of v5e.
            ["source", "python", "mkdir", *["python"] * 7],
            [
                "--target=tpu:v5e:1x1 --config.optim.b2=0.9 --config.optim.accumulate=4",
                "--target=tpu:tpu7x:1x1x1 ",
                "--target=gpu:b200:1 ",
                "--target=gpu:b200:16 --config.host.scan=true",
                "--config.optim.accumulate=16 --config.optim.b2=0.9 --config.optim.accumulate=4",
            ],
        ),
        (
            "slurm.sbatch",
            [*TRAIN, "--config.data.name=folder:my pictures"],
            {},
            ["source", "srun", "scontrol"],
            ["--restore=whole", "'--config.data.name=folder:my pictures'", "requeue"],
        ),
        (
            "docker.sh",
            ["cpu", "train", *TRAIN],
            {},
            ["docker", "mkdir", "docker"],
            ["--target cpu"],
        ),
        (
            "local.sh",
            ["2", *TRAIN],
            {"DEVICES": "4"},
            ["export", "mkdir", "python", "python"],
            ["--num_processes=2 --process_id=1", "--process_id=0", "device_count=4", *TRAIN],
        ),
        ("docker.sh", ["cuda"], {}, ["docker"], ["--target cuda", "launch/Dockerfile"]),
    ],
)
def test_a_dry_run_prints_every_command(script, words, environ, starts, holds):
    status, lines, errors = _dry(script, *words, **environ)
    assert (status, errors) == (0, "")
    commands = [shlex.split(line) for line in lines]
    assert [command[0] for command in commands] == starts
    text = "\n".join(shlex.join(command) for command in commands).replace("'\"'\"'", "'")
    for words in holds:
        assert words in text, text


@pytest.mark.parametrize(
    ("script", "words", "environ", "line"),
    [
        ("tpu_pod.sh", [], {}, "verb: got '', allowed create | install"),
        ("tpu_pod.sh", ["install"], {}, "NFS: got '', allowed HOST:/SHARE"),
        ("tpu_pod.sh", ["run", TRAIN[0]], {}, "workdir: got '', allowed --workdir="),
        ("local.sh", ["none", *TRAIN], {}, "processes: got 'none', allowed a whole number"),
        ("local.sh", ["2"], {}, "workdir: got '', allowed --workdir="),
        ("cuda.sh", [], {}, "flags: got '', allowed those of driftar_jax.train"),
        ("cuda.sh", TRAIN, {"MACHINES": "2"}, "COORDINATOR: got '', allowed HOST:PORT"),
        ("slurm.sbatch", [], {}, "flags: got '', allowed those of driftar_jax.train"),
        ("docker.sh", ["tpu"], {}, "target: got 'tpu', allowed cpu | cuda"),
        ("chips.sh", [], {"TARGETS": "tpu:v5e:4x"}, "TARGETS: got 'tpu:v5e:4x', allowed tpu:v5e"),
        ("chips.sh", [], {"TARGETS": "gpu:h100:4x2"}, "TARGETS: got 'gpu:h100:4x2', allowed tpu:"),
        ("chips.sh", [], {"CONFIGS": "mar.py"}, "CONFIGS: got 'mar.py', allowed FILE.py[:SIZE]"),
        ("chips.sh", [], {"PROGRAMS": "draw"}, "PROGRAMS: got 'draw', allowed sample | train"),
        ("chips.sh", [], {"FIELDS": "remat"}, "FIELDS: got 'remat', allowed SECTION.FIELD=VALUE"),
        ("chips.sh", [], {"LIMIT": "1h"}, "LIMIT: got '1h', allowed a whole number of seconds"),
    ],
)
def test_a_mistake_is_named(script, words, environ, line):
    status, lines, errors = _dry(script, *words, **environ)
    assert status == 2 and lines == [] and errors.count("\n") == 1
    assert errors.startswith(f"{script}: {line}")


# Stands in for a chip's compiler: the words of `report`, and what a real one does wrong.
COMPILER = """#!/usr/bin/env bash
echo "$*" >> calls
case "$*" in
  *check_chips*) exit 0 ;;
  *mar_huge*) echo "something" >&2; echo "driftar_jax: refused" >&2; exit 2 ;;
  *mar_large*) sleep 20 ;;
esac
echo "compiled for       ${*: -1}, float32 products as TF32"
echo "peak               9.5 GiB of 80.0 GiB a device: it does NOT fit"
echo "code               0.25 GiB"
echo "collectives        3 all-reduce (1.20 MiB) a device"
echo "lowered in         2 s (1 of CPU), 66 matrix products"
echo "compiled in        9 s (7 of CPU); nothing was run"
"""


def test_chips_that_were_asked_are_not_asked_again(tmp_path):
    for script in ("chips.sh", "dry.sh"):
        (tmp_path / "launch" / script).parent.mkdir(exist_ok=True)
        (tmp_path / "launch" / script).write_text((LAUNCH / script).read_text())
    (tmp_path / "launch" / "environment.sh").write_text("export PATH=$PWD:$PATH\n")
    (tmp_path / "python").write_text(COMPILER)
    (tmp_path / "python").chmod(0o755)
    names = ["configs/mar_large.py", "configs/mar_huge.py", "configs/mar_base.py:tiny"]
    for name in names:
        (tmp_path / name.partition(":")[0]).parent.mkdir(exist_ok=True)
        (tmp_path / name.partition(":")[0]).touch()
    asked = {"TARGETS": "gpu:h100:8", "CONFIGS": " ".join(names), "PROGRAMS": "sample"}

    def calls():
        done = subprocess.run(
            ["bash", "launch/chips.sh", "out"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "FIELDS": "host.remat=dots", "LIMIT": "1", **asked},
            timeout=30,
        )
        assert (done.returncode, done.stderr) == (0, "")
        made = (tmp_path / "calls").read_text().splitlines()
        (tmp_path / "calls").unlink()
        return [line.split("--config=")[1].split()[0] for line in made if "--config=" in line]

    assert calls() == names
    name = "sample_mar_base_tiny,host.remat=dots"
    table = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert table[2:] == [
        f"| {name} | --config.host.remat=dots | TF32 | 9.5 **does not fit** | 80.0 | 0.25 "
        "| 3 all-reduce (1.20 MiB) | 66 | 7 |",
        "",
        "Not compiled: sample_mar_huge,host.remat=dots_gpu_h100_1: driftar_jax: refused",
        "",
        "Not compiled: sample_mar_large,host.remat=dots_gpu_h100_1: given up after 1 s",
    ]
    file = tmp_path / "out" / f"{name}_gpu_h100_1.txt"
    assert file.read_text().startswith(
        "command            python -m driftar_jax.benchmark --config="
    )
    assert calls() == names[:2]


def _check(*words):
    module = runpy.run_path(str(LAUNCH / "check_chips.py"))
    module["main"](*words)


@pytest.mark.parametrize(
    ("configs", "fields", "line"),
    [
        (["configs/mar_bas.py"], [], "configs: got 'configs/mar_bas.py', allowed FILE.py[:SIZE]"),
        (["configs/mar_base.py:x"], [], "config size: got 'x', allowed tiny"),
        (["configs/mar_base.py"], ["host.scna=true"], "set: got 'host.scna=true', allowed FIELD="),
        (["configs/mar_base.py"], ["optim.accumulate=0"], "optim.accumulate: got 0, allowed"),
        (["configs/drift_transdiff.py:base"], [], "drift.features_from: got ''"),
        (["configs/mar_base.py"], ["mesh.data=3"], "mesh: got data=3 fsdp=1 tensor=1, allowed"),
        (
            ["configs/mar_base.py"],
            ["train.batch_size=24", "optim.accumulate=6", "mesh.data=1", "mesh.fsdp=-1"],
            "train.batch_size: got 4 images at a time over 8 parts",
        ),
    ],
)
def test_what_chips_are_asked_is_checked_before(configs, fields, line, monkeypatch, capsys):
    devices = jax.devices()[:1] * 8
    target = chips.Target("tpu:v5e:2x4", "tpu", devices, 16 * chips.GIB)
    monkeypatch.setattr(chips, "describe", lambda name: target)
    with pytest.raises(SystemExit) as end:
        _check([target.name], configs, fields)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1
    assert said.startswith(f"driftar_jax: {line}")


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "launch.check_chips", "gpu:none:1", "", ""],
        ["tests/nextstep_size.py", "--folder"],
        ["tests/nextstep_meshes.py", "none", "{}"],
    ],
)
def test_a_checkout_that_is_not_installed_has_them(command):
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        cwd=LAUNCH.parent,
        env=environ,
        timeout=60,
    )
    assert done.returncode and "ModuleNotFoundError" not in done.stderr


def test_presets_can_be_asked_of_chips(monkeypatch):
    _, lines, _ = _dry("chips.sh")
    words = next(shlex.split(line) for line in lines if "check_chips" in line)[3:]
    devices = jax.devices()[:1] * 16
    target = chips.Target("", "tpu", devices, 16 * chips.GIB)
    monkeypatch.setattr(chips, "describe", lambda name: target)
    _check(*(word.split() for word in words))


def test_the_image_has_the_targets_that_the_script_builds():
    text = (LAUNCH / "Dockerfile").read_text()
    targets = re.findall(r"^FROM \S+ AS (\w+)$", text, re.MULTILINE)
    assert targets == ["base", "cpu", "cuda"]
    for name in re.findall(r"-r (requirements\S*\.txt)", text):
        assert (LAUNCH.parent / name).is_file()
