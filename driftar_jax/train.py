"""Train a host, Drift-AR on it, or the feature classifier.

python -m driftar_jax.train --config=configs/drift_mar_small.py:digits8 --workdir=runs/drift

The same command goes on where a run was stopped, with a larger `train.steps` as well. SIGTERM,
Ctrl-C, SIGUSR1 or a closed terminal saves between two steps and ends with status 0; several
processes (`docs/running.md`) run it together. `--dry_run` compiles the step and says what it needs.
"""

import os

import jax
from absl import flags
from ml_collections import config_flags

from driftar_jax import config
from driftar_jax.cli import program as cli
from driftar_jax.data import sizes
from driftar_jax.targets import chips
from driftar_jax.training import processes, runs, stopping, tracing
from driftar_jax.training.dry_run import measure, report, simulate

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, FILE.py[:SIZE].")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made, or resumed.")
_RESTORE = flags.DEFINE_enum(
    "restore",
    "newest",
    ["newest", "whole"],
    "Checkpoint to go on from; whole sets damaged ones aside, newest refuses them.",
)
_PROFILE = flags.DEFINE_string("profile", "", "START:STOP, steps traced into WORKDIR/profile.")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0 of several.")
_COUNT = flags.DEFINE_integer("num_processes", 0, "Processes that train together.")
_INDEX = flags.DEFINE_integer("process_id", -1, "Number of this process, from 0.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Compile the step, say what it needs, and end.")
_DEVICES = flags.DEFINE_integer("devices", 0, "With --dry_run: devices to simulate.", lower_bound=0)
_TARGET = flags.DEFINE_string(
    "target", "", f"With --dry_run: chips to compile for, {chips.ALLOWED}"
)
_TFLOPS = flags.DEFINE_float("peak_tflops", 0.0, "With --dry_run: ceiling of a device.")
_GB_S = flags.DEFINE_float("peak_gb_s", 0.0, "With --dry_run: ceiling of its memory.")
flags.mark_flag_as_required("config")


def main(_) -> None:
    """Train the config in `--workdir` from its newest checkpoint on, or say what a step needs."""
    with cli.user_errors():
        settings = _CONFIG.value
        decided = sizes.fit(settings)
        config.check(settings)
        print("".join(f"{line}\n" for line in decided), end="")
        if _DRY_RUN.value:
            if _TARGET.value and _DEVICES.value:
                raise config.wrong("target", _TARGET.value, "none with --devices")
            target = chips.describe(_TARGET.value) if _TARGET.value else None
            simulate(_DEVICES.value)
            needs = measure(settings, target=target)
            print("\n".join(report(settings, needs, _TFLOPS.value, _GB_S.value)))
            return
        if _TARGET.value:
            raise config.wrong("target", _TARGET.value, "none without --dry_run")
        if not _WORKDIR.value:
            raise ValueError("workdir: got nothing, allowed --workdir=VALUE")
        trace = None
        if _PROFILE.value:
            trace = tracing.Trace(_PROFILE.value, os.path.join(_WORKDIR.value, "profile"))
        cluster = processes.cluster(os.environ, _COORDINATOR.value, _COUNT.value, _INDEX.value)
        if cluster is None and (line := processes.alone(os.environ)):
            print(line)
        processes.join(cluster)
    with stopping.on_signals() as wish, cli.stops():
        with cli.user_errors():
            run = runs.open_run(settings, _WORKDIR.value)
        with run:
            with cli.user_errors():
                state = run.start(fall_back=_RESTORE.value == "whole")
            _train(run, state, stop=wish, trace=trace)


def _train(run, state, **options) -> None:
    say = print if processes.leads() else lambda line: None
    steps = run.settings.train.steps
    if int(state.step) >= steps:
        say(f"{_WORKDIR.value}: all {steps} steps are done")
        return
    say(f"{_WORKDIR.value}: from step {int(state.step)} on {jax.device_count()} device(s)")
    run.go_on(state, say=say, **options)


if __name__ == "__main__":
    cli.run(main, matmul="default")  # as TPUs train everywhere
