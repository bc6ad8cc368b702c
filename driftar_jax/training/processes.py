"""Several processes as one run: start-up, agreement, barriers; no-ops in a single-process run.

A cluster is given by flags, by SLURM's environment or by a TPU pod's; `cluster` decides which, and
says no more than what `jax.distributed.initialize` has to be told.
"""

import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Mapping

import jax
import numpy as np

from driftar_jax.config import wrong

# `time.monotonic()` when this process had loaded its first module of ours.
BORN = time.monotonic()
# Of the start-up; a firewalled port or a missing process would otherwise wait for ever.
TIMEOUT_S = 300


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Who leads and how many there are; all None where jax finds out by itself (TPU, SLURM)."""

    source: str
    coordinator: str | None = None
    count: int | None = None
    index: int | None = None


def cluster(
    environ: Mapping[str, str], coordinator: str = "", count: int = 0, index: int = -1
) -> Cluster | None:
    """Find the cluster this process belongs to, or None for a run of one process.

    Args:
      environ: environment; `DRIFTAR_COORDINATOR`, `DRIFTAR_PROCESSES` and `DRIFTAR_PROCESS` stand
        in for the flags, SLURM's and the TPU runtime's variables for all of them.
      coordinator: `HOST:PORT` of process 0, or "".
      count: processes, or 0 where not given.
      index: of this process from 0, or -1 where not given.

    Raises:
      ValueError: some of the three are given and some are not, or they do not fit.
    """
    coordinator = coordinator or environ.get("DRIFTAR_COORDINATOR", "")
    count = count or _number(environ, "DRIFTAR_PROCESSES", 0)
    index = index if index >= 0 else _number(environ, "DRIFTAR_PROCESS", -1)
    if coordinator or count or index >= 0:
        host, _, port = coordinator.rpartition(":")
        if not host or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
            raise wrong("coordinator", coordinator, "HOST:PORT of process 0")
        if count < 1:
            raise wrong("num_processes", count, "a whole number of at least 1")
        if not 0 <= index < count:
            raise wrong("process_id", index, f"0 to {count - 1}")
        # A cluster of one is no cluster: no collective, no port, no waiting.
        return Cluster("flags", coordinator, count, index) if count > 1 else None
    tasks = _number(environ, "SLURM_STEP_NUM_TASKS", 1)
    if tasks > 1 and environ.get("SLURM_PROCID"):
        # A number of another step would have this process wait for itself.
        if not 0 <= (process := _number(environ, "SLURM_PROCID", 0)) < tasks:
            raise wrong("SLURM_PROCID", process, f"0 to {tasks - 1}")
        return Cluster("SLURM")
    if environ.get("TPU_WORKER_HOSTNAMES", "").count(","):
        return Cluster("TPU pod")
    return None


def share(environ: Mapping[str, str], count: int = 0, index: int = -1) -> tuple[int, int]:
    """Return index and count of processes that split work and never talk to each other.

    Args:
      environ: `DRIFTAR_PROCESS` and `DRIFTAR_PROCESSES` stand in for the arguments, SLURM's step
        for both.
      count: processes, or 0 where not given.
      index: of this process from 0, or -1 where not given.

    Raises:
      ValueError: one is given and the other is not, or they do not fit.
    """
    count = count or _number(environ, "DRIFTAR_PROCESSES", 0)
    index = index if index >= 0 else _number(environ, "DRIFTAR_PROCESS", -1)
    if not count and index < 0:
        count = _number(environ, "SLURM_STEP_NUM_TASKS", 1) if "SLURM_PROCID" in environ else 1
        index = _number(environ, "SLURM_PROCID", 0) if count > 1 else 0
    if count < 1:
        raise wrong("num_processes", count, "a whole number of at least 1")
    if not 0 <= index < count:
        raise wrong("process_id", index, f"0 to {count - 1}")
    return index, count


def alone(environ: Mapping[str, str]) -> str:
    """Return a line for a job of several tasks of which only this process was started; "" for
    others.

    That is a batch script without `srun`, whose step is the script itself, or a shell in a step of
    its own.
    """
    tasks = _number(environ, "SLURM_NTASKS", 1)
    if tasks <= 1 or _number(environ, "SLURM_STEP_NUM_TASKS", 1) > 1:
        return ""
    return f"SLURM: the job has {tasks} tasks, this step has one: one process (srun starts all)"


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    value = environ.get(name, "")
    if value and not re.fullmatch(r"-?[0-9]{1,9}", value):
        raise wrong(name, value, "a whole number")
    return int(value) if value else default


def join(cluster: Cluster | None, timeout_s: int = TIMEOUT_S) -> None:
    """Connect to the other processes, before any device is touched.

    Raises:
      ValueError: they did not all come in time; one line with the address and the counts.
    """
    if cluster is None:
        return
    if cluster.coordinator is not None:
        os.environ.setdefault("JAX_COORDINATOR_ADDRESS", cluster.coordinator)
    try:
        jax.distributed.initialize(
            cluster.coordinator, cluster.count, cluster.index, initialization_timeout=timeout_s
        )
    except (RuntimeError, ValueError) as error:
        line = (str(error).strip().splitlines() or ["no answer"])[0]
        raise wrong(
            "coordinator",
            cluster.coordinator or cluster.source,
            f"an address that all {cluster.count or ''} processes reach within {timeout_s} s "
            f"(this is process {cluster.index}; {line})",
        ) from error


def leads() -> bool:
    """Say whether this process writes what is written once: logs, config, digests."""
    return jax.process_index() == 0


def agreed(reason: str) -> str:
    """Agree on a reason to stop; every process must call it.

    Returns `reason` where this process has one, "another process" where only another has, else "".
    """
    if jax.process_count() == 1:
        return reason
    from jax.experimental import multihost_utils

    # Whether, not why: strings have no fixed shape to gather, and each process knows its own
    # reason.
    anyone = multihost_utils.process_allgather(np.array([bool(reason)]))
    return reason or ("another process" if anyone.any() else "")


def barrier(name: str) -> None:
    """Wait until every process has come here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def leader_first(name: str):
    """Have the first process run the body, then the others do: for files that are made once."""
    # Others wait before the body and the first waits after it: both meet at the same barrier, and
    # each process runs the body once.
    if not leads():
        barrier(name)
    yield
    if leads():
        barrier(name)


class Clock:
    """Says when `seconds` have passed; 0 for never. Not moved by a change of the time of day."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self.restart()

    def restart(self) -> None:
        """Count from now."""
        self._since = time.monotonic()

    def due(self) -> str:
        """Return a reason to save where the time has passed, else ""."""
        passed = time.monotonic() - self._since
        return "the clock" if self._seconds and passed >= self._seconds else ""
