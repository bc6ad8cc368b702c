"""Loss terms of the draft head (Eq. 3, 5) and the weights of the two phases (Eq. 9-10)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from driftar_jax.training import losses
from driftar_jax.types import Encoding

B, N, D = 3, 4, 5
WEIGHT = np.array([1.0, 0.0, 1.0], np.float32)


@pytest.fixture
def pair():
    draw = np.random.default_rng(0)
    entropy = draw.random((2, B, N)).astype(np.float32)
    return [Encoding(z=2 * tiny.normal(i, B, N, D), entropy=entropy[i]) for i in range(2)]


def test_draft_regression_is_smooth_l1_over_weighted_images(pair):
    draft, target = pair
    gap = np.abs(np.asarray(draft.z, np.float64) - np.asarray(target.z, np.float64))
    assert (gap < 1).any() and (gap > 1).any()
    rows = np.where(gap < 1, 0.5 * gap**2, gap - 0.5)
    found = losses.draft_regression(draft, target, WEIGHT)
    np.testing.assert_allclose(found, rows[[0, 2]].mean(), rtol=1e-6)


@pytest.mark.parametrize("kind", losses.ENTROPY_LOSSES)
def test_draft_entropy_terms(pair, kind):
    draft, target = pair
    d, t = (np.asarray(e.entropy, np.float64)[[0, 2]] for e in pair)
    want = {"match": np.abs(d - t).mean(), "maximize": -d[:, 1:].sum(1).mean() / N, "none": 0.0}
    found = losses.draft_entropy(draft, target, WEIGHT, kind)
    np.testing.assert_allclose(found, want[kind], rtol=1e-6)


@pytest.mark.parametrize("kind", losses.ENTROPY_LOSSES)
def test_gradients_reach_the_draft_and_never_the_target(pair, kind):
    def loss(draft, target):
        found = losses.draft_regression(draft, target, WEIGHT)
        return found + losses.draft_entropy(draft, target, WEIGHT, kind)

    found = jax.jit(jax.grad(loss, argnums=(0, 1)))(*pair)
    draft, target = jax.tree.map(np.asarray, found)
    assert np.abs(target.z).max() == 0 and np.abs(target.entropy).max() == 0
    assert np.abs(draft.z[0]).min() > 0
    assert (np.abs(draft.entropy[0, 1:]).min() > 0) == (kind != "none")
    assert np.abs(draft.z[1]).max() == 0 and np.abs(draft.entropy[1]).max() == 0
    if kind == "maximize":
        assert draft.entropy.max() == 0 and draft.entropy[0, 0] == 0


def test_a_batch_without_next_contexts_costs_nothing(pair):
    none = np.zeros(B)
    assert losses.draft_regression(*pair, none) == 0
    assert losses.draft_entropy(*pair, none, "match") == 0


def test_an_unknown_entropy_loss_is_refused(pair):
    with pytest.raises(ValueError, match="loss.entropy_loss: got 'both'"):
        losses.draft_entropy(*pair, WEIGHT, "both")


def test_alpha_falls_from_its_start_to_zero_at_the_freeze():
    steps, freeze_at = 50, 0.8
    assert losses.freeze_step(steps, freeze_at) == 40
    found = np.array(
        [losses.alpha(s, steps, start=0.95, freeze_at=freeze_at) for s in range(steps + 1)]
    )
    np.testing.assert_allclose(found[0], 0.95, rtol=1e-6)
    np.testing.assert_allclose(found[:41], 0.95 * (1 - np.arange(41) / 40), atol=1e-6)
    assert (found[40:] == 0).all()
    assert found[39] > 0


@pytest.mark.parametrize(("steps", "at", "first"), [(6, 0.8, 5), (10, 1.0, 10), (7, 0.05, 0)])
def test_the_freeze_falls_on_a_whole_step(steps, at, first):
    assert losses.freeze_step(steps, at) == first
    assert losses.alpha(jnp.int32(first), steps, start=0.95, freeze_at=at) == (
        0 if first else pytest.approx(0.95)
    )


def test_the_repulsion_stays_or_goes_to_one():
    assert losses.repulsion(jnp.int32(3), 11, start=1.2, schedule="constant") == 1.2
    found = [losses.repulsion(jnp.int32(k), 11, start=1.2, schedule="annealed") for k in range(12)]
    np.testing.assert_allclose(found, [*np.linspace(1.2, 1.0, 11), 1.0], rtol=1e-6)
    with pytest.raises(ValueError, match="drift.repulsion_schedule: got 'up'"):
        losses.repulsion(jnp.int32(0), 2, start=1.1, schedule="up")
