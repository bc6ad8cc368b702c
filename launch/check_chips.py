"""Says what is wrong with the words of chips.sh, before anything is compiled.

python -m launch.check_chips "TARGETS" "CONFIGS" "FIELDS OF A TRAINING STEP"

Words are separated by blanks: the fields that a training step changes, `SECTION.FIELD=VALUE`, hold
for each config.
"""

import sys

from driftar_jax import config, sharding
from driftar_jax.cli import files, program
from driftar_jax.targets import chips


def main(targets: list[str], configs: list[str], fields: list[str]) -> None:
    """End with one line where a slice, its compiler, a config, a field, or a mesh is wrong."""
    with program.user_errors():
        meshes = [chips.describe(name).devices for name in targets]
        for name in configs:
            settings = files.load(name, "configs")
            files.change(settings, fields)
            config.check(settings)
            for devices in meshes:
                mesh = sharding.make_mesh(**settings.mesh, devices=devices)
                few = settings.train.batch_size // settings.optim.accumulate
                sharding.check_batch(few, mesh)


if __name__ == "__main__":
    main(*(words.split() for words in sys.argv[1:]))
