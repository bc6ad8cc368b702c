"""Whether a run learns: its samples against pictures that it never sees, every so many steps.

The loss of Drift-AR is no measure of progress; a proper score of samples is, for any head.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from driftar_jax.config import wrong
from driftar_jax.data import is_latents, pipeline
from driftar_jax.data.pixels import to_unit_range
from driftar_jax.features import classifier
from driftar_jax.hosts.base import ImageSpec
from driftar_jax.sampling import load
from driftar_jax.sampling.generator import Generator

PICTURES = 128
EVERY, JUDGE = "train.held_out_every", "train.judge"


def energy_score(first: np.ndarray, second: np.ndarray, real: np.ndarray) -> float:
    """Return a proper score of two samples x, x' for each picture y, the mean over pictures.

    That is `(|x - y| + |x' - y|) / 2 - |x - x'| / 2`. Lower is better: in expectation nothing
    scores lower than the law of y itself (Gneiting and Raftery, 2007). Distances are root mean
    squares of grey levels in [-1, 1].

    Args:
      first, second, real: uint8 `[n, H, W, C]`; row i of all is of one condition.

    Raises:
      ValueError: the shapes differ.
    """
    if not first.shape == second.shape == real.shape:
        got = f"{first.shape}, {second.shape} and {real.shape}"
        raise ValueError(f"images: got shapes {got}, allowed one shape")

    def far(a, b):
        # Not in uint8, which wraps around below 0.
        apart = a.astype(np.float64) - b
        return np.sqrt(np.square(apart / 127.5).mean(axis=(1, 2, 3)))

    to_real = (far(first, real) + far(second, real)) / 2
    return float(np.mean(to_real - far(first, second) / 2))


@dataclasses.dataclass(frozen=True)
class Judge:
    """A trained classifier: the share of pictures that it takes for what they should be."""

    network: classifier.SmallClassifier
    params: Any

    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        """Return the share of uint8 `images [n, H, W, C]` that are taken for `labels [n]`."""
        logits = _logits(self.network, self.params, images)
        return float((np.argmax(logits, axis=-1) == labels).mean())


@functools.partial(jax.jit, static_argnums=0)
def _logits(network: classifier.SmallClassifier, params, images: jax.Array) -> jax.Array:
    # The same products on every device: the curves of two machines are laid side by side.
    with jax.default_matmul_precision("highest"):
        return network.apply({"params": params}, to_unit_range(images))[1]


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Pictures that nothing learns from, and what samples for them are told.

    Attributes:
      split: of the set.
      images: uint8 `[n, H, W, C]`.
      labels: `[n]` classes.
      subjects: `[n]` of what `Generator.sample` takes: classes or captions.
      judge: None where none is given.
      sources: uint8 `[n, H, W, C]`, what the captions of edits are about; None: they are not.
    """

    split: str
    images: np.ndarray
    labels: np.ndarray
    subjects: list
    judge: Judge | None
    sources: np.ndarray | None = None

    def measure(self, loaded: Generator) -> dict[str, Any]:
        """Sample twice for every picture, with the same noise at every step of a run.

        Returns:
          `split`, `pictures`, `energy_score`, and with a judge `accuracy` of the samples and
          `accuracy_real` of the pictures.
        """
        # An image's noise follows its place in the list, so the halves are two draws of the same
        # conditions. The seed never changes: what moves the curve is the model alone.
        sources = () if self.sources is None else [*self.sources, *self.sources]
        subjects = [*self.subjects, *self.subjects]
        images = loaded.sample(subjects, seed=0, sources=sources).images
        first, second = np.split(images, 2)
        figures = {
            "split": self.split,
            "pictures": len(self.images),
            "energy_score": energy_score(first, second, self.images),
        }
        if self.judge is not None:
            labels = np.concatenate([self.labels, self.labels])
            figures["accuracy"] = self.judge.accuracy(images, labels)
            figures["accuracy_real"] = self.judge.accuracy(self.images, self.labels)
        return figures


def open_held_out(settings: Any, images: ImageSpec) -> HeldOut | None:
    """Choose the pictures of a run, always the same; None where `train.held_out_every` is 0.

    Raises:
      ValueError: the set has no other part or holds latents, or the judge is none of such images;
        field, value, allowed.
    """
    every, judge = settings.train.get("held_out_every", 0), settings.train.get("judge", "")
    if not every:
        if judge:
            raise wrong(JUDGE, judge, f"'' while {EVERY} is 0")
        return None
    if is_latents(settings.data.name):
        raise wrong(EVERY, every, "0 for a set of latents, whose pictures are not there")
    try:
        source = pipeline.open_data(settings, "test")
    except ValueError as error:
        raise wrong(EVERY, every, f"0 for a set without another part ({error})") from None
    # From all over the set: the first pictures of a sorted one would be of few classes.
    chosen = np.random.default_rng(0).permutation(len(source))[:PICTURES]
    chosen = np.sort(chosen)
    real, labels = source.gather(chosen)
    subjects = labels.tolist()
    if images.text is not None:
        subjects = [source.captions[i] for i in chosen]
    sources = source.originals.gather(chosen)[0] if images.edits else None
    judge = _judge(judge, images) if judge else None
    return HeldOut(source.split, real, labels, subjects, judge, sources)


def _judge(workdir: str, images: ImageSpec) -> Judge:
    try:
        config = load.stored_config(workdir)
        params, manifest, _ = load.read_weights(workdir)
    except ValueError as error:
        raise wrong(JUDGE, workdir, f"a run of task classifier ({error})") from error
    if config.task != "classifier":
        raise wrong(JUDGE, workdir, f"a run of task classifier, not {config.task}")
    shape, names = list(images.image_shape), list(images.class_names)
    if manifest["image_shape"] != shape or manifest["class_names"] != names:
        raise wrong(JUDGE, workdir, "a classifier of the same images and classes")
    return Judge(classifier.build(config, len(names)), params["classifier"])
