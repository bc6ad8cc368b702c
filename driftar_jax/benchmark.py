r"""Time the sampler: seconds per image, where they go, and the memory it takes.

  python -m driftar_jax.benchmark --workdir=runs/drift --out=runs/speed
  python -m driftar_jax.benchmark --config=configs/mar_base.py --random_weights \
      --ar_steps=8 --nfe=25 --batch_sizes=1,4 --out=runs/speed

With a config the weights are random: the times are those of any weights, the images mean nothing.
With `--draft_workdir`, or a `--draft_config` beside `--config`, a second model drafts (CSpD).
With `--windows=4,16` calls that make so many tokens (`--lookahead`) are timed beside plain ones.
With `--dry_run --target=tpu:v5e:1x1` or `gpu:h100:1` nothing is timed: the compiler of that chip
says what the sampler needs, and no such chip is needed.
"""

import os

from absl import flags
from ml_collections import config_flags

from driftar_jax import config
from driftar_jax.cli import files, sampling_flags, target_flags
from driftar_jax.cli import program as cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, FILE.py[:SIZE].")
_DRAFT = flags.DEFINE_string("draft_config", None, "Of a draft model, beside --config.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder written by train or convert.")
_RANDOM = flags.DEFINE_bool("random_weights", False, "Needs --config, which implies it.")
_OUT = flags.DEFINE_string("out", None, "Folder for benchmark.json and benchmark.md; may be left.")
_VAE = flags.DEFINE_string("vae", None, "Folder of the autoencoder, where tokens are latents.")
_BATCHES = flags.DEFINE_list("batch_sizes", ["1", "4"], "Images per call.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Timed calls of each kind.")
_COUNT = flags.DEFINE_bool("count", False, "Count rows and operations; nothing is run (MAR).")
_CONTROLS = flags.DEFINE_bool("controls", False, "Also fewer and falling head steps, AR steps.")
_WINDOWS = flags.DEFINE_list("windows", [], "Time calls that make so many tokens, and only them.")
sampling_flags.define()
sampling_flags.define_drafter()
sampling_flags.define_size()
target_flags.define()


def main(_) -> None:
    """Time the methods of a checkpoint, or say what their programs need: `--count`, `--dry_run`."""
    # After the flags: loading takes seconds.
    from driftar_jax.evaluation import benchmark, draft_timing, windows
    from driftar_jax.reports import counting, timing
    from driftar_jax.sampling import dry_run
    from driftar_jax.sampling.conditions import Request

    with cli.user_errors():
        target = target_flags.described()
        if not all(b.isdecimal() and int(b) > 0 for b in _BATCHES.value) or not _BATCHES.value:
            raise config.wrong("batch_sizes", ",".join(_BATCHES.value), "numbers of at least 1")
        if _ROUNDS.value < 1:
            raise config.wrong("rounds", _ROUNDS.value, "a whole number of at least 1")
        if _RANDOM.value and _WORKDIR.value:
            raise config.wrong("random_weights", True, "false for a --workdir")
        drawn = target is None and not _COUNT.value
        subject, weights = timing.open_subject(
            _CONFIG.value, _WORKDIR.value, _VAE.value, drawn=drawn
        )
        draft = files.load(_DRAFT.value, "draft_config") if _DRAFT.value else None
        drafts = draft, flags.FLAGS.draft_workdir
        if drafts != (None, None):
            subject = subject.with_drafter(timing.open_subject(*drafts, drawn=drawn)[0])
        subject = subject.sized(Request(sampling_flags.size()))
        changes = sampling_flags.changes()
        for name in ("gamma", "lookahead"):
            if changes[name] and _CONFIG.value is not None:
                raise config.wrong(
                    name, changes[name], "0: what random weights accept says nothing"
                )
        if _COUNT.value and subject.model.family.order != "any":
            raise config.wrong("count", True, "false for this host: its rows are its calls")
        settings, sizes = subject.checked(**changes), [int(b) for b in _BATCHES.value]
        window_sizes = windows.check(subject, settings, _WINDOWS.value)
        table = benchmark.methods(subject, settings, _CONTROLS.value)
    if _COUNT.value:
        for line in counting.lines(subject.model, settings):
            print(line)
        return
    # A busy machine slows what is timed: how busy it was stands beside the result.
    before = os.getloadavg()[0]
    if target is not None:
        with cli.user_errors():
            for size in sizes:
                for name, settings in table:
                    condition = subject.reader.trial(subject.model, settings, size)
                    lines = dry_run.lines(subject, settings, condition, target)
                    print("\n".join([f"method             {name}", *lines]), flush=True)
        return
    cli.loaded(f"{len(table)} methods, {len(sizes)} batch sizes")
    if window_sizes:
        rest = {"batch_sizes": sizes, "rounds": _ROUNDS.value}
        costs = windows.costs(subject, settings.plainly, window_sizes, **rest)
        if _OUT.value:
            timing.write_windows(_OUT.value, costs, subject, weights, (before, os.getloadavg()[0]))
        return
    rows = benchmark.measure(subject, table, batch_sizes=sizes, rounds=_ROUNDS.value)
    draft_timing.tell(subject, rows, repetitions=_ROUNDS.value)
    if _OUT.value:
        timing.write(_OUT.value, rows, weights, (before, os.getloadavg()[0]))


if __name__ == "__main__":
    cli.run(main)
