"""What a training step needs on a mesh: compiled, never run, no array of it ever made.

python -m driftar_jax.scale --configs=configs/mar_base.py,configs/mar_large.py --devices=8

Prints one row of docs/scale.md per config; `train --dry_run` says the same of one config at more
length. Devices are simulated where there are none: sizes and operations do not depend on them.
With `--target=tpu:v5e:4x4` or `gpu:h100:8` the compiler of those chips compiles, and says what its
program needs; no such chip is needed.
"""

from typing import Any

from absl import flags

from driftar_jax import config
from driftar_jax.cli import files
from driftar_jax.cli import program as cli
from driftar_jax.targets import chips
from driftar_jax.training.dry_run import (
    HEADER,
    TARGET_HEADER,
    measure,
    row,
    simulate,
    target_row,
)


def main(_) -> None:
    """Compile the step of each config on the mesh, and print its row."""
    if not _CONFIGS.value:
        cli.fail("configs: got nothing, allowed --configs=FILE.py[:SIZE],...")
    with cli.user_errors():
        target = _target()
        configs = [_asked(name) for name in _CONFIGS.value]
        network = files.load(_FEATURES.value, "features") if _FEATURES.value else None
    print(HEADER if target is None else TARGET_HEADER)
    for name, settings in zip(_CONFIGS.value, configs, strict=True):
        with cli.user_errors():
            needs = measure(settings, compiled=_COMPILE.value, network=network, target=target)
        if target is None:
            print(row(name, settings, needs, _TFLOPS.value, _GB_S.value), flush=True)
        else:
            print(target_row(name, settings, needs), flush=True)


def _target() -> chips.Target | None:
    if not _TARGET.value:
        simulate(_DEVICES.value)
        return None
    if _DEVICES.present or not _COMPILE.value:
        raise config.wrong("target", _TARGET.value, "none with --devices or --nocompile")
    return chips.describe(_TARGET.value)


def _asked(name: str) -> Any:
    settings = files.load(name, "configs")
    files.change(settings, _SET.value)
    config.check(settings)
    return settings


if __name__ == "__main__":
    _CONFIGS = flags.DEFINE_list("configs", None, "Configs, FILE.py[:SIZE],...")
    _DEVICES = flags.DEFINE_integer("devices", 1, "Devices to simulate.", lower_bound=1)
    _TARGET = flags.DEFINE_string("target", "", f"Chips to compile for, {chips.ALLOWED}")
    _FEATURES = flags.DEFINE_string("features", "", "Config of the network of drift.features.")
    _SET = flags.DEFINE_list("set", [], "Fields to change, SECTION.FIELD=VALUE,...")
    _COMPILE = flags.DEFINE_bool("compile", True, "Compile; without, temporaries are not known.")
    _TFLOPS = flags.DEFINE_float("peak_tflops", 495.0, "Of one device.", lower_bound=1e-3)
    _GB_S = flags.DEFINE_float("peak_gb_s", 3350.0, "Of one device.", lower_bound=1e-3)
    cli.run(main, matmul="default")  # as TPUs train everywhere
