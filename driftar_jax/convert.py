"""Read an official checkpoint into a workdir, or write a workdir back under official names.

python -m driftar_jax.convert --family=mar --source=checkpoint-last.pth --out=runs/mar_base
python -m driftar_jax.convert --family=mar --back --source=runs/mar_base --out=mar.safetensors
"""

from absl import flags

from driftar_jax.cli import program as cli
from driftar_jax.conversion import checkpoint

_FAMILY = flags.DEFINE_string("family", None, f"{' | '.join(checkpoint.FAMILIES)}.")
_SOURCE = flags.DEFINE_string("source", None, "Official file or folder; with --back a workdir.")
_OUT = flags.DEFINE_string("out", None, "New workdir; with --back a new .safetensors file.")
_WEIGHTS = flags.DEFINE_string("weights", None, "model_ema | model; the averaged by default.")
_HEADS = flags.DEFINE_integer("num_heads", None, "Heads of a host size that was not released.")
_BACK = flags.DEFINE_bool("back", False, "Write official names instead of reading them.")
flags.mark_flags_as_required(["family", "source", "out"])


def main(_) -> None:
    """Convert `--source` into the new workdir `--out`, or back into a file of official names."""
    arguments = _FAMILY.value, _SOURCE.value, _OUT.value
    with cli.user_errors():
        if _BACK.value:
            checkpoint.back(*arguments, _WEIGHTS.value or "model_ema")
        else:
            checkpoint.forward(*arguments, _WEIGHTS.value, num_heads=_HEADS.value)


if __name__ == "__main__":
    cli.run(main)
