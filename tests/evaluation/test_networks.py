"""What the networks read of images, whatever the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from driftar_jax.evaluation import networks
from driftar_jax.features import inception
from driftar_jax.features.classifier import SmallClassifier


@pytest.fixture(scope="module")
def module():
    return SmallClassifier(num_classes=3, width=4)


@pytest.fixture(scope="module")
def params(module):
    return tiny.params(module.init, jnp.zeros((1, *tiny.IMAGES.image_shape)))["params"]


def test_the_classifier_reads_all_images_whatever_the_batch(module, params):
    images = tiny.batch(11)["image"]
    features, logits = networks.classifier(module, params, batch_size=4).read(images)
    whole, same = networks.classifier(module, params, batch_size=16).read(images)
    np.testing.assert_allclose(features, whole, atol=1e-5)
    np.testing.assert_allclose(logits, same, atol=1e-5)
    assert features.shape == (11, 4) and logits.shape == (11, 3)
    assert features.dtype == np.float32 and features.std(axis=0).max() > 1e-3


def test_the_classifier_asks_for_exact_products_on_every_backend(module, params):
    """As the recorded judges were read; CPUs have no other."""
    images = tiny.batch(2)["image"]
    program = networks._classify.lower(module, params, images).as_text()
    products = [
        line for line in program.splitlines() if "dot_general" in line or "convolution" in line
    ]
    exact = [line for line in products if line.count("HIGHEST") == 2]
    assert products and exact == products


@pytest.mark.slow  # test_parity_inception reads images
def test_inception_reads_grey_images_as_three_equal_channels():
    """The smallest input that the network takes; its values are the parity test's business."""
    module = inception.InceptionV3(num_classes=5)
    draw = np.random.default_rng(0)

    def value(leaf):
        # Activations keep their size through the 47 layers.
        fan = np.prod(leaf.shape[:-1])
        weight = draw.standard_normal(leaf.shape, np.float32) * np.sqrt(2 / fan)
        return weight if leaf.ndim > 1 else np.ones(leaf.shape, np.float32)

    params = jax.tree.map(value, inception.abstract(module))
    network = networks.inception(module, params, batch_size=3, size=75)
    assert (network.name, network.width, network.num_classes) == ("inception", 2048, 5)
    grey = np.random.default_rng(0).integers(0, 256, (2, 6, 9, 1), np.uint8)
    features, logits = network.read(grey)
    assert features.shape == (2, 2048) and logits.shape == (2, 5)
    colour, _ = network.read(np.repeat(grey, 3, axis=-1))
    np.testing.assert_allclose(features, colour, rtol=1e-5, atol=1e-6)
    assert np.isfinite(features).all() and np.abs(features[0] - features[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("images", "line"),
    [
        ([np.zeros((4, 6, 1), np.uint8), np.zeros((4, 7, 1), np.uint8)], "allowed one size"),
        ([], "allowed one size"),
        (np.zeros((2, 4, 6, 2), np.uint8), r"allowed uint8 \[n, H, W, 1 or 3\]"),
        (np.zeros((2, 4, 6, 1), np.float32), r"images: got float32"),
        (np.zeros((4, 6, 1), np.uint8), r"allowed uint8"),
        (np.zeros((0, 4, 6, 1), np.uint8), "at least one image"),
    ],
)
def test_images_that_do_not_fit_are_refused(module, params, images, line):
    with pytest.raises(ValueError, match=line):
        networks.classifier(module, params).read(images)


def test_a_list_of_equal_images_is_read(module, params):
    images = tiny.batch(3)["image"]
    network = networks.classifier(module, params, batch_size=4)
    np.testing.assert_array_equal(network.read(list(images))[0], network.read(images)[0])
