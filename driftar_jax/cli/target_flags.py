"""Flags of a dry run of the sampler: `--dry_run --target=tpu:v5e:1x1`."""

from typing import Any

from absl import flags

from driftar_jax.config import wrong

WORDS = "tpu:v5e:1x1 | gpu:h100:1 | ..."


def define() -> None:
    """Define them; once, by a program that samples."""
    flags.DEFINE_bool("dry_run", False, "Compile for --target, say what it needs, and end.")
    flags.DEFINE_string("target", "", f"With --dry_run: chip to compile for, {WORDS}")


def described() -> Any | None:
    """Return the `targets.chips.Target` that is asked for; None: none is.

    Raises:
      ValueError: one flag is there without the other, or the chip cannot be compiled for.
    """
    name, dry = flags.FLAGS["target"].value, flags.FLAGS["dry_run"].value
    if not name and not dry:
        return None
    if not name:
        raise wrong("target", None, f"{WORDS}, for --dry_run")
    if not dry:
        raise wrong("target", name, "none without --dry_run")
    from driftar_jax.targets import chips  # takes a second, and most runs need none of it

    return chips.describe(name)
