"""A training run: workdir, data, task and loop put together from a checked config."""

import dataclasses
import os
import pathlib
import subprocess
from typing import Any

import jax
import numpy as np

import driftar_jax
from driftar_jax import assembly, checkpoints, config, generator, phi, pictures
from driftar_jax.data import latents, pipeline
from driftar_jax.training import loop, tasks

GRID_IMAGES = 64
VERSIONED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclasses.dataclass
class Run:
    """One run; `start` gives its state, `go_on` trains it to the end."""

    settings: Any
    workdir: pathlib.Path
    images: assembly.ImageSpec
    batches: pipeline.Batches
    loop: loop.Loop
    weights: dict[str, Any] | None = None

    def start(self):
        """State of the newest checkpoint, else weights of `init_from`, else fresh.

        Raises:
          ValueError: `init_from` is no checkpoint of this host.
        """
        state = self.loop.restore(self.batches)
        if state is not None:
            return state
        weights, self.weights = self.weights, None
        if weights is None:
            weights = _host_weights(self.settings, self.loop)
        return self.loop.fresh_state(weights)

    def go_on(self, state):
        """Train to the last step, with pictures on the way; data threads end with it."""
        show = self._pictures if self.settings.task in ("host", "drift") else None
        try:
            return self.loop.run(state, self.batches, on_sample=show)
        finally:
            self.batches.close()
            self.loop.checkpoints.close()

    def _pictures(self, step: int, state) -> None:
        parts = assembly.build(self.settings, self.images)
        manifest = self.loop.manifest
        to_pixels = generator.pixels_of(self.settings, manifest)
        if to_pixels is None:
            print(f"step {step}: no pictures, for the autoencoder of the set is not there")
            return
        loaded = generator.Loaded(self.settings, parts, state.ema, step, manifest, to_pixels)
        made = loaded.sample(np.arange(GRID_IMAGES) % self.images.num_classes).images
        folder = self.workdir / "samples"
        folder.mkdir(exist_ok=True)
        pictures.save_grid(folder / f"step_{step:08d}.png", made, columns=8)
        records = loop.read_metrics(self.workdir / "metrics.jsonl")
        names = [n for n in ("loss", "drift", "energy_score", "mu") if n in records[-1]]
        pictures.save_curves(self.workdir / "curves.png", {"train": records}, names)


def open_run(settings: Any, workdir: str) -> Run:
    """Check data and workdir, then build the run; nothing has been compiled.

    Raises:
      ValueError, OSError: data, sizes or workdir do not fit; one line.
    """
    source = open_data(settings, "train")
    batches = pipeline.Batches(
        source,
        batch_size=settings.train.batch_size,
        seed=settings.seed,
        # Latents cannot be mirrored: the step chooses between the moments of both images.
        flip=settings.data.flip and not latents.is_latents(settings.data.name),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    images = assembly.ImageSpec(
        image_shape=source.image_shape,
        class_names=tuple(source.class_names),
        patch_size=settings.data.patch_size,
    )
    manifest = {
        "task": settings.task,
        "image_shape": list(images.image_shape),
        "class_names": list(images.class_names),
        "patch_size": images.patch_size,
        **_autoencoder(source),
        **environment(),
    }
    folder = pathlib.Path(workdir).absolute()
    whole_grids = settings.task == "drift" and "features" in settings.drift
    space = phi.load(settings, manifest) if whole_grids else None
    task = tasks.build(settings, images, space)
    training = loop.Loop(task, settings, folder, manifest)
    if settings.task in ("host", "drift"):
        # Now, and not when the first pictures are made, at the end of a long run.
        parts = assembly.build(settings, images)
        generator.Loaded(settings, parts, {}, 0, manifest).settings().check(parts)
    resumed = (folder / "config.json").exists()
    # Before the workdir is claimed: a mistake must not leave a workdir that belongs to it.
    weights = None if resumed else _host_weights(settings, training)
    claim_workdir(workdir, settings)
    return Run(settings, folder, images, batches, training, weights)


def _autoencoder(source) -> dict[str, str]:
    """Which autoencoder the latents of a set are of, where it says so."""
    if getattr(source, "vae", None) is None:
        return {}
    return {"vae": source.vae, "vae_fingerprint": source.vae_fingerprint}


def open_data(settings: Any, split: str):
    """The image set of a config: `train` or `test` split."""
    return pipeline.load_source(
        settings.data.name,
        split,
        data_dir=settings.data.data_dir or None,
        image_size=settings.data.image_size,
        center_crop=settings.data.center_crop,
    )


def claim_workdir(workdir: str, settings: Any) -> pathlib.Path:
    """Make the workdir, or make sure that it belongs to this config.

    Raises:
      ValueError: it belongs to another config, or is not empty and no run's; OSError: it cannot
        be written.
    """
    folder = pathlib.Path(workdir).absolute()
    if (folder / "config.json").exists():
        config.check_same_run(settings, checkpoints.read_config(folder))
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise config.wrong("workdir", str(workdir), "a new or empty folder, or one of a run")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoints.write_json(folder / "config.json", settings.to_dict())
        checkpoints.write_json(folder / "environment.json", environment())
    except OSError as error:
        allowed = f"a folder that can be written ({error.strerror})"
        raise config.wrong("workdir", str(workdir), allowed) from error
    return folder


def environment() -> dict[str, Any]:
    """Versions, device and git hash that a result depends on."""
    from importlib import metadata

    root = pathlib.Path(driftar_jax.__file__).parent.parent
    try:
        asked = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True
        )
        commit = asked.stdout.strip()
    except OSError:
        commit = ""
    return {
        "driftar_jax": driftar_jax.__version__,
        "git": commit,
        "device": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "cpu_count": os.cpu_count(),
        "versions": {name: metadata.version(name) for name in VERSIONED},
    }


def _host_weights(settings: Any, training: loop.Loop) -> dict[str, Any] | None:
    """The `host` group of the run `init_from`, if it has these shapes; None where none is asked."""
    if not settings.init_from:
        return None
    if "host" not in training.abstract.params:
        raise config.wrong("init_from", settings.init_from, "'' for a task without a host")
    try:
        params, _, _ = generator.read_weights(settings.init_from)
    except ValueError as error:
        allowed = f"a folder with a checkpoint of a host ({error})"
        raise config.wrong("init_from", settings.init_from, allowed) from error
    if "host" not in params:
        raise config.wrong("init_from", settings.init_from, "a checkpoint that holds a host")
    have = jax.tree.map(np.shape, params["host"])
    want = jax.tree.map(lambda a: a.shape, training.abstract.params["host"])
    if have != want:
        raise config.wrong(
            "init_from", settings.init_from, "a checkpoint of a host of the same sizes"
        )
    return {"host": params["host"]}
