"""A training run: workdir, data, task and loop put together from a checked config."""

import contextlib
import dataclasses
import functools
import os
import pathlib
import subprocess
from typing import Any

import jax
import numpy as np

import driftar_jax
from driftar_jax import config, model, seeds
from driftar_jax.data import captions, is_latents, pictures, pipeline, prompts
from driftar_jax.sampling import contexts, generator, load
from driftar_jax.storage import checkpoints, hub, jsons, paths
from driftar_jax.targets import precision
from driftar_jax.training import held_out, journal, locks, loop, optim, phi, processes, specs, tasks
from driftar_jax.vae import reconstruction, stored

GRID_IMAGES = 64
HELD_OUT_IMAGES = 512  # whose reconstruction is measured on the way
STORED_SOURCES = 256  # pictures that stand beside the captions of a run on edits
HELD_OUT_CONTEXTS, HELD_OUT_DRAWS = 256, 8  # images whose unknown tokens are drawn on the way

VERSIONED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclasses.dataclass
class Run:
    """One run; `start` gives its state, `go_on` trains it to the end. Close it, or use `with`."""

    settings: Any
    workdir: pathlib.Path
    images: model.ImageSpec
    batches: pipeline.Batches
    loop: loop.Loop
    weights: dict[str, Any] | None = None
    lock: locks.WorkdirLock | None = None
    steps_before: int | None = None
    scoring: held_out.HeldOut | None = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """End data threads and saves, and let the next run into the workdir."""
        self.batches.close()
        try:
            self.loop.close()
        finally:
            if self.lock is not None:
                self.lock.release()

    @seeds.fixed()
    def start(self, *, fall_back: bool = False):
        """Return the state of the newest checkpoint, else weights of `init_from`, else fresh.

        Args:
          fall_back: set damaged checkpoints aside instead of refusing them.

        Raises:
          ValueError: the checkpoint is damaged, or `init_from` is no checkpoint of this host.
        """
        state = self.loop.restore(self.batches, fall_back=fall_back)
        if state is not None:
            if processes.leads() and (line := self._longer(int(state.step))):
                print(line)
            return state
        weights, self.weights = self.weights, None
        if weights is None:
            weights = _host_weights(self.settings, self.loop)
        return self.loop.fresh_state(weights)

    def _longer(self, step: int) -> str:
        """What a larger number of steps changes for a run that has done `step` of them."""
        now, before = self.settings.train.steps, self.steps_before
        if before in (None, now):
            return ""
        rates = [
            float(
                optim.learning_rate(
                    self.settings.optim.lr,
                    schedule=self.settings.optim.schedule,
                    warmup_steps=self.settings.optim.warmup_steps,
                    steps=steps,
                )(step)
            )
            for steps in (now, before)
        ]
        return (
            f"train.steps: {now}, before {before}: moments and order of the data go on, schedules "
            f"and phases are those of {now} steps from here (learning rate at step {step}: "
            f"{rates[0]:.3g}, before {rates[1]:.3g})"
        )

    @seeds.fixed()
    def go_on(self, state, **options):
        """Train to the last step, with pictures on the way; `options` are those of `Loop.run`."""
        # Pictures of several processes would need their averages in one place.
        show = None
        if jax.process_count() == 1 and self.settings.task in ("host", "drift", "draft"):
            show = self._pictures
        elif jax.process_count() == 1 and self.settings.task == "autoencoder":
            show = self._reconstructions
        score = self._held_out if self.scoring and jax.process_count() == 1 else None
        shown = {"on_sample": show, "on_held_out": score}
        try:
            return self.loop.run(state, self.batches, **shown, **options)
        finally:
            self.close()

    def _held_out(self, step: int, state) -> None:
        """A line in `held_out.jsonl`: a proper score of samples, and what a judge says of them."""
        manifest = self.loop.manifest
        to_pixels = load.pixels_of(self.settings, manifest)
        loaded = load.of_run(self.workdir, self.settings, state.ema, manifest, step, to_pixels)
        figures = self.scoring.measure(loaded)
        log = journal.MetricsLog(self.workdir / "held_out.jsonl", step - 1)
        log.write({"step": step, **figures})
        judged = ""
        if "accuracy" in figures:
            judged = (
                f", the judge takes {figures['accuracy']:.3f} for their class "
                f"({figures['accuracy_real']:.3f} of the real ones)"
            )
        score = f"{figures['split']} energy score {figures['energy_score']:.4f}"
        print(f"step {step}: {score} of {figures['pictures']} pictures{judged}", flush=True)

    def _reconstructions(self, step: int, state) -> None:
        """Held-out pictures over what comes back of them, and a line in `held_out.jsonl`."""
        try:
            source = pipeline.open_data(self.settings, "test")
        except ValueError:  # the set has no other part
            source = self.batches.source
        vae = stored.trained(self.settings.autoencoder)
        decoded = reconstruction.reconstruct(vae, state.ema, source, HELD_OUT_IMAGES)
        folder = self.workdir / "samples"
        folder.mkdir(exist_ok=True)
        pairs = decoded.pairs(GRID_IMAGES, columns=16)
        pictures.save_grid(folder / f"step_{step:08d}.png", pairs, columns=16)
        figures = decoded.figures()
        log = journal.MetricsLog(self.workdir / "held_out.jsonl", step - 1)
        log.write({"step": step, "split": source.split, **figures})
        print(f"step {step}: {source.split} PSNR {figures['psnr']:.2f} dB")

    def _pictures(self, step: int, state) -> None:
        manifest = self.loop.manifest
        to_pixels = load.pixels_of(self.settings, manifest)
        if to_pixels is None:
            print(f"step {step}: no pictures, for the autoencoder of the set is not there")
            return
        loaded = load.of_run(self.workdir, self.settings, state.ema, manifest, step, to_pixels)
        self._held_out_draws(step, loaded)
        images = loaded.sample(np.arange(GRID_IMAGES) % self.images.num_classes).images
        folder = self.workdir / "samples"
        folder.mkdir(exist_ok=True)
        pictures.save_grid(folder / f"step_{step:08d}.png", images, columns=8)
        _draw_curves(self.workdir)

    def _held_out_draws(self, step: int, loaded: generator.Generator) -> None:
        """Draws in contexts of held-out images: a line, and one in `held_out_draws.jsonl`.

        Of the one-step head alone: many draws of a many-step head would take as long as training.
        """
        if loaded.model.decoder is None or not contexts.possible(loaded) or not self._contexts:
            return
        score = contexts.score(loaded, self._contexts, HELD_OUT_DRAWS)
        log = journal.MetricsLog(self.workdir / "held_out_draws.jsonl", step - 1)
        log.write({"step": step, "split": "test", **dataclasses.asdict(score)})
        print(f"step {step}: {score.line()}")

    @functools.cached_property
    def _contexts(self) -> contexts.Contexts | None:
        """Contexts of some held-out pictures; None where the set has none, or is of latents."""
        if is_latents(self.settings.data.name):
            return None
        try:
            source = pipeline.open_data(self.settings, "test")
        except ValueError:  # the set has no other part
            return None
        chosen = np.random.default_rng(0).permutation(len(source))[:HELD_OUT_CONTEXTS]
        images, labels = source.gather(chosen)
        spec = self.images
        few = min(2, spec.num_tokens)
        return contexts.of_generation(images, labels, spec.patch_size, per_image=few)


@seeds.fixed()
def open_run(settings: Any, workdir: str) -> Run:
    """Check data and workdir, then build the run; nothing has been compiled.

    Raises:
      ValueError, OSError: data, sizes or workdir do not fit; one line.
    """
    source = pipeline.open_data(settings, "train")
    fitted = specs.fit_text(settings, source)
    batches = pipeline.Batches(
        source,
        batch_size=settings.train.batch_size,
        seed=settings.seed,
        # Latents cannot be mirrored: the step chooses between the moments of both images.
        flip=settings.data.flip and not is_latents(settings.data.name),
        text=fitted and fitted.rows,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    images = specs.of_source(settings, source, fitted)
    manifest = {
        "task": settings.task,
        "image_shape": list(images.image_shape),
        "class_names": list(images.class_names),
        "patch_size": images.patch_size,
        **_autoencoder(source),
        **({"text": images.text.as_json()} if images.text else {}),
        **environment(),
    }
    folder = pathlib.Path(paths.local("workdir", workdir)).absolute()
    whole_grids = settings.task == "drift" and "features" in settings.drift
    space = phi.load(settings, manifest) if whole_grids else None
    if settings.task == "autoencoder" and settings.autoencoder.perceptual:
        space = phi.perceptual(settings.autoencoder.features_from, manifest)
    if whole_grids and hasattr(source, "check_classes"):
        source.check_classes()
    task = tasks.build(settings, images, space)
    training = loop.Loop(task, settings, folder, manifest)
    if settings.task in ("host", "drift", "draft"):
        # Now, and not when the first pictures are made, at the end of a long run.
        parts = model.build(settings, images)
        generator.Generator(settings, parts, {}, 0, manifest).settings().check(parts)
    resumed = (folder / "config.json").exists()
    # Before the workdir is claimed: a mistake must not leave a workdir that belongs to it.
    score = None
    if settings.task in config.GENERATIVE and jax.process_count() == 1:
        score = held_out.open_held_out(settings, images)
    weights = None if resumed else _host_weights(settings, training)
    before = config.flatten(checkpoints.read_config(folder)).get("train.steps") if resumed else None
    with processes.leader_first("workdir"):
        lock = claim_workdir(workdir, settings) if processes.leads() else None
        if lock is not None and fitted and not (folder / prompts.FILE).exists():
            _write_text(folder, settings, source, fitted)
    return Run(settings, folder, images, batches, training, weights, lock, before, score)


def _draw_curves(workdir: pathlib.Path) -> None:
    """Draw `curves.png` of the log, which is empty where pictures are due before its first line."""
    records = journal.read_metrics(workdir / "metrics.jsonl")
    logged = {name for record in records for name in record}
    if names := [n for n in ("loss", "drift", "energy_score", "mu") if n in logged]:
        pictures.save_curves(workdir / "curves.png", {"train": records}, names)


def _write_text(folder: pathlib.Path, settings: Any, source, fitted: captions.Fitted) -> None:
    """`tokenizer.json`, and the captions of images that no model was trained on, by class."""
    if fitted.spec.source:
        _write_edits(folder, settings, source)
        jsons.write_json(folder / prompts.FILE, fitted.tokenizer)
        return
    try:
        held_out = _by_class(pipeline.open_data(settings, "test"))
    except ValueError:  # the set has no other part
        held_out = [()] * source.num_classes
    if not all(held_out):
        of_training = _by_class(source)
        held_out = [own or texts for own, texts in zip(held_out, of_training, strict=True)]
    jsons.write_json(folder / captions.FILE, held_out)
    jsons.write_json(folder / prompts.FILE, fitted.tokenizer)


def _write_edits(folder: pathlib.Path, settings: Any, source) -> None:
    """Texts of edits that no model was trained on, and their source pictures."""
    with contextlib.suppress(ValueError):  # the set has no other part
        source = pipeline.open_data(settings, "test")
    few = np.arange(min(len(source), STORED_SOURCES))
    captions.write_sources(folder, source.originals.gather(few)[0])
    jsons.write_json(folder / captions.FILE, [source.captions[: len(few)]])


def _by_class(source) -> tuple[tuple[str, ...], ...]:
    return captions.by_class(source.captions, source.labels(), source.num_classes)


def _autoencoder(source) -> dict[str, str]:
    """Which autoencoder the latents of a set are of, where it says so."""
    if getattr(source, "vae", None) is None:
        return {}
    return {"vae": source.vae, "vae_fingerprint": source.vae_fingerprint}


def claim_workdir(workdir: str, settings: Any) -> locks.WorkdirLock:
    """Make the workdir, or make sure that it belongs to this config; the lock that keeps it.

    Raises:
      ValueError: it belongs to another config, is not empty and no run's, or another run writes
        it; OSError: it cannot be written.
    """
    folder = pathlib.Path(paths.local("workdir", workdir)).absolute()
    _check_claim(folder, workdir, settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = locks.WorkdirLock(folder)
        # Again: another run may have come first while this one waited for the lock.
        _check_claim(folder, workdir, settings)
        jsons.write_json(folder / "config.json", settings.to_dict())
        jsons.write_json(folder / "environment.json", environment())
    except OSError as error:
        allowed = f"a folder that can be written ({error.strerror})"
        raise config.wrong("workdir", str(workdir), allowed) from error
    return lock


def _check_claim(folder: pathlib.Path, workdir: str, settings: Any) -> None:
    if paths.is_released(folder):
        allowed = "a folder of a run, not an export to a hub: begin at it by --config.init_from"
        raise config.wrong("workdir", str(workdir), allowed)
    if (folder / "config.json").exists():
        # A run with a checkpoint reads no more what it was begun from, which may have moved since.
        begun = any((folder / "checkpoints").glob("[0-9]*"))
        config.check_same_run(settings, checkpoints.read_config(folder), begun=begun)
    elif folder.exists() and (
        not folder.is_dir() or any(p.name != locks.FILE for p in folder.iterdir())
    ):
        raise config.wrong("workdir", str(workdir), "a new or empty folder, or one of a run")


def environment() -> dict[str, Any]:
    """Collect versions, device and git hash that a result depends on."""
    from importlib import metadata

    root = pathlib.Path(driftar_jax.__file__).parent.parent
    commit = ""
    # An installed package may lie in somebody else's repository.
    if (root / "pyproject.toml").exists():
        with contextlib.suppress(OSError):
            command = ["git", "-C", str(root), "rev-parse", "HEAD"]
            commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return {
        "driftar_jax": driftar_jax.__version__,
        "git": commit,
        "device": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "matmul": precision.words(),
        "cpu_count": os.cpu_count(),
        "versions": {name: metadata.version(name) for name in VERSIONED},
    }


def _host_weights(settings: Any, training: loop.Loop) -> dict[str, Any] | None:
    """The groups that a run takes from `init_from`, if they have these shapes; None: it has none.

    That is the host, with its own head where that stays beside Drift-AR, for task `autoencoder` all
    of it, or for task `draft` all that Drift-AR trained, and its draft head if it fits and a fresh
    one is not asked for.
    """
    draft = settings.task == "draft"
    every = draft or settings.task == "autoencoder"
    if not settings.init_from:
        if draft:
            raise config.wrong("init_from", "", "a Drift-AR checkpoint: task draft trains no more")
        return None
    fresh = ("draft",) if draft and settings.teacher.fresh_head else ()
    taken_from_hosts = ("host", "head") if settings.task == "drift" else ("host",)
    wanted = [
        n for n in training.abstract.params if (n in taken_from_hosts or every) and n not in fresh
    ]
    if not wanted:
        raise config.wrong("init_from", settings.init_from, "'' for a task without a host")
    try:
        params, _, _ = load.read_weights(settings.init_from)
    except ValueError as error:
        allowed = f"a folder with a checkpoint of a host ({error})"
        raise config.wrong("init_from", settings.init_from, allowed) from error
    taken = {}
    for name in wanted:
        if name not in params:
            holds = {"host": "a host", "head": "a host's own head"}.get(name, "Drift-AR")
            raise config.wrong("init_from", settings.init_from, f"a checkpoint that holds {holds}")
        have = jax.tree.map(np.shape, params[name])
        if have == jax.tree.map(lambda a: a.shape, training.abstract.params[name]):
            taken[name] = params[name]
        elif name != "draft":
            allowed = f"a checkpoint of a {name} of the same sizes"
            raise config.wrong("init_from", settings.init_from, allowed)
    if draft:
        _check_same_decoding(settings)
    return taken


def _check_same_decoding(settings: Any) -> None:
    """What the groups of `init_from` mean must not change under them."""
    then = config.flatten(checkpoints.read_config(hub.local(settings.init_from)))
    for name, value in config.flatten(settings).items():
        same_head = name.split(".")[0] in ("host", "prior", "drift")
        if same_head and name in then and then[name] != value:
            raise config.wrong(name, value, f"{then[name]!r}, as in init_from")
