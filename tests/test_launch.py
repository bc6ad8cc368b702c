"""The scripts of launch/: what --dry-run prints is what would be run, and mistakes are named."""

import os
import pathlib
import re
import shlex
import subprocess

import pytest

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
            ["source", "mkdir", *["python"] * 22],
            ["requirements-aot.txt", "--target=gpu:h100:1", "--config.mesh.fsdp=8"],
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
    ],
)
def test_a_mistake_is_named(script, words, environ, line):
    status, lines, errors = _dry(script, *words, **environ)
    assert status == 2 and lines == [] and errors.count("\n") == 1
    assert errors.startswith(f"{script}: {line}")


def test_the_image_has_the_targets_that_the_script_builds():
    text = (LAUNCH / "Dockerfile").read_text()
    targets = re.findall(r"^FROM \S+ AS (\w+)$", text, re.MULTILINE)
    assert targets == ["base", "cpu", "cuda"]
    for name in re.findall(r"-r (requirements\S*\.txt)", text):
        assert (LAUNCH.parent / name).is_file()
