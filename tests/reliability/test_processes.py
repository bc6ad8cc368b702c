"""Several processes as one run: how they find each other, and that they train what one would."""

import os
import re
import socket
import subprocess
import sys

import chex
import numpy as np
import pytest

from driftar_jax.sampling import load
from driftar_jax.training import journal, processes

CONFIG = "--config=configs/classifier.py:tiny"
Cluster = processes.Cluster


@pytest.mark.parametrize(
    ("environ", "flags", "want"),
    [
        ({}, (), None),
        ({}, ("host:1234", 1, 0), None),
        ({}, ("10.0.0.7:1234", 3, 2), Cluster("flags", "10.0.0.7:1234", 3, 2)),
        (
            {
                "DRIFTAR_COORDINATOR": "a:9",
                "DRIFTAR_PROCESSES": "2",
                "DRIFTAR_PROCESS": "0",
                "SLURM_NTASKS": "8",
                "SLURM_PROCID": "3",
            },
            (),
            Cluster("flags", "a:9", 2, 0),
        ),
        ({"DRIFTAR_COORDINATOR": "a:9"}, ("b:8", 2, 1), Cluster("flags", "b:8", 2, 1)),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"}, (), Cluster("SLURM")),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, (), None),
        ({"SLURM_NTASKS": "8"}, (), None),  # an allocation, not a step of srun
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, (), None),  # a batch script without srun
        # A shell in a step of its own.
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, (), None),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, (), Cluster("TPU pod")),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, (), None),
    ],
)
def test_a_cluster_is_found(environ, flags, want):
    assert processes.cluster(environ, *flags) == want


def test_odd_numbers_of_the_environment_are_named():
    srun = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4"}
    for environ, said in (
        (srun | {"SLURM_PROCID": "4"}, "SLURM_PROCID: got 4, allowed 0 to 3"),
        (srun | {"SLURM_PROCID": "x"}, "SLURM_PROCID: got 'x', allowed a whole number"),
        ({"SLURM_STEP_NUM_TASKS": "--5"}, "SLURM_STEP_NUM_TASKS: got '--5', allowed"),
        ({"SLURM_STEP_NUM_TASKS": "²"}, "SLURM_STEP_NUM_TASKS: got '²', allowed"),
        ({"SLURM_STEP_NUM_TASKS": "2(x3)"}, r"SLURM_STEP_NUM_TASKS: got '2\(x3\)', allowed"),
    ):
        with pytest.raises(ValueError, match=f"^{said}"):
            processes.cluster(environ)
    assert processes.cluster(srun) is processes.cluster(srun | {"SLURM_PROCID": ""}) is None
    for coordinator in ("host", ":1", "host:", "host:0", "host:65536", "host:" + "9" * 9, "host:٣"):
        with pytest.raises(ValueError, match="^coordinator: got .*, allowed HOST:PORT"):
            processes.cluster({}, coordinator, 2, 0)


def test_a_process_that_is_alone_in_its_job_says_so():
    of_srun = {"SLURM_NTASKS": "8", "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8"}
    assert processes.alone({}) == processes.alone(of_srun) == ""
    assert processes.alone({"SLURM_NTASKS": "1"}) == ""
    for step in ({}, {"SLURM_STEP_NUM_TASKS": "1"}):
        line = processes.alone({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", **step})
        assert (
            line == "SLURM: the job has 8 tasks, this step has one: one process (srun starts all)"
        )


@pytest.mark.parametrize(
    ("environ", "flags", "words"),
    [
        ({}, ("host", 2, 0), "coordinator: got 'host', allowed HOST:PORT"),
        ({}, ("", 2, 0), "coordinator: got '', allowed HOST:PORT"),
        ({}, ("host:1", 0, 0), "num_processes: got 0, allowed"),
        ({}, ("host:1", 2, 2), "process_id: got 2, allowed 0 to 1"),
        ({}, ("host:1", 2, -1), "process_id: got -1, allowed 0 to 1"),
        ({"DRIFTAR_PROCESSES": "two"}, (), "DRIFTAR_PROCESSES: got 'two', allowed a whole number"),
    ],
)
def test_a_cluster_that_does_not_fit_is_named(environ, flags, words):
    with pytest.raises(ValueError, match=words):
        processes.cluster(environ, *flags)


@pytest.mark.parametrize(
    ("environ", "asked", "want"),
    [
        ({}, (), (0, 1)),
        ({}, (3, 2), (2, 3)),
        ({"DRIFTAR_PROCESSES": "4", "DRIFTAR_PROCESS": "1"}, (), (1, 4)),
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8"}, (), (5, 8)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (), (0, 1)),  # a script without srun
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8"}, (2, 0), (0, 2)),
    ],
)
def test_work_is_split_without_a_word_between_processes(environ, asked, want):
    assert processes.share(environ, *asked) == want


GLOO = set("Gloo Rank is connected to peer ranks Expected number of".split())


def _free_port():
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


@pytest.fixture
def train(data_dir, compiled_programs):
    """`train(workdir, devices, *flags)`: a process that trains the tiny classifier."""
    started = []

    def start(workdir, devices, *flags):
        words = ["-m", "driftar_jax.train", CONFIG, f"--workdir={workdir}", *flags]
        simulated = f"--xla_force_host_platform_device_count={devices}"
        env = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {simulated}"}
        started.append(
            subprocess.Popen(
                [sys.executable, *words],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=env,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _said(process):
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err[-3000:]
    return out


@pytest.mark.timeout(300)
def test_two_processes_train_what_one_does(train, tmp_path):
    """Four devices each against eight of one process; read here on one device."""
    port = _free_port()
    ways = [
        train(
            tmp_path / "two",
            4,
            f"--coordinator=127.0.0.1:{port}",
            "--num_processes=2",
            f"--process_id={index}",
        )
        for index in range(2)
    ]
    first, second = map(_said, ways)
    assert "from step 0 on 8 device(s)" in first and "step 6/6" in first
    # The first process speaks for all; the collectives' library says its own, piece by piece, so
    # that what several threads say may stand mixed: the words are its, whatever their order.
    assert set(re.findall("[A-Za-z]+", second)) <= GLOO
    assert "from step 0 on 8 device(s)" in _said(train(tmp_path / "one", 8))

    records = [journal.read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two")]
    assert [r["step"] for r in records[0]] == [r["step"] for r in records[1]]
    for one, two in zip(*records, strict=True):
        for name in ("loss", "grad_norm", "accuracy"):
            np.testing.assert_allclose(two[name], one[name], rtol=1e-5)
    weights = [load.read_weights(tmp_path / name)[0] for name in ("one", "two")]
    chex.assert_trees_all_close(*weights, rtol=1e-4, atol=1e-6)
