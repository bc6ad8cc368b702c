r"""Do one-step draws deviate from many-step ones in the same contexts, and where?

  python -m driftar_jax.deviation --workdir=runs/drift --baseline=runs/own --out=runs/deviation

Several workdirs (one per training seed, paired in order) give means over them, and what two
trainings of the own head differ by. Contexts are of images of the test split; a token's draws are
compared by energy distance and moments.
"""

import pathlib

import numpy as np
from absl import flags

from driftar_jax import config
from driftar_jax.cli import program as cli
from driftar_jax.storage.pages import write_page

_WORKDIR = flags.DEFINE_list("workdir", None, "Drift-AR runs, one per training seed.")
_BASELINE = flags.DEFINE_list("baseline", None, "Runs of the own head, paired with --workdir.")
_OUT = flags.DEFINE_string("out", None, "New folder for deviation.json, .md and .png.")
_CONTEXTS = flags.DEFINE_integer("contexts", 64, "Images that are partly known.")
_TOKENS = flags.DEFINE_integer("tokens", 4, "Unknown tokens asked for in each.")
_DRAWS = flags.DEFINE_integer("draws", 256, "Draws of each token; an even number.")
flags.mark_flags_as_required(["workdir", "baseline", "out"])


def main(_) -> None:
    """Compare the draws of `--workdir` and `--baseline`, and write numbers, picture and page."""
    from driftar_jax.data import pipeline
    from driftar_jax.data.pipeline import open_data
    from driftar_jax.evaluation import deviation, judges
    from driftar_jax.reports import deviation_table
    from driftar_jax.sampling import contexts
    from driftar_jax.storage.jsons import write_json
    from driftar_jax.training import runs  # after the flags: loading takes seconds

    with cli.user_errors():
        out = pathlib.Path(_OUT.value)
        if (out / "deviation.json").exists():
            raise config.wrong("out", _OUT.value, "a folder without deviation.json")
        if len(_WORKDIR.value) != len(_BASELINE.value):
            allowed = f"as many runs as --workdir, {len(_WORKDIR.value)}"
            raise config.wrong("baseline", len(_BASELINE.value), allowed)
        if _DRAWS.value < 4 or _DRAWS.value % 2:
            raise config.wrong("draws", _DRAWS.value, "an even number of at least 4")
        drifts = [judges.open_subject(w, "drift", "workdir") for w in _WORKDIR.value]
        owns = [judges.open_subject(w, "host", "baseline") for w in _BASELINE.value]
        images = drifts[0].model.images
        for run in (*owns, *drifts):
            if run.model.images != images or not contexts.possible(run):
                raise config.wrong("workdir", _WORKDIR.value[0], "runs of MAR on the same tokens")
        if not 1 <= _TOKENS.value <= images.num_tokens:
            raise config.wrong("tokens", _TOKENS.value, f"1 to {images.num_tokens}")
        held, labels = pipeline.all_images(open_data(drifts[0].config, "test"))
        if not 1 <= _CONTEXTS.value <= len(held):
            raise config.wrong("contexts", _CONTEXTS.value, f"1 to {len(held)} (the test split)")
        if _CONTEXTS.value * _TOKENS.value < deviation.BINS:
            allowed = f"at least {deviation.BINS} tokens in all contexts together"
            raise config.wrong("contexts", _CONTEXTS.value, allowed)
        chosen = np.random.default_rng(0).permutation(len(held))[: _CONTEXTS.value]
        out.mkdir(parents=True, exist_ok=True)
    cases = contexts.of_generation(
        held[chosen], labels[chosen], images.patch_size, per_image=_TOKENS.value
    )
    cli.loaded(f"{len(drifts)} pairs of runs, {_CONTEXTS.value} contexts")
    others = [*owns[1:], owns[0]] if len(owns) > 1 else [None]
    pairs = [
        deviation.measure(own, drift, cases, _DRAWS.value, again)
        for own, drift, again in zip(owns, drifts, others, strict=True)
    ]
    facts = {
        "command": cli.command("deviation"),
        "data": f"{drifts[0].config.data.name}, {_CONTEXTS.value} contexts of its test split",
        "draws": f"{_DRAWS.value} of each of {_TOKENS.value} tokens a context",
        "steps": f"own head {owns[0].step}, Drift-AR {drifts[0].step}",
        "machine": runs.environment(),
    }
    record = {"pairs": pairs, "facts": facts}
    write_json(out / "deviation.json", record)
    deviation.picture(out / "deviation.png", pairs)
    text = "\n".join(deviation_table.lines(record))
    write_page(out / "deviation.md", text + "\n")
    print(text)


if __name__ == "__main__":
    cli.run(main)
