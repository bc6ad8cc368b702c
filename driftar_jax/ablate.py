r"""Ablations: trains and measures every arm of a sweep, for every seed, and writes their table.

  python -m driftar_jax.ablate --sweep=configs/sweeps/mar_small.py:digits8 --out=runs/ablation

The same command goes on where it was stopped: what has a result is not run again, what was cut goes
on from its checkpoint. SIGTERM or Ctrl-C ends it between two steps, with status 0.
"""

from absl import flags

from driftar_jax import config
from driftar_jax.cli import program as cli
from driftar_jax.training import stopping

_SWEEP = flags.DEFINE_string("sweep", None, "Sweep file, FILE.py[:SIZE].")
_OUT = flags.DEFINE_string("out", None, "Folder of results and runs; made, or gone on with.")
_SEEDS = flags.DEFINE_list("seeds", [], "Of the sweep's seeds; all by default.")
_ONLY = flags.DEFINE_list("only", [], "Names of arms; all by default.")
flags.mark_flags_as_required(["sweep", "out"])


def main(_) -> None:
    """Run the arms and seeds that have no result yet, and write the table of all that have."""
    from driftar_jax.reports import ablation_table
    from driftar_jax.sweeps import (
        ablation,  # after the flags: loading takes seconds
        arms,
    )

    with cli.user_errors():
        sweep = arms.read(_SWEEP.value)
        seeds = [_seed(word, sweep.seeds) for word in _SEEDS.value] or list(sweep.seeds)
        for name in _ONLY.value:
            if name not in sweep.arms:
                near = config.nearest(name, sweep.arms)
                raise config.wrong("only", name, f"{' | '.join(sweep.arms)}{near}")
    with stopping.on_signals() as wish, cli.stops(), cli.user_errors():
        with ablation.Ablation(sweep, _OUT.value, say=_say, stop=wish) as sweeping:
            done = sweeping.run(seeds, _ONLY.value)
        table = ablation_table.write(_OUT.value)
    _say(table)
    if not done:
        _say(f"stopped by {wish()}: the same command goes on from there")


def _seed(word: str, allowed: tuple[int, ...]) -> int:
    if not word.isdecimal() or int(word) not in allowed:
        raise config.wrong("seeds", word, " | ".join(map(str, allowed)))
    return int(word)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    cli.run(main)
