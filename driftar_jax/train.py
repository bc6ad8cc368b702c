"""Train a host, Drift-AR on it, or the feature classifier.

python -m driftar_jax.train --config=configs/drift_mar_small.py:digits8 --workdir=runs/drift
"""

import jax
from absl import flags
from ml_collections import config_flags

from driftar_jax import cli, config, runs

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, FILE.py[:SIZE].")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made, or resumed.")
flags.mark_flags_as_required(["config", "workdir"])


def main(_) -> None:
    with cli.user_errors():
        settings = _CONFIG.value
        config.check(settings)
        run = runs.open_run(settings, _WORKDIR.value)
        state = run.start()
    if int(state.step) >= settings.train.steps:
        print(f"{_WORKDIR.value}: all {settings.train.steps} steps are done")
        return
    print(f"{_WORKDIR.value}: from step {int(state.step)} on {jax.device_count()} device(s)")
    with cli.stops():
        run.go_on(state)


if __name__ == "__main__":
    cli.run(main)
