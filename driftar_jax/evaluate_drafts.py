r"""What speculative decoding saves and costs: calls against quality, for every rule and gamma.

  python -m driftar_jax.evaluate_drafts --workdir=runs/draft --judge=runs/judge --out=runs/drafts

Several workdirs (one per training seed) give means and spreads over them. With it stand the target
alone with as many backbone calls, what gamma=auto chose, and acceptance by entropy.

  python -m driftar_jax.evaluate_drafts --join=runs/match,runs/none --out=runs/losses

puts the drafted rows of finished reports into one table.

  python -m driftar_jax.evaluate_drafts --workdir=runs/drift --judge=runs/judge \
      --lookahead=8,16 --out=runs/ahead

measures looking ahead instead, on a host that makes one token after another; several workdirs are
rows of one table, and a run of the own head may stand among them alone.
"""

import os
import pathlib

import jax
from absl import flags

from driftar_jax import config
from driftar_jax.cli import program as cli
from driftar_jax.cli import sampling_flags
from driftar_jax.evaluation import ahead, judges, quality, speculation, windows
from driftar_jax.heads import early_stop
from driftar_jax.reports import ahead_table, speculation_report
from driftar_jax.sampling import load
from driftar_jax.targets import precision

_WORKDIR = flags.DEFINE_list("workdir", None, "Drift-AR or draft runs, one per training seed.")
_JUDGE = flags.DEFINE_string("judge", None, "Run of the classifier whose features measure.")
_OUT = flags.DEFINE_string("out", None, "New folder for drafts.md and drafts.json.")
_NUM = flags.DEFINE_integer("num", 1024, "Images per row, run and seed.")
_SEEDS = flags.DEFINE_integer("seeds", 1, "Sampling seeds per run.")
_BATCHES = flags.DEFINE_list("batch_sizes", ["1", "64"], "Images per call; the largest judges.")
_COUPLED = flags.DEFINE_list("coupled", ["2"], "Bounds of the rule coupled; may be empty.")
_FEATURE = flags.DEFINE_list("feature", ["0.1"], "Bounds of the rule feature; may be empty.")
_STOP = flags.DEFINE_string("stop", None, "Entropy under which drafting ends; 0 never, or auto.")
_AHEAD = flags.DEFINE_list("lookahead", [], "Tokens made in a call: measures looking ahead.")
_DELTAS = flags.DEFINE_list("deltas", ["0", "0.02"], "How far a guess of --lookahead may move.")
_BOUNDS = flags.DEFINE_list("bounds", ["entropy"], "What bounds are proportional to.")
_GAMMAS = flags.DEFINE_list("gammas", [], "Drafts per call of rows beside --lookahead.")
_ROUNDS = flags.DEFINE_string("rounds", "5", "Timed batches of each row of --lookahead.")
_JOIN = flags.DEFINE_list("join", None, "Finished reports to put into one table, joined.md.")
flags.mark_flag_as_required("out")


def main(_) -> None:
    """Measure speculative decoding or lookahead of the workdirs; `--join` joins earlier results."""
    if _JOIN.value is not None:
        with cli.user_errors():
            out = pathlib.Path(_OUT.value)
            out.mkdir(parents=True, exist_ok=True)
            print(speculation_report.join(out, _JOIN.value))
        return
    with cli.user_errors():
        for name, flag in (("workdir", _WORKDIR), ("judge", _JUDGE)):
            if not flag.value:
                raise config.wrong(name, None, f"--{name}=FOLDER, or --join alone")
        out = pathlib.Path(_OUT.value)
        if (out / "drafts.json").exists():
            raise config.wrong("out", _OUT.value, "a folder without drafts.json")
        for name, value in (("num", _NUM.value), ("seeds", _SEEDS.value)):
            if value < 1:
                raise config.wrong(name, value, "a whole number of at least 1")
        sizes = _BATCHES.value
        if not sizes or not all(b.isdecimal() and int(b) > 0 for b in sizes):
            raise config.wrong("batch_sizes", ",".join(sizes), "whole numbers of at least 1")
        sizes = [int(b) for b in sizes]
        looking = _open_ahead(out, sizes) if _AHEAD.value else None
    if looking is not None:
        _look_ahead(out, *looking)
        return
    with cli.user_errors():
        deltas = {"coupled": _bounds("coupled", _COUPLED), "feature": _bounds("feature", _FEATURE)}
        loaded = [load.load(workdir) for workdir in _WORKDIR.value]
        table = speculation.ways(loaded[0], deltas, sampling_flags.parse_stop(_STOP.value))
        for run in loaded:
            for way in table:
                run.check(way.settings)
        real = judges.open_real(_JUDGE.value, _NUM.value, measured=loaded)
        out.mkdir(parents=True, exist_ok=True)
    cli.loaded(f"{len(loaded)} runs, {len(real.images)} real images")
    bench = speculation.Bench(loaded, real, _NUM.value, _SEEDS.value, sizes)
    record = bench.measure(table)
    facts = _facts(loaded, real) | {"early stop": _early_stop(loaded, table[0].settings.stop)}
    print(speculation_report.write(out, record, facts))


def _open_ahead(out: pathlib.Path, sizes: list[int]) -> tuple[ahead.Bench, tuple]:
    """Return what looks ahead and what it is asked; ValueError where a flag is wrong."""
    if (out / "lookahead.json").exists():
        raise config.wrong("out", _OUT.value, "a folder without lookahead.json")
    runs = {pathlib.Path(workdir).name: load.load(workdir) for workdir in _WORKDIR.value}
    if len(runs) < len(_WORKDIR.value):
        raise config.wrong("workdir", ",".join(_WORKDIR.value), "folders of different names")
    size, gammas = _counts("lookahead", _AHEAD.value), _counts("gammas", _GAMMAS.value)
    ranges = size, _bounds("deltas", _DELTAS), _BOUNDS.value, gammas
    rounds = _counts("rounds", [_ROUNDS.value])[0]
    for run in runs.values():
        for settings in ahead.ways(run, *ranges).values():
            run.check(settings)
    real = judges.open_real(_JUDGE.value, _NUM.value, measured=runs.values())
    return ahead.Bench(runs, real, _NUM.value, _SEEDS.value, sizes, rounds), ranges


def _look_ahead(out: pathlib.Path, bench: ahead.Bench, ranges: tuple) -> None:
    out.mkdir(parents=True, exist_ok=True)
    loaded = list(bench.runs.values())
    cli.loaded(f"{len(loaded)} runs, {len(bench.real.images)} real images")
    first, rest = loaded[0], {"batch_sizes": bench.batch_sizes, "rounds": bench.rounds}
    record = {"ahead": bench.measure(ranges), "contraction": bench.contraction()}
    record["calls"] = windows.costs(
        first, first.settings(), [w for w in ranges[0] if w > 1], **rest
    )
    facts = _facts(loaded, bench.real) | {"host": windows.size_in_words(first)}
    print(ahead_table.write(out, {"facts": facts, **record}))


def _counts(name: str, words: list[str]) -> tuple[int, ...]:
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise config.wrong(name, ",".join(words), "whole numbers of at least 1")
    return tuple(map(int, words))


def _bounds(name: str, flag) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in flag.value)
    except ValueError:
        raise config.wrong(name, ",".join(flag.value), "numbers from 0") from None


def _early_stop(loaded, stop: float) -> str:
    if stop != early_stop.TRAINED:
        return f"tau_g {stop:g}" if stop else "off"
    taus = [float(early_stop.global_threshold(run.params["tracker"])) for run in loaded]
    return f"tau_g {', '.join(f'{tau:.3f}' for tau in taus)} of the checkpoints' entropies"


def _facts(loaded, real: quality.RealSet) -> dict[str, str]:
    first, device = loaded[0], jax.devices()[0]
    return {
        "command": cli.command("evaluate_drafts"),
        "checkpoints": f"{len(loaded)} of task {first.config.task}, step {first.step}",
        "images": f"{_NUM.value} per row, {_SEEDS.value} sampling seeds on each checkpoint",
        "distance": f"fd_{real.network.name} to {len(real.images)} real images of "
        f"{first.config.data.name}; {real.floor():.2f} between two halves of them",
        "device": f"{device.device_kind}, {os.cpu_count()} CPU cores",
        "products of float32": precision.words(),
        "load average": f"{os.getloadavg()[0]:.1f}",
    }


if __name__ == "__main__":
    cli.run(main)
