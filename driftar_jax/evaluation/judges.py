"""The real set that samples are held against, opened from the run of its classifier."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import ml_collections
import numpy as np

from driftar_jax.config import CONVERTED, wrong
from driftar_jax.data import pipeline
from driftar_jax.data.pipeline import open_data
from driftar_jax.evaluation import networks, quality
from driftar_jax.features import inception
from driftar_jax.features.classifier import SmallClassifier
from driftar_jax.sampling import conditions, generator, inpaint, load
from driftar_jax.storage.checkpoints import read_config

_NO_SOURCES = "without source pictures (edits are drawn by sample)"


@dataclasses.dataclass(frozen=True)
class Judge:
    """A run of task `classifier`.

    Attributes:
      workdir: of the run.
      settings: its config.
      network: the classifier as a network that measures.
      image_shape: `(H, W, C)` of the images it reads.
    """

    workdir: str
    settings: ml_collections.ConfigDict
    network: networks.Network
    image_shape: tuple[int, ...]

    def check(self, measured: Iterable[generator.Generator]) -> None:
        """Refuse checkpoints that make other images; raises ValueError."""
        for loaded in measured:
            if loaded.model.images.edits:
                raise wrong("workdir", "a run on pairs", f"runs {_NO_SOURCES}")
            if inpaint.pixel_shape(loaded) != self.image_shape:
                raise wrong("judge", self.workdir, "a classifier of the same images")

    def open_sources(self) -> list[Any]:
        """Open the splits `train` and `test` of the set that the classifier was trained on."""
        return [open_data(self.settings, split) for split in ("train", "test")]


def open_judge(workdir: str) -> Judge:
    """Load the classifier trained in `workdir`; raises ValueError if it is another task's run."""
    settings = ml_collections.ConfigDict(read_config(workdir))
    if (task := settings.get("task")) != "classifier":
        raise wrong("judge", workdir, f"a run of task classifier, not {task}")
    params, manifest, _ = load.read_weights(workdir)
    module = SmallClassifier(len(manifest["class_names"]), settings.classifier.width)
    network = networks.classifier(module, params["classifier"])
    return Judge(workdir, settings, network, tuple(manifest["image_shape"]))


def open_subject(workdir: str, task: str, flag: str) -> generator.Generator:
    """Load a run that will be measured; raises ValueError, of `flag`, where its task is another."""
    loaded = load.load(workdir)
    if loaded.config.task != task:
        raise wrong(flag, workdir, f"a run of task {task}, not {loaded.config.task}")
    if loaded.model.images.edits:
        raise wrong(flag, workdir, f"a run {_NO_SOURCES}")
    return loaded


def open_baseline(workdir: str, drift: generator.Generator, vae: str | None) -> generator.Generator:
    """Load what a Drift-AR run is compared with: a run of task host, or a converted one.

    A converted checkpoint is asked for images of the run's size, by the captions that the run draws
    for its classes.

    Args:
      workdir: of the baseline.
      drift: the run.
      vae: folder of the autoencoder of a converted checkpoint; None: the baseline is none.

    Raises:
      ValueError: it is neither, or not of the run's kind; one line.
    """
    if load.stored_config(workdir).task != CONVERTED:
        if vae is not None:
            raise wrong("vae", vae, f"none: {workdir} is no converted checkpoint")
        return open_subject(workdir, "host", "baseline")
    if drift.reader.takes != "captions":
        allowed = "a run of task host: the run of --workdir has no captions to ask others by"
        raise wrong("baseline", workdir, allowed)
    loaded = load.load(workdir, vae=vae)
    # The judge reads images of one size, and a converted checkpoint makes whatever it is asked for.
    size = inpaint.pixel_shape(drift)[:2]
    sized = loaded.sized(conditions.Request(size=size))
    # It has no classes of its own, and is asked by those of the run.
    names = drift.model.images.class_names
    images = dataclasses.replace(sized.model.images, class_names=names)
    reader = dataclasses.replace(loaded.reader, book=drift.reader.book)
    model = dataclasses.replace(sized.model, images=images)
    return dataclasses.replace(sized, model=model, reader=reader)


def some_real(
    loaded: generator.Generator,
    images: np.ndarray,
    labels: np.ndarray,
    captions: list[str] | None,
    most: int,
) -> tuple[np.ndarray, Any]:
    """Choose real images, always the same, and say what they are.

    Args:
      loaded: the checkpoint that is told.
      images: `[N, H, W, C]` of a set, `labels [N]` and, for hosts that read text, its captions.
      captions: of the images; None where nobody reads them.
      most: images chosen at most.

    Returns:
      At most so many images, and the conditions that say what they are.
    """
    # The same images whoever is told of them: figures of two checkpoints are then of one set.
    chosen = np.random.default_rng(0).permutation(len(images))[:most]
    words = None if captions is None else [captions[i] for i in chosen]
    return images[chosen], loaded.reader.of_real(loaded.model, labels[chosen], words)


def open_inception(workdir: str) -> networks.Network:
    """Load InceptionV3 from a converted folder; raises ValueError if it holds something else."""
    try:
        return networks.inception(*inception.load(workdir))
    except ValueError as error:
        allowed = f"a folder written by convert --family=inception ({error})"
        raise wrong("inception", workdir, allowed) from error


def check_num(num: int, width: int) -> None:
    """Refuse fewer samples than a covariance of `width` features needs; raises ValueError."""
    if num <= width:
        raise wrong("num", num, f"more than {width} (the feature width)")


def all_images(sources: Iterable[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Read images `[N, H, W, C]` uint8 and labels `[N]` of several splits, one after the other."""
    images, labels = (
        np.concatenate(arrays)
        for arrays in zip(*(pipeline.all_images(source) for source in sources), strict=True)
    )
    return images, labels


def all_captions(sources: Iterable[Any]) -> list[str]:
    """Read the captions of the images of `all_images`; the sets must have them."""
    return [text for source in sources for text in source.captions]


def open_real(
    workdir: str,
    num: int,
    metrics: Iterable[str] = (),
    measured: Iterable[generator.Generator] = (),
) -> quality.RealSet:
    """Read all images of the set, with the classifier as the network that measures.

    Args:
      workdir: a run of task `classifier`.
      num: samples that will be measured.
      metrics: of `quality.OPTIONAL`.
      measured: checkpoints that will be measured.

    Raises:
      ValueError: it is another run, of other images, or there are too few samples or images for
        its features.
    """
    judge = open_judge(workdir)
    check_num(num, judge.network.width)
    judge.check(measured)
    sources = judge.open_sources()
    images, labels = all_images(sources)
    network = judge.network
    return quality.RealSet(network, network, images, labels, len(sources[0]), metrics=metrics)
