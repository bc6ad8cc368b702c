"""The Python API: `driftar_jax.load(workdir).sample(labels, seed)`."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import linen as nn

from driftar_jax import model
from driftar_jax.checkpoints import Checkpoints, abstract_like, read_config
from driftar_jax.config import check_stored, wrong
from driftar_jax.data import captions, latents
from driftar_jax.heads import early_stop
from driftar_jax.published import stored as published
from driftar_jax.sampling import draft_count, sampler, speculate
from driftar_jax.sharding import make_mesh, replicated
from driftar_jax.training import tasks
from driftar_jax.types import Counts
from driftar_jax.vae import pixels


@dataclasses.dataclass(frozen=True)
class Samples:
    """uint8 `images [n, H, W, C]`, what one image cost, and what was drafted, if anything was.

    `speculation` is a `speculate.summary`, `gamma` what was used for it.
    """

    images: np.ndarray
    counts: Counts
    gamma: int = 0
    speculation: dict | None = None


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A checkpoint ready to sample.

    Attributes:
      config: resolved config of its run.
      parts: modules.
      params: averaged parameters by group; `tracker` is the entropy's, where training kept it.
      step: the step they are from.
      manifest: facts stored beside them.
      to_pixels: what makes uint8 images of the token grids; None where these are latents and no
        autoencoder was given.
      book: captions and their vocabulary, where the host reads text.
    """

    config: Any
    parts: model.Parts
    params: dict[str, Any]
    step: int
    manifest: dict
    to_pixels: Callable[[jax.Array], jax.Array] | None = sampler.as_pixels
    book: captions.Book | None = None

    def settings(self, **changes) -> sampler.Settings:
        """Sampling settings of the config, with the given fields changed.

        Raises:
          ValueError: the early stop of the checkpoint is asked for, and it has no statistics.
        """
        c = self.config.sample
        base = sampler.Settings(
            method="own" if self.config.task == "host" else "drift",
            ar_steps=c.ar_steps,
            nfe=c.nfe,
            guidance=float(c.guidance),
            guidance_schedule=c.guidance_schedule,
            temperature=float(c.temperature),
            spacing=c.get("spacing", "even"),  # of the diffusion head alone
            drift_scale=float(c.get("drift_scale", 1.0)),
            # Not in the configs of older runs.
            nfe_schedule=c.get("nfe_schedule", "constant"),
            nfe_last=c.get("nfe_last", 1),
            guidance_form="trained" if self._learned_guidance else "extrapolate",
            gamma=c.get("gamma", 0),
            rule=c.get("rule", "gaussian"),
            delta=float(c.get("delta", 1.0)),
            stop=early_stop.TRAINED if "tracker" in self.params else 0.0,
        )
        settings = base.changed(**changes)
        self._check_stop(settings)
        return settings

    def _check_stop(self, settings: sampler.Settings) -> None:
        if settings.stop == early_stop.TRAINED and "tracker" not in self.params:
            allowed = "0 to 1 (no statistics of the entropy in this checkpoint)"
            raise wrong("stop", "auto", allowed)

    @property
    def _learned_guidance(self) -> bool:
        return self.parts.decoder is not None and self.parts.decoder.guidance

    def checked(self, **changes) -> sampler.Settings:
        """`settings`, once it is sure that images can be made with them; else ValueError."""
        settings = self.settings(**changes)
        self.check(settings)
        return settings

    def check(self, settings: sampler.Settings) -> None:
        """Raises ValueError (field, value, allowed) where images cannot be made with `settings`."""
        settings.check(self.parts)
        self._check_stop(settings)
        if settings.guidance_form == "trained" and settings.method == "drift":
            most = self.config.drift.guidance_max
            if settings.guidance > most:
                raise wrong("guidance", settings.guidance, f"1 to {most:g} (what was trained)")
        if self.to_pixels is None:
            allowed = "--vae=FOLDER written by convert --family=vae-kl16 (these tokens are latents)"
            raise wrong("vae", None, allowed)

    def conditions(self, labels, seed: int) -> np.ndarray:
        """What the sampler is given for `labels`: themselves, or rows of captions.

        Args:
          labels: `[n]` classes; or n texts, where the host reads them; or rows of this method.
          seed: chooses among the captions of a class, of images that no model was trained on.

        Raises:
          ValueError: a text is given to a host of classes, or does not fit.
        """
        words = [label for label in labels if isinstance(label, str)]
        text = self.parts.images.text
        if text is None:
            if words:
                raise wrong("labels", words[0], "class numbers: this checkpoint reads no text")
            return np.asarray(labels, np.int32)
        if words:
            return self.book.rows(list(labels))
        labels = np.asarray(labels, np.int32)
        if labels.ndim == 2:
            return labels
        most = self.parts.images.num_classes - 1
        for label in labels[(labels < -1) | (labels > most)]:
            raise wrong("labels", int(label), f"0 to {most}, or -1 for none")
        if self.book is None:  # nobody trained this checkpoint
            return np.tile(captions.nothing(text), (len(labels), 1))
        return self.book.rows(self.book.drawn(labels, seed))

    def sample(self, labels, seed: int = 0, *, batch_size: int = 256, **changes) -> Samples:
        """Generate one image per label.

        Args:
          labels: `[n]` integers, classes; -1 for none. Or n captions, where the host reads text.
          seed: 0..2**31-1; the same seed and labels give the same images.
          batch_size: images per call; changes the speed, not the images.
          **changes: fields of `sampler.Settings`: method, ar_steps, nfe, nfe_schedule, nfe_last,
            guidance, guidance_form, guidance_schedule, temperature, drift_scale, spacing,
            gamma, rule, delta, stop.

        Returns:
          `Samples`.

        Raises:
          ValueError: a label or setting is out of range, before any compilation.
        """
        settings, labels = self.checked(**changes), self.conditions(labels, seed)
        if settings.drafts < 0:
            batch = min(batch_size, len(labels))
            given = self.parts, settings, self.params, batch
            settings = draft_count.choose(*given, labels=labels).settings
        rest = {"batch_size": batch_size, "to_pixels": self.to_pixels}
        if not settings.drafts:
            images, counts = sampler.sample_images(
                self.parts, settings, self.params, labels, seed, **rest
            )
            return Samples(images=images, counts=counts)
        images, found = sampler.sample_drafted(
            self.parts, settings, self.params, labels, seed, **rest
        )
        return Samples(images, speculate.counts(found), settings.gamma, speculate.summary(found))


def load(
    workdir: str | pathlib.Path,
    step: int | None = None,
    vae: str | pathlib.Path | None = None,
) -> Loaded:
    """Read the averaged parameters of a run or of a converted checkpoint.

    Args:
      workdir: folder written by `train` or `convert`.
      step: a kept step; None is the newest.
      vae: folder of the autoencoder, for checkpoints whose tokens are latents; None takes the one
        that the training set was encoded with.

    Returns:
      `Loaded`.

    Raises:
      ValueError: no checkpoint there, one of another task, or one that does not fit its config;
        `vae` is missing, does not fit, or is not wanted.
    """
    config = stored_config(workdir)
    if config.task not in ("host", "drift", "draft", published.TASK):
        allowed = f"host | drift | draft | {published.TASK} ({workdir})"
        raise ValueError(f"workdir: got task {config.task!r}, allowed {allowed}")
    params, manifest, step = read_weights(workdir, step)
    with _written_by_a_run(workdir):
        return _loaded(workdir, config, params, manifest, step, vae)


def _loaded(workdir, config, params, manifest, step, vae) -> Loaded:
    tracked = manifest.get("tracked", {})
    if {"entropy_mean", "entropy_square"} <= tracked.keys():
        seen = tracked["entropy_mean"], tracked["entropy_square"]
        params = params | {"tracker": early_stop.of_training(*seen)}
    images = image_spec(manifest)
    parts, book = model.build(config, images), book_of(workdir, images)
    to_pixels = pixels_of(config, manifest, vae)
    return Loaded(config, parts, params, step, manifest, to_pixels, book)


def stored_config(workdir: str | pathlib.Path) -> Any:
    """The config of a workdir, whose values are such as a run can have had.

    Raises:
      ValueError: there is none, or a value is not; one line.
    """
    stored = read_config(workdir)
    with _written_by_a_run(workdir):
        if stored["task"] != published.TASK:
            check_stored(stored)
        return ml_collections.ConfigDict(stored)


_WRONG_KINDS = (LookupError, AttributeError, TypeError, ArithmeticError)


@contextlib.contextmanager
def _written_by_a_run(workdir: str | pathlib.Path):
    """Files may hold anything: what does not become modules ends in one line."""
    try:
        yield
    except (*_WRONG_KINDS, RecursionError, ValueError) as error:
        lines = str(error).strip().splitlines() or [""]
        if isinstance(error, ValueError) and len(lines) == 1 and ": got " in lines[0]:
            raise
        raise ValueError(
            f"workdir: got {str(workdir)!r}, allowed one whose config.json and manifest were "
            f"written by train or convert ({type(error).__name__}: {lines[0][:200]})"
        ) from error


def book_of(workdir: str | pathlib.Path, images: model.ImageSpec) -> captions.Book | None:
    """The captions of a run, where its host reads text; ValueError where they are not there."""
    if images.text is None:
        return None
    return captions.read_book(workdir, images.text, images.grid)


def pixels_of(config: Any, manifest: dict, vae: str | pathlib.Path | None = None):
    """`Loaded.to_pixels` of a run: with the autoencoder `vae`, else that of its training set.

    Raises:
      ValueError: `vae` is not wanted or does not fit.
    """
    if not latents.is_latents(config.data.name):
        if vae is not None:
            raise wrong("vae", str(vae), "none: the tokens of this checkpoint are pixels")
        return sampler.as_pixels
    known = manifest.get("vae")
    if vae is None and (known is None or not pathlib.Path(known).exists()):
        return None
    return pixels.load(vae or known, manifest["image_shape"][-1], manifest.get("vae_fingerprint"))


def random(config: Any, images: model.ImageSpec, seed: int = 0) -> Loaded:
    """A checkpoint that nobody trained: small normal arrays, good for timing alone."""
    rng = np.random.default_rng(seed)
    abstract = jax.eval_shape(tasks.build(config, images).init, jax.random.key(0))
    draw = lambda a: jax.device_put(0.02 * rng.standard_normal(a.shape, np.float32))  # noqa: E731
    params = jax.tree.map(draw, nn.meta.unbox(abstract))
    return Loaded(config, model.build(config, images), params, step=0, manifest={})


def image_spec(manifest: dict) -> model.ImageSpec:
    """What the run's data decided, from its manifest.

    Raises:
      ValueError: a fact is missing, or of another kind.
    """
    shape, names = manifest.get("image_shape"), manifest.get("class_names")
    patch = manifest.get("patch_size")
    for field, given, allowed, fits in (
        ("image_shape", shape, "three whole numbers", _counts(shape) and len(shape) == 3),
        ("class_names", names, "a list of names", _names(names)),
        ("patch_size", patch, "a whole number of at least 1", _counts([patch])),
    ):
        if not fits:
            raise wrong(f"manifest {field}", given, allowed)
    text = manifest.get("text")
    if text and not _is_text(text):
        raise wrong("manifest text", text, "numbers of a prompt, as train writes them")
    return model.ImageSpec(
        text=captions.TextSpec.from_json(text) if text else None,
        image_shape=tuple(manifest["image_shape"]),
        class_names=tuple(manifest["class_names"]),
        patch_size=manifest["patch_size"],
    )


def _counts(given: Any) -> bool:
    """Whether these are whole numbers of at least 1, none larger than an image can be."""
    return isinstance(given, list | tuple) and all(
        type(n) is int and 1 <= n <= 2**16 for n in given
    )


def _is_text(given: Any) -> bool:
    """Whether this is a `captions.TextSpec`, as JSON holds it."""
    fields = {field.name for field in dataclasses.fields(captions.TextSpec)}
    if not isinstance(given, dict) or given.keys() != fields:
        return False
    suffix = given["suffix"]
    numbers = [value for name, value in given.items() if name != "suffix"]
    return isinstance(suffix, list) and all(type(n) is int for n in numbers + suffix)


def _names(given: Any) -> bool:
    return (
        isinstance(given, list | tuple)
        and len(given) > 0
        and all(isinstance(n, str) for n in given)
    )


def read_weights(workdir: str | pathlib.Path, step: int | None = None):
    """Averaged parameters, manifest and step of a workdir, replicated over the devices.

    Raises:
      ValueError: there is no such checkpoint, or it does not fit the workdir's config.
    """
    config = stored_config(workdir)
    checkpoints = Checkpoints(workdir, create=False)
    newest = checkpoints.latest_step()
    if newest is None:
        raise ValueError(f"workdir: got {str(workdir)!r}, allowed one with a finished checkpoint")
    step = newest if step is None else step
    manifest = checkpoints.restore(step)["manifest"]
    with _written_by_a_run(workdir):
        if config.task == published.TASK:
            shapes = published.abstract(published.module(config), config.phi)
        else:
            task = tasks.build(config, image_spec(manifest))
            shapes = nn.meta.unbox(jax.eval_shape(task.init, jax.random.key(0)))
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, np.float32), shapes)
    everywhere = replicated(make_mesh())
    placed = abstract_like(shapes, jax.tree.map(lambda _: everywhere, shapes))
    params = checkpoints.restore(step, ema=placed)["ema"]
    checkpoints.close()
    return params, manifest, step
