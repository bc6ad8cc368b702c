"""What a training step needs on a mesh: compiled, never run, no array of it ever made.

python -m driftar_jax.scale --configs=configs/mar_base.py,configs/mar_large.py --devices=8

Prints one row of docs/scale.md per config; `train --dry_run` says the same of one config at more
length. Devices are simulated where there are none: sizes and operations do not depend on them.
"""

from typing import Any

from absl import flags

from driftar_jax import config
from driftar_jax.cli import files
from driftar_jax.cli import program as cli
from driftar_jax.training.dry_run import HEADER, measure, row, simulate


def main(_) -> None:
    if not _CONFIGS.value:
        cli.fail("configs: got nothing, allowed --configs=FILE.py[:SIZE],...")
    simulate(_DEVICES.value)
    with cli.user_errors():
        asked = [_asked(name) for name in _CONFIGS.value]
        network = files.load(_FEATURES.value, "features") if _FEATURES.value else None
    print(HEADER)
    for name, settings in zip(_CONFIGS.value, asked, strict=True):
        with cli.user_errors():
            needs = measure(settings, compiled=_COMPILE.value, network=network)
        print(row(name, settings, needs, _TFLOPS.value, _GB_S.value), flush=True)


def _asked(name: str) -> Any:
    settings = files.load(name, "configs")
    files.change(settings, _SET.value)
    config.check(settings)
    return settings


if __name__ == "__main__":
    _CONFIGS = flags.DEFINE_list("configs", None, "Configs, FILE.py[:SIZE],...")
    _DEVICES = flags.DEFINE_integer("devices", 1, "Devices to simulate.", lower_bound=1)
    _FEATURES = flags.DEFINE_string("features", "", "Config of the network of drift.features.")
    _SET = flags.DEFINE_list("set", [], "Fields to change, SECTION.FIELD=VALUE,...")
    _COMPILE = flags.DEFINE_bool("compile", True, "Compile; without, temporaries are not known.")
    _TFLOPS = flags.DEFINE_float("peak_tflops", 495.0, "Of one device.", lower_bound=1e-3)
    _GB_S = flags.DEFINE_float("peak_gb_s", 3350.0, "Of one device.", lower_bound=1e-3)
    cli.run(main)
