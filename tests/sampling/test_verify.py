"""Acceptance rules: the guarantee of each, and that a rule bent by a tenth is caught."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy import stats

from driftar_jax.published.merge import merge
from driftar_jax.sampling import verify
from driftar_jax.sampling.verify import Normal

DRAWS, C = 20_000, 3
GAUSSIAN = jax.jit(verify.gaussian)
# Mean and standard deviation of draft, then of target: equal spread, a wider and a narrower target,
# hardly any difference, and one so far away that almost nothing is accepted.
CONTEXTS = {
    "equal spread": ((0.0, 0.1, -0.2), 0.3, (0.2, 0.0, -0.1), 0.3),
    "wider": ((0.0, 0.1, -0.2), 0.3, (0.1, 0.0, -0.3), 0.4),
    "narrower": ((0.0, 0.1, -0.2), 0.4, (0.1, 0.2, -0.1), 0.3),
    "only wider": ((0.5, 0.1, -0.2), 0.3, (0.5, 0.1, -0.2), 0.33),
    "almost the same": ((0.0, 0.1, -0.2), 0.3, (0.001, 0.1, -0.2), 0.303),
    "far": ((0.0, 0.0, 0.0), 0.3, (2.0, -1.0, 0.5), 0.2),
}
# Where draft and target hardly differ, a start that was refused is drawn again and again.
LONG = "almost the same"
EACH = [pytest.param(name, marks=[pytest.mark.slow] if name == LONG else []) for name in CONTEXTS]


def _priors(context):
    mean_q, std_q, mean_p, std_p = CONTEXTS[context]
    normal = lambda m, s: Normal(jnp.tile(jnp.array(m), (DRAWS, 1)), jnp.full(DRAWS, s))  # noqa: E731
    return normal(mean_q, std_q), normal(mean_p, std_p)


def _corrected(context, seed=0):
    """Verdict on draws of the draft, and as many fresh draws of the target."""
    draft, target = _priors(context)
    x0 = draft.mean + draft.std[:, None] * tiny.normal(seed, DRAWS, C)
    fresh = target.mean + target.std[:, None] * tiny.normal(seed + 1, DRAWS, C)
    keys = jax.random.split(jax.random.key(seed), DRAWS)
    return GAUSSIAN(x0, draft, target, keys), np.asarray(fresh)


def _moments(x):
    """Channels and their products, `[n, C + C(C+1)/2]`."""
    first, second = np.triu_indices(C)
    return np.concatenate([x, x[:, first] * x[:, second]], axis=1)


def _strangeness(context, got, fresh):
    """How far two samples are apart: the largest of several statistics; above 1 is no chance.

    Means and covariances count in standard errors, over 5. Energy distances count in their mean
    under equality, over 5; they are taken along random directions, and of `log p/q`, which is where
    a wrong rule shows most.
    """
    draft, target = _priors(context)
    a, b = _moments(got - fresh.mean(0)), _moments(fresh - fresh.mean(0))
    error = np.sqrt((a.var(0) + b.var(0)) / DRAWS)
    found = [(np.abs(a.mean(0) - b.mean(0)) / error).max() / 5]
    views = [lambda x: np.asarray(verify.log_ratio(x, target, draft))]
    for direction in np.random.default_rng(0).normal(size=(3, C)):
        views.append(lambda x, d=direction: x @ d)
    for view in views:
        x, y = view(got), view(fresh)
        pairs = np.random.default_rng(1).permutation(np.concatenate([x, y])).reshape(2, -1)
        usual = np.abs(pairs[0] - pairs[1]).mean()
        found.append(stats.energy_distance(x, y) ** 2 * DRAWS / 2 / usual / 5)
    return max(found)


@pytest.mark.parametrize("context", EACH)
def test_corrected_starts_are_the_targets(context):
    verdict, fresh = _corrected(context)
    assert _strangeness(context, np.asarray(verdict.x0), fresh) < 1


@pytest.mark.parametrize("context", ["equal spread", "wider", "narrower"])
def test_a_threshold_moved_by_a_tenth_is_caught(context, monkeypatch):
    true = verify.accept_probability
    moved = lambda *a: jnp.minimum(1.1 * true(*a), 1.0)  # noqa: E731
    monkeypatch.setattr(verify, "accept_probability", moved)
    GAUSSIAN.clear_cache()
    verdict, fresh = _corrected(context)
    GAUSSIAN.clear_cache()
    assert _strangeness(context, np.asarray(verdict.x0), fresh) > 1


@pytest.mark.parametrize("context", EACH)
def test_as_much_is_accepted_as_the_overlap_allows(context):
    """The accepted share is `1 - TV(p, q)`, no rule with the guarantee can accept more."""
    verdict, fresh = _corrected(context)
    draft, target = _priors(context)
    overlap = np.mean(np.minimum(1, np.exp(-verify.log_ratio(fresh, target, draft))))
    assert abs(np.mean(verdict.accepted) - overlap) < 5 * np.sqrt(0.5 / DRAWS)


def test_an_accepted_start_is_the_drafted_one_and_a_corrected_one_is_not():
    draft, target = _priors("wider")
    x0 = draft.mean + draft.std[:, None] * tiny.normal(0, DRAWS, C)
    verdict, _ = _corrected("wider")
    same = np.all(np.asarray(verdict.x0) == np.asarray(x0), axis=1)
    np.testing.assert_array_equal(same, verdict.accepted)


def test_equal_priors_accept_everything():
    draft, _ = _priors("wider")
    keys = jax.random.split(jax.random.key(3), DRAWS)
    x0 = draft.mean + draft.std[:, None] * tiny.normal(5, DRAWS, C)
    verdict = GAUSSIAN(x0, draft, draft, keys)
    assert verdict.accepted.all()
    np.testing.assert_array_equal(verdict.x0, x0)


def test_a_token_is_judged_alone():
    """Its verdict depends on its own key, not on the tokens beside it: `[2, 3]` and `[1]` agree."""
    draft, target = (Normal(n.mean[:6], n.std[:6]) for n in _priors("far"))
    target = Normal(0.2 * target.mean, target.std)
    keys = jax.random.split(jax.random.key(1), 6)
    x0 = draft.mean + draft.std[:, None] * tiny.normal(2, 6, C)
    fold = lambda a: a.reshape(2, 3, *a.shape[1:])  # noqa: E731
    both = GAUSSIAN(*jax.tree.map(fold, (x0, draft, target, keys)))
    for i in range(6):
        one = jax.tree.map(lambda a, i=i: a[i : i + 1], (x0, draft, target, keys))
        alone = GAUSSIAN(*one)
        np.testing.assert_array_equal(alone.accepted[0], both.accepted[i // 3, i % 3])
        np.testing.assert_allclose(alone.x0[0], both.x0[i // 3, i % 3], rtol=1e-6)
    assert 0 < both.accepted.sum() < 6


@pytest.mark.parametrize("std", [0.0, 1e-9])
def test_a_vanishing_spread_ends(std):
    mean = jnp.zeros((2, C))
    narrow = Normal(mean, jnp.full(2, std))
    other = Normal(mean + 1.0, jnp.full(2, 0.1))
    keys = jax.random.split(jax.random.key(1), 2)
    verdict = GAUSSIAN(mean, narrow, other, keys)
    assert not verdict.accepted.any() and np.abs(verdict.x0 - 1.0).max() < 1
    verdict = GAUSSIAN(mean + 1.1, other, narrow, keys)
    assert not verdict.accepted.any() and np.abs(verdict.x0).max() < 1e-4


def test_numbers_that_are_not_finite_do_not_hang():
    draft, target = (Normal(n.mean[:2], n.std[:2]) for n in _priors("wider"))
    x0 = jnp.full((2, C), jnp.nan)
    verdict = GAUSSIAN(x0, draft, target, jax.random.split(jax.random.key(1), 2))
    assert not verdict.accepted.any() and jnp.isnan(verdict.x0).all()


def test_coupled_bounds_the_distance_of_the_whole_token():
    x = jnp.zeros((2, 3, C))
    moved = tiny.changed(tiny.changed(x, (0, 1), to=0.3), (1, 2), to=0.2)
    std = jnp.full((2, 3), 0.25)
    # The norms are 0.52 and 0.346: 2.08 and 1.39 standard deviations.
    judged = functools.partial(verify.coupled, moved, x, std)
    np.testing.assert_array_equal(judged(0.0), [[1, 0, 1], [1, 1, 0]])
    np.testing.assert_array_equal(judged(1.35), [[1, 0, 1], [1, 1, 0]])
    np.testing.assert_array_equal(judged(1.5), [[1, 0, 1], [1, 1, 1]])
    assert judged(2.1).all()


def test_feature_means_the_same_at_every_width():
    for width in (5, 50):
        z = jnp.zeros((2, width))
        np.testing.assert_array_equal(
            verify.feature(tiny.changed(z, 1, to=0.2), z, 0.19), [True, False]
        )
        assert verify.feature(tiny.changed(z, 1, to=0.2), z, 0.21).all()


def test_merge_takes_every_accepted_position():
    target = jnp.zeros((2, 4, 3))
    draft = tiny.changed(tiny.changed(target, (0, 1), to=1.0), (1, 3), to=2.0) + 0.01
    merged = merge(draft, target, 0.1)
    np.testing.assert_array_equal(merged.accepted, [[1, 0, 1, 1], [1, 1, 1, 0]])
    np.testing.assert_array_equal(merged.prefix, [1, 3])
    np.testing.assert_array_equal(merged.features[0, 1], target[0, 1])
    np.testing.assert_array_equal(merged.features[0, 2], draft[0, 2])
    np.testing.assert_allclose(merged.distance[1, 3], 2.01 * np.sqrt(3), rtol=1e-6)
