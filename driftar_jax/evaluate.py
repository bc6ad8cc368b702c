"""Compare a host's own head with Drift-AR: quality, speed, premise, pictures.

  python -m driftar_jax.evaluate --workdir=runs/drift --baseline=runs/own --judge=runs/judge \
      --out=runs/report

Several workdirs (one per training seed, paired in order) give means and spreads over them. The
moments of the real images are left in `reference.npz` of the report.
"""

from absl import flags

from driftar_jax.cli import program as cli
from driftar_jax.evaluation import quality
from driftar_jax.reports import session

_WORKDIR = flags.DEFINE_list("workdir", None, "Drift-AR runs, one per training seed.")
_BASELINE = flags.DEFINE_list("baseline", None, "Runs of the own head, paired with --workdir.")
_JUDGE = flags.DEFINE_string("judge", None, "Run of the classifier whose features measure.")
_INCEPTION = flags.DEFINE_string(
    "inception", None, "Folder of convert --family=inception; its features measure instead."
)
_REFERENCE = flags.DEFINE_string(
    "reference", None, "A .npz of mu and sigma that samples are compared with, not the real set."
)
_METRICS = flags.DEFINE_list(
    "metrics", list(quality.OPTIONAL), "Beside distance and class accuracy; may be empty."
)
_OUT = flags.DEFINE_string("out", None, "Folder for report.md, report.json and pictures.")
_NUM = flags.DEFINE_integer("num", 2048, "Images per method and seed.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Sampling seeds per pair of runs.")
_BATCHES = flags.DEFINE_list("batch_sizes", ["16", "256"], "Batch sizes of the speed table.")
_CONTROLS = flags.DEFINE_boolean(
    "controls", False, "Also head steps that fall over the AR steps, and fewer AR steps."
)
_GUIDANCE = flags.DEFINE_list("guidance", [], "Also these scales, each in every way to reach it.")
_OVERWRITE = flags.DEFINE_boolean("overwrite", False, "Replace a report that is there.")
flags.mark_flags_as_required(["workdir", "baseline", "judge", "out"])


def main(_) -> None:
    with cli.user_errors():
        compared = session.open_session(
            drifts=_WORKDIR.value,
            baselines=_BASELINE.value,
            judge=_JUDGE.value,
            out=_OUT.value,
            num=_NUM.value,
            seeds=_SEEDS.value,
            batch_sizes=_BATCHES.value,
            overwrite=_OVERWRITE.value,
            inception_dir=_INCEPTION.value,
            reference=_REFERENCE.value,
            metrics=_METRICS.value,
            controls=_CONTROLS.value,
            guidance=_GUIDANCE.value,
        )
    print(compared.run())


if __name__ == "__main__":
    cli.run(main)
