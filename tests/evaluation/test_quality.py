"""One pass over samples against the metrics of the whole, and what real images reach."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from driftar_jax.evaluation import inception_score, manifold, networks, quality
from driftar_jax.evaluation.frechet import Moments, frechet_distance
from driftar_jax.features.classifier import SmallClassifier

TRAINING = 40


@pytest.fixture(scope="module")
def network():
    module = SmallClassifier(num_classes=3, width=4)
    params = tiny.params(module.init, jnp.zeros((1, *tiny.IMAGES.image_shape)))["params"]
    return networks.classifier(module, params, batch_size=16)


@pytest.fixture(scope="module")
def real(network):
    batch = tiny.batch(61)
    return quality.RealSet(network, network, batch["image"], batch["label"], TRAINING)


def test_parts_give_the_metrics_of_the_whole(network, real):
    made = tiny.batch(30, seed=1)
    made["image"] //= 2
    tally = real.tally(30)
    for rows in np.split(np.arange(30), [11, 12]):
        tally.add(made["image"][rows], made["label"][rows])
    found = tally.quality()
    features, logits = network.read(made["image"])
    real_features, _ = network.read(real.images)
    want = frechet_distance(Moments.of(features), Moments.of(real_features))
    np.testing.assert_allclose(found.frechet, want, rtol=1e-9)
    assert found.frechet > 1e-3
    assert found.accuracy == (logits.argmax(axis=1) == made["label"]).mean()
    chosen = np.random.default_rng(0).permutation(61)[:30]
    both = manifold.precision_recall(real_features[chosen], features)
    assert (found.precision, found.recall) == both
    np.testing.assert_allclose(found.inception_score, inception_score.inception_score(logits)[0])
    training, held_out = np.split(real.images, [TRAINING])
    distances = manifold.nearest(made["image"], training)[1]
    assert found.nearest == np.median(distances)
    near = np.quantile(manifold.nearest(held_out, training)[1], 0.01)
    assert found.copied == (distances < near).mean()


def test_copies_of_training_images_are_seen(real):
    tally = real.tally(20)
    tally.add(np.concatenate([real.images[:15], real.images[-5:]]), real.labels[:20])
    found = tally.quality()
    assert found.nearest == 0.0 and found.copied == 0.75


def test_only_the_metrics_asked_for_are_measured(network, real):
    plain = quality.RealSet(network, network, real.images, real.labels, TRAINING, metrics=())
    tally = plain.tally(12)
    tally.add(real.images[:12], real.labels[:12])
    found = tally.quality()
    assert set(quality.summary([found])) == {
        "frechet",
        "frechet_std",
        "accuracy",
        "accuracy_std",
    }
    with pytest.raises(ValueError, match="metrics: got 'fid', allowed kid | "):
        quality.RealSet(network, network, real.images, real.labels, TRAINING, metrics=["fid"])


def test_another_reference_moves_the_distance_alone(network, real):
    features, _ = network.read(real.images)
    other = Moments.of(features + 1.0)
    moved = quality.RealSet(
        network, network, real.images, real.labels, TRAINING, metrics=(), reference=other
    )
    tally = moved.tally(len(real.images))
    tally.add(real.images, real.labels)
    np.testing.assert_allclose(tally.quality().frechet, 4.0, rtol=1e-5)


def test_accuracy_is_the_classifiers_where_features_are_anothers(network, real):
    """A second network that sees negatives: its features count, its classes do not."""
    other = networks.Network(
        "inverted", 4, 3, 16, lambda p, images: network.apply(p, 255 - images), network.params
    )
    both = quality.RealSet(other, network, real.images, real.labels, TRAINING, metrics=())
    assert both.accuracy == real.accuracy
    tally = both.tally(20)
    tally.add(real.images[:20], real.labels[:20])
    _, logits = network.read(real.images[:20])
    assert tally.quality().accuracy == (logits.argmax(axis=1) == real.labels[:20]).mean()
    want = Moments.of(other.read(real.images)[0])
    np.testing.assert_array_equal(both.moments.mean, want.mean)


def test_real_images_are_measured_like_samples(real):
    found = [real.quality(25, seed) for seed in (0, 1)]
    assert real.quality(25, 0) == found[0] != found[1]
    for q in found:
        assert 0 < q.frechet and 0 < q.precision <= 1 and 0 < q.recall <= 1
        assert q.copied <= 1 / 21
    averaged = quality.summary(found)
    assert averaged["frechet"] == np.mean([q.frechet for q in found])
    np.testing.assert_allclose(averaged["recall_std"], np.std([q.recall for q in found], ddof=1))
    assert real.quality(1000, 0).frechet > 0  # half of the set at most


def test_the_times_are_kept_by_name(real):
    assert {"features", "metrics", "nearest images"} <= real.ledger.seconds.keys()
    assert "features" in real.ledger.line() and "MiB" in real.ledger.line()


def test_too_few_images_are_refused(network, real):
    with pytest.raises(ValueError, match="half of the real images: got 4 images, allowed more"):
        quality.RealSet(network, network, real.images[:9], real.labels[:9], 5)
    tally = real.tally(4)
    tally.add(real.images[:4], real.labels[:4])
    with pytest.raises(ValueError, match="num: got 4 images, allowed more than 4"):
        tally.quality()
    with pytest.raises(ValueError, match="num: got 0 images, allowed 7"):
        real.tally(7).quality()


def test_the_floor_is_above_zero_and_falls_with_the_number_of_images():
    draw = np.random.default_rng(4)
    features = draw.normal(size=(600, 3)) @ draw.normal(size=(3, 3))
    few, many = quality.real_floor(features[:60]), quality.real_floor(features)
    assert few > many > 0
    assert quality.real_floor(features) == many
    assert many < frechet_distance(Moments.of(features), Moments.of(1.5 * features))
