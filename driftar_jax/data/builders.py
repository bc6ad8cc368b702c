"""TFDS builders of the embedded sets. Importing this file registers them by name."""

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from driftar_jax.data import embedded

VERSION = tfds.core.Version("1.0.0")
# With captions since 1.1.0; images and their order are those of 1.0.0.
VERSIONS = {"emoji32": tfds.core.Version("1.1.0")}


class _EmbeddedSet:
    """What the builders share: they differ in name and text only."""

    VERSION = VERSION
    DESCRIPTION = ""
    HOMEPAGE = ""
    LICENSE = ""

    def _info(self) -> tfds.core.DatasetInfo:
        arrays = embedded.load(self.name)
        features = {
            "image": tfds.features.Image(shape=arrays["image"].shape[1:], encoding_format="png"),
            "label": tfds.features.ClassLabel(names=[str(n) for n in arrays["names"]]),
        }
        if embedded.has_captions(self.name):
            features["caption"] = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage=self.HOMEPAGE,
            license=self.LICENSE,
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # Nothing is downloaded: the pictures are in the package.
        held_out = embedded.load(self.name)["test"]
        return {
            "train": self._generate_examples(np.flatnonzero(~held_out)),
            "test": self._generate_examples(np.flatnonzero(held_out)),
        }

    def _generate_examples(self, rows):
        arrays, captions = embedded.load(self.name), embedded.captions(self.name)
        for i in rows.tolist():
            image = arrays["image"][i]
            # A PIL image, since TFDS encodes a bare array through tensorflow.
            picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
            text = {} if captions is None else {"caption": captions[i]}
            yield i, {"image": picture, "label": int(arrays["label"][i]), **text}


class Digits8(_EmbeddedSet, tfds.core.GeneratorBasedBuilder):
    """1,797 handwritten digits of 8x8, 17 grey levels."""

    name = "digits8"
    DESCRIPTION = "Handwritten digits, 8x8 grey: the test part of the UCI optical digits."
    HOMEPAGE = "https://archive.ics.uci.edu/dataset/80"
    LICENSE = "CC BY 4.0 (E. Alpaydin, C. Kaynak, 1998)"


class Fashion28(_EmbeddedSet, tfds.core.GeneratorBasedBuilder):
    """15,000 of the 70,000 pictures of Fashion-MNIST, 28x28 grey."""

    name = "fashion28"
    DESCRIPTION = "The first 12,000 training and 3,000 test images of Fashion-MNIST."
    HOMEPAGE = "https://github.com/zalandoresearch/fashion-mnist"
    LICENSE = "MIT (Zalando SE, 2017)"


class Emoji32(_EmbeddedSet, tfds.core.GeneratorBasedBuilder):
    """5,798 drawn pictures of 32x32 in colour, 38 classes, held out by emoji."""

    name = "emoji32"
    VERSION = VERSIONS["emoji32"]
    DESCRIPTION = "Noto Emoji and Twemoji on white, 32x32; the class is the Unicode subgroup."
    HOMEPAGE = "https://github.com/iamcal/emoji-data"
    LICENSE = (
        "Noto Emoji: Apache-2.0 (Google). Twemoji: CC BY 4.0 (Twitter, Inc and other "
        "contributors); changed: resized, put on white."
    )


class Emoji64(_EmbeddedSet, tfds.core.GeneratorBasedBuilder):
    """8,506 drawn pictures of 64x64 in colour, three designs, 37 classes, held out by emoji."""

    name = "emoji64"
    DESCRIPTION = (
        "Noto Emoji, Twemoji and Fluent Emoji 3D on white, 64x64; the class is the Unicode "
        "subgroup, the caption names emoji, class and design."
    )
    HOMEPAGE = "https://github.com/iamcal/emoji-data"
    LICENSE = (
        "Noto Emoji: Apache-2.0 (Google). Twemoji: CC BY 4.0 (Twitter, Inc and other "
        "contributors); changed: put on white. Fluent Emoji: MIT (Microsoft Corporation)."
    )
