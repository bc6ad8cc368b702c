"""What the recordings of this folder hold: pictures and training metrics at the smallest sizes.

`python tests/recorded/cases.py` writes them anew; that is done once, and never to pass a test.
"""

import functools
import importlib
import json
import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tiny
from flax import linen as nn

from driftar_jax import model
from driftar_jax.data import captions
from driftar_jax.features import maps
from driftar_jax.sampling import conditions, generator, texts
from driftar_jax.training import tasks

FOLDER = pathlib.Path(__file__).parent
# Captions of at most 4 words, N = 6 tokens of C = 4 channels in a grid of 2x3.
TEXTS = ["red fox", "blue fox sits", "a red bird here", "bird"]
GRID = (2, 3)
FITTED = captions.fit("set", TEXTS, GRID, 4)
OF_TEXT = model.ImageSpec((4, 6, 1), tuple("abc"), patch_size=2, text=FITTED.spec)
BOOK = captions.Book(
    captions.WordTokenizer(FITTED.tokenizer), FITTED.spec, GRID, (("red fox",), ("bird",), ("fox",))
)
# Host, task, file and size of its config, changes of the config.
RUNS = {
    "mar_own": ("mar_small", "tiny", {}),
    "mar_drift": ("drift_mar_small", "tiny", {"drift.guidance_max": 3.0}),
    "mar_draft": ("draft_mar_small", "tiny", {}),
    "transdiff_own": ("transdiff_small", "tiny", {}),
    "mrar_own": ("transdiff_small", "tiny_mrar", {"host.row_patch": 1}),
    "transdiff_drift": ("drift_transdiff", "tiny", {}),
    "nextstep_own": ("nextstep_small", "tiny", {}),
    "nextstep_drift": ("drift_nextstep", "tiny", {}),
    "classifier": ("classifier", "tiny", {}),
    "mae": ("mae", "tiny", {}),
}
SMALL = {
    "host.width": 8,
    "host.num_heads": 2,
    "host.buffer_size": 3,
    "host.mlp_width": 10,
    "drift.width": 6,
    "drift.num_heads": 2,
    "draft.width": 6,
    "draft.num_heads": 2,
    "data.image_size": 12,
    "data.patch_size": 2,
}
GUIDED = {"guidance": 2.0, "guidance_form": "extrapolate"}
TRAINED = {"guidance": 2.0, "guidance_form": "trained"}
DRAFTED = {"gamma": 2, "rule": "gaussian"}
COUPLED = {"gamma": 2, "rule": "coupled", "delta": 0.3}
# Pictures: run, changes of the settings. The first of each host stand for the others in fast tests.
PICTURES = {
    "mar_own": ("mar_own", {"nfe": 3}),
    "mar_own_guided": ("mar_own", {"nfe": 3, "guidance": 2.0}),
    "mar_own_annealed": ("mar_own", {"nfe": 4, "nfe_last": 2, "nfe_schedule": "linear"}),
    "mar_drift": ("mar_drift", {"guidance_form": "extrapolate"}),
    "mar_drift_guided": ("mar_drift", GUIDED),
    "mar_drift_trained": ("mar_drift", TRAINED),
    "mar_mean": ("mar_drift", {"method": "mean", "guidance_form": "extrapolate"}),
    "mar_drafted": ("mar_drift", DRAFTED),
    "mar_drafted_guided": ("mar_drift", DRAFTED | GUIDED),
    "mar_coupled": ("mar_drift", COUPLED),
    "transdiff_own": ("transdiff_own", {"nfe": 3}),
    "transdiff_own_guided": ("transdiff_own", {"nfe": 3, "guidance": 2.0}),
    "mrar_own": ("mrar_own", {"nfe": 3}),
    "mrar_own_guided": ("mrar_own", {"nfe": 3, "guidance": 2.0, "guidance_schedule": "linear"}),
    "transdiff_drift": ("transdiff_drift", {"guidance_form": "extrapolate"}),
    "transdiff_drift_guided": ("transdiff_drift", GUIDED),
    "transdiff_drift_trained": ("transdiff_drift", TRAINED),
    "transdiff_mean": ("transdiff_drift", {"method": "mean", "guidance_form": "extrapolate"}),
    "nextstep_own": ("nextstep_own", {"nfe": 3}),
    "nextstep_own_guided": ("nextstep_own", {"nfe": 3, "guidance": 2.0}),
    "nextstep_drift": ("nextstep_drift", {"guidance_form": "extrapolate"}),
    "nextstep_drift_guided": ("nextstep_drift", GUIDED),
    "nextstep_drift_trained": ("nextstep_drift", TRAINED),
    "nextstep_mean": ("nextstep_drift", {"method": "mean", "guidance_form": "extrapolate"}),
    "nextstep_drafted": ("nextstep_drift", DRAFTED),
    "nextstep_drafted_guided": ("nextstep_drift", DRAFTED | GUIDED),
    "nextstep_coupled": ("nextstep_drift", COUPLED),
}
FAST = ("mar_own_guided", "mar_drafted_guided", "mar_drift_trained", "mrar_own_guided")
FAST += ("transdiff_drift_guided", "nextstep_drafted")
# Large enough that guidance shows, small enough that not all pixels end at black or white.
SCALE = 0.2
LABELS = np.array([0, 2, 1, -1, 0], np.int32)


def config_of(run):
    """The config of a run, with all sizes small."""
    file, size, changes = RUNS[run]
    made = importlib.import_module(f"configs.{file}").get_config(size)
    for name, value in (SMALL | changes).items():
        section, field = name.split(".")
        if section in made and field in made[section]:
            made[section][field] = value
    if "host" in made and made.host.name == "nextstep":
        made.sample.ar_steps = 6
    return ml_collections.ConfigDict(made.to_dict())


def images_of(run):
    """The spec of its images."""
    return OF_TEXT if run.startswith("nextstep") else tiny.IMAGES


@functools.cache
def loaded(run):
    """A run ready to sample, at random parameters."""
    config, images = config_of(run), images_of(run)
    params = tiny.params(tasks.build(config, images).init, scale=SCALE)
    reader = texts.Captions(BOOK) if images.text else conditions.Classes()
    modules = model.build(config, images)
    return generator.Generator(config, modules, params, step=0, manifest={}, reader=reader)


def picture(name):
    """uint8 images `[5, 4, 6, 1]` of a case."""
    run, changes = PICTURES[name]
    return loaded(run).sample(LABELS, seed=3, batch_size=5, **changes).images


def metrics(run):
    """Loss, metrics and the norm of the gradient of two steps, one of each phase."""
    space = (maps.Identity(), None) if run == "transdiff_drift" else None
    task = tasks.build(config_of(run), images_of(run), space)
    params = tiny.params(task.init, scale=SCALE)
    batch = tiny.batch(8) | {"label": np.array([0, 2, 1, 0, 1, 0, 2, 0], np.int32)}
    if images_of(run).text:
        batch["text"] = np.resize(FITTED.rows, (8, FITTED.rows.shape[1]))
    extra = ()
    if hasattr(task, "init_extra"):
        key = jax.random.key(5)
        extra = (task.update_extra(nn.meta.unbox(task.init_extra(key)), batch, key),)

    @functools.partial(jax.jit, static_argnums=1)
    def step(number, frozen):
        call = jax.value_and_grad(task.loss, has_aux=True)
        key = jax.random.key(1)
        (value, terms), grads = call(params, batch, key, number, frozen, *extra)
        norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(grads)))
        return terms | {"loss": value, "gradient_norm": norm}

    return {
        phase: {name: float(value) for name, value in sorted(step(number, frozen).items())}
        for phase, number, frozen in (("first", 2, False), ("second", 5, True))
    }


def main():
    """Write the recordings."""
    np.savez_compressed(FOLDER / "images.npz", **{name: picture(name) for name in PICTURES})
    recorded = {run: metrics(run) for run in RUNS}
    (FOLDER / "metrics.json").write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main()
