"""The real set that samples are held against, opened from the run of its classifier."""

from collections.abc import Iterable

import ml_collections
import numpy as np

from driftar_jax import generator, runs
from driftar_jax.checkpoints import read_config
from driftar_jax.config import wrong
from driftar_jax.data import pipeline
from driftar_jax.evaluation import networks, quality
from driftar_jax.features import SmallClassifier


def open_real(workdir: str, num: int, metrics: Iterable[str] = ()) -> quality.RealSet:
    """All images of the set, with the classifier as the network that measures.

    Args:
      workdir: a run of task `classifier`.
      num: samples that will be measured.
      metrics: of `quality.OPTIONAL`.

    Raises:
      ValueError: it is another run, or there are too few samples or images for its features.
    """
    settings = ml_collections.ConfigDict(read_config(workdir))
    if (task := settings.get("task")) != "classifier":
        raise wrong("judge", workdir, f"a run of task classifier, not {task}")
    width = settings.classifier.width
    if num <= width:
        raise wrong("num", num, f"more than {width} (the feature width)")
    params, manifest, _ = generator.read_weights(workdir)
    module = SmallClassifier(len(manifest["class_names"]), width)
    network = networks.classifier(module, params["classifier"])
    sources = [runs.open_data(settings, split) for split in ("train", "test")]
    images, labels = (
        np.concatenate(arrays)
        for arrays in zip(*(pipeline.all_images(s) for s in sources), strict=True)
    )
    return quality.RealSet(network, network, images, labels, len(sources[0]), metrics=metrics)
