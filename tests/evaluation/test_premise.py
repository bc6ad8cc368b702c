"""The premise: a planted relation between entropy and residual is found, and only that."""

import dataclasses

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import tiny

from configs import drift_transdiff
from driftar_jax import config, model
from driftar_jax.data.pixels import to_unit_range
from driftar_jax.evaluation import premise
from driftar_jax.training import tasks
from driftar_jax.types import Encoding


@dataclasses.dataclass(frozen=True)
class PlantedHost:
    """Features that say nothing but the class; entropy that follows the residual, or not."""

    relation: float

    def apply(self, variables, tokens, known, label):
        z = jnp.broadcast_to(jnp.eye(3)[label][:, None], (*tokens.shape[:2], 3))
        size = jnp.linalg.norm(tokens, axis=-1) / 2
        noise = variables["params"]
        return Encoding(z=z, entropy=self.relation * size + (1 - abs(self.relation)) * noise)


@dataclasses.dataclass(frozen=True)
class ZeroPrior:
    """mu = 0 everywhere, so that the residual is the size of the token."""

    def apply(self, variables, z, entropy, keys):
        return jnp.zeros((*z.shape[:2], 4)), entropy


COUNT = 60


def _measure(relation, prior, read=lambda images: images):
    parts = model.Model(tiny.IMAGES, PlantedHost(relation), config.host("mar"), prior=prior)
    draw = np.random.default_rng(0)
    noise = jnp.asarray(draw.random((COUNT, 6)), jnp.float32)
    batch = tiny.batch(COUNT)
    params = {"host": noise, "prior": None}
    return premise.measure(parts, params, read(batch["image"]), batch["label"])


@pytest.mark.parametrize(("relation", "sign"), [(1.0, 1), (-1.0, -1)])
def test_a_planted_relation_is_found_at_every_mask_rate(relation, sign):
    found = _measure(relation, ZeroPrior())
    assert [p.num_unknown for p in found] == [6, 4, 3, 1]
    for p in found:
        np.testing.assert_allclose(p.correlation, sign, atol=1e-3)
        assert p.entropy.shape == p.residual.shape == (COUNT * p.num_unknown,)
    of_grids = _measure(relation, ZeroPrior(), to_unit_range)
    np.testing.assert_allclose(of_grids[1].residual, found[1].residual, rtol=1e-6)


def test_no_relation_is_no_correlation():
    for p in _measure(0.0, ZeroPrior()):
        assert abs(p.correlation) < 5 / np.sqrt(COUNT * p.num_unknown)


def test_a_probe_stands_in_for_the_prior_and_is_judged_on_other_images():
    found = _measure(1.0, None)
    for p in found:
        assert p.entropy.shape == (COUNT // 2 * p.num_unknown,)
        # The residual is measured from the mean token, the entropy from zero.
        assert p.correlation > 0.5
    mean_size = np.mean([p.residual.mean() for p in found])
    assert 0.5 < mean_size < 2.0


def test_the_probe_is_ridge_regression():
    draw = np.random.default_rng(1)
    z, w = draw.normal(size=(30, 4, 3)), draw.normal(size=(3, 2))
    x = z @ w + 0.7
    fit = np.arange(30)[:, None] < np.full(4, 20)[None]
    np.testing.assert_allclose(premise._probe(z, x, fit), x, atol=0.02)


def test_a_host_of_whole_grids_is_asked_about_its_classes_alone():
    """One mask rate, and entropies that depend on the class."""
    settings = ml_collections.ConfigDict(drift_transdiff.get_config("tiny"))
    settings.data.update(image_size=12, patch_size=2)
    parts = model.build(settings, tiny.IMAGES)
    task = tasks.build(settings, tiny.IMAGES)
    params = tiny.params(task.init, scale=0.8)  # far enough apart for float32
    images = tiny.batch(20)["image"]
    labels = np.arange(20) % 3
    (found,) = premise.measure(parts, params, images, labels)
    assert premise.measurable(parts) and found.num_unknown == 6
    assert found.entropy.shape == found.residual.shape == (20 * 6,)
    same = found.entropy.reshape(20, 6)
    np.testing.assert_allclose(same[0], same[3], rtol=1e-6)
    assert np.abs(same[0] - same[1]).max() > 1e-3
