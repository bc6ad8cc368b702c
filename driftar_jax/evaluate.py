r"""Compare a host's own head with Drift-AR: quality, speed, premise, pictures.

  python -m driftar_jax.evaluate --workdir=runs/drift --baseline=runs/own --judge=runs/judge \
      --out=runs/report

  python -m driftar_jax.evaluate --images=FOLDER_OR_NPZ --judge=runs/judge --out=runs/report

The second form measures pictures of anybody, from a folder or a .npz with `arr_0`.

Several workdirs (one per training seed, paired in order) give means and spreads over them. The
moments of the real images are left in `reference.npz` of the report.
"""

from absl import flags

from driftar_jax.cli import program as cli
from driftar_jax.evaluation import quality
from driftar_jax.reports import given_images, session

_WORKDIR = flags.DEFINE_list("workdir", None, "Drift-AR runs, one per training seed.")
_BASELINE = flags.DEFINE_list(
    "baseline", None, "Runs of the own head, paired with --workdir; or what convert wrote."
)
_VAE = flags.DEFINE_string(
    "vae", None, "Folder of convert --family=vae-f8, of a --baseline that convert wrote."
)
_JUDGE = flags.DEFINE_string("judge", None, "Run of the classifier whose features measure.")
_INCEPTION = flags.DEFINE_string(
    "inception", None, "Folder of convert --family=inception; its features measure instead."
)
_REFERENCE = flags.DEFINE_string(
    "reference",
    None,
    "A .npz of mu and sigma that samples are compared with, not the real set; with --images also "
    "real pictures, a folder or a .npz with arr_0.",
)
_IMAGES = flags.DEFINE_string("images", None, "Pictures to measure: a folder, .npz with arr_0.")
_METRICS = flags.DEFINE_list(
    "metrics", None, "Beside distance and class accuracy, all by default; may be empty."
)
_OUT = flags.DEFINE_string("out", None, "Folder for report.md, report.json and pictures.")
_NUM = flags.DEFINE_integer("num", 2048, "Images per method and seed.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Sampling seeds per pair of runs.")
_BATCHES = flags.DEFINE_list("batch_sizes", ["16", "256"], "Batch sizes of the speed table.")
_CONTROLS = flags.DEFINE_boolean(
    "controls", False, "Also head steps that fall over the AR steps, and fewer AR steps."
)
_GUIDANCE = flags.DEFINE_list("guidance", [], "Also these scales, each in every way to reach it.")
_RIVALS = flags.DEFINE_bool("rivals", False, "Also caches and orders of others (MAR).")
_DRAFTERS = flags.DEFINE_list(
    "draft_workdir",
    [],
    "With --rivals: models that draft for each --baseline (CSpD, MAR).",
)
_LOOKAHEAD = flags.DEFINE_integer("lookahead", 0, "Also both heads looking ahead so many tokens.")
_AR_STEPS = flags.DEFINE_list("ar_steps", [], "Also both heads in so many AR steps each.")
_DELTA = flags.DEFINE_float("delta", None, "How far a guess of --lookahead may move; 0.02.")
_OVERWRITE = flags.DEFINE_boolean("overwrite", False, "Replace a report that is there.")
flags.mark_flag_as_required("out")


def main(_) -> None:
    """Compare both heads and write the report; with `--images` score a folder of pictures alone."""
    with cli.user_errors():
        if _IMAGES.value is not None:
            print(_given())
            return
        for flag in (_WORKDIR, _BASELINE, _JUDGE):
            if not flag.value:
                raise ValueError(f"{flag.name}: got nothing, allowed --{flag.name}=VALUE")
        request = session.Request(
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
            metrics=quality.OPTIONAL if _METRICS.value is None else _METRICS.value,
            controls=_CONTROLS.value,
            rivals=_RIVALS.value,
            drafters=_DRAFTERS.value,
            guidance=_GUIDANCE.value,
            lookahead=_LOOKAHEAD.value,
            delta=_DELTA.value,
            ar_steps=_AR_STEPS.value,
            vae=_VAE.value,
        )
        compared = session.open_session(request)
    pairs = f"{len(compared.runs)} pairs of runs, {len(compared.images)} real images"
    cli.loaded(pairs)
    print(compared.run())


def _given() -> str:
    for flag in (_WORKDIR, _BASELINE, _VAE):
        if flag.value:
            raise ValueError(f"{flag.name}: got a value, allowed none beside --images")
    return given_images.measure(
        _IMAGES.value,
        _OUT.value,
        judge=_JUDGE.value,
        inception_dir=_INCEPTION.value,
        reference=_REFERENCE.value,
        metrics=given_images.METRICS if _METRICS.value is None else _METRICS.value,
        overwrite=_OVERWRITE.value,
    )


if __name__ == "__main__":
    cli.run(main)
