r"""Time the sampler: seconds per image, where they go, and the memory it takes.

  python -m driftar_jax.benchmark --workdir=runs/drift --out=runs/speed
  python -m driftar_jax.benchmark --config=configs/mar_base.py --random_weights \
      --ar_steps=8 --nfe=25 --batch_sizes=1,4 --out=runs/speed

With a config the weights are random: the times are those of any weights, the images mean nothing.
"""

import os

from absl import flags
from ml_collections import config_flags

from driftar_jax import config
from driftar_jax.cli import program as cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, FILE.py[:SIZE].")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder written by train or convert.")
_RANDOM = flags.DEFINE_bool("random_weights", False, "Needs --config, which implies it.")
_OUT = flags.DEFINE_string("out", None, "Folder for benchmark.json and benchmark.md; may be left.")
_METHOD = flags.DEFINE_string("method", None, "own | drift | mean; what the modules can.")
_AR_STEPS = flags.DEFINE_integer("ar_steps", None, "AR steps; the config's by default.")
_NFE = flags.DEFINE_integer("nfe", None, "Head evaluations per AR step (own head).")
_NFE_SCHEDULE = flags.DEFINE_string("nfe_schedule", None, "constant | two_stage | linear | cosine.")
_NFE_LAST = flags.DEFINE_integer("nfe_last", None, "What --nfe falls to, unless constant.")
_GUIDANCE = flags.DEFINE_float("guidance", None, "Guidance scale; 1 is none.")
_GAMMA = flags.DEFINE_string("gamma", None, "AR steps drafted per round, or auto; plain beside.")
_RULE = flags.DEFINE_string("rule", None, "gaussian | coupled | feature; how drafts are accepted.")
_DELTA = flags.DEFINE_float("delta", None, "Bound of the rules coupled and feature.")
_STOP = flags.DEFINE_string("stop", None, "Entropy under which drafting ends; 0 never, or auto.")
_BATCHES = flags.DEFINE_list("batch_sizes", ["1", "4"], "Images per call.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Timed calls of each kind.")
_CONTROLS = flags.DEFINE_bool("controls", False, "Also fewer and falling head steps, AR steps.")


def main(_) -> None:
    # After the flags: loading takes seconds.
    from driftar_jax.evaluation import benchmark, draft_timing
    from driftar_jax.reports import timing
    from driftar_jax.sampling import draft_count

    with cli.user_errors():
        if not all(b.isdigit() and int(b) > 0 for b in _BATCHES.value) or not _BATCHES.value:
            raise config.wrong("batch_sizes", ",".join(_BATCHES.value), "numbers of at least 1")
        if _ROUNDS.value < 1:
            raise config.wrong("rounds", _ROUNDS.value, "a whole number of at least 1")
        if _RANDOM.value and _WORKDIR.value:
            raise config.wrong("random_weights", True, "false for a --workdir")
        subject, weights = timing.open_subject(_CONFIG.value, _WORKDIR.value)
        changes = {
            "method": _METHOD.value,
            "ar_steps": _AR_STEPS.value,
            "nfe": _NFE.value,
            "nfe_schedule": _NFE_SCHEDULE.value,
            "nfe_last": _NFE_LAST.value,
            "guidance": _GUIDANCE.value,
            "gamma": draft_count.parse(_GAMMA.value),
            "rule": _RULE.value,
            "delta": _DELTA.value,
            "stop": draft_count.parse_stop(_STOP.value),
        }
        if changes["gamma"] and _CONFIG.value is not None:
            raise config.wrong("gamma", _GAMMA.value, "0: what random weights accept says nothing")
        table = benchmark.methods(subject.settings(**changes), _CONTROLS.value)
        for _, asked in table:
            asked.check(subject.parts)
    before = os.getloadavg()[0]
    sizes = [int(b) for b in _BATCHES.value]
    rows = benchmark.measure(subject, table, batch_sizes=sizes, rounds=_ROUNDS.value)
    draft_timing.tell(subject, rows, repetitions=_ROUNDS.value)
    if _OUT.value:
        timing.write(_OUT.value, rows, weights, (before, os.getloadavg()[0]))


if __name__ == "__main__":
    cli.run(main)
