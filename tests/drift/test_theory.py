"""The statements of docs/theory.md that can be measured, in the order in which they stand there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy import stats

from driftar_jax.drift import fields, laplace
from driftar_jax.drift.fields import Weights


def _radial(samples, width):
    """Mean outward force at samples of 2-d normal data, of G draws `size` times as wide.

    A whole call of one kernel width, before it is rescaled; with its standard error.
    """

    @functools.partial(jax.jit, static_argnums=0)
    def mean(draws, size):
        rows = samples // draws
        keys = jax.random.split(jax.random.key(draws))
        x = size * jax.random.normal(keys[0], (rows, draws, 2))
        y = jax.random.normal(keys[1], (rows, draws, 2))
        force, unit, info = laplace.force(x, y, widths=(width,))
        raw = force * jnp.sqrt(info.strength[0]) * unit
        outward = jnp.sum(raw * x, axis=-1) / jnp.linalg.norm(x, axis=-1)
        of_row = outward.mean(axis=1)
        return of_row.mean(), of_row.std() / np.sqrt(rows)

    return mean


def test_laplace_is_at_rest_where_the_distributions_agree_but_for_few_draws():
    """Statement 3: at p = q a part remains that falls with G; with two draws it is no rest."""
    mean = _radial(50_000, width=1.0)
    rest = {draws: mean(draws, 1.0) for draws in (2, 16)}
    response, _ = mean(16, 1.5)
    assert response < -0.08
    bias, error = rest[16]
    assert abs(bias) < 4 * error + 0.03 * abs(response)
    few, few_error = rest[2]
    assert few - 4 * few_error > 5 * abs(bias)


def test_energy_is_at_rest_for_any_number_of_draws():
    """Statement 1, in expectation: with two draws as with many, no direction is left at p = q."""
    keys = jax.random.split(jax.random.key(1))
    x = jax.random.normal(keys[0], (50_000, 2, 2))
    y = jax.random.normal(keys[1], (50_000, 1, 2))

    @jax.jit
    def outward(x):
        return jnp.sum(fields.energy(x, y) * x, axis=-1) / jnp.linalg.norm(x, axis=-1)

    rows = outward(x).mean(axis=1)
    error = rows.std() / np.sqrt(len(rows))
    assert abs(rows.mean()) < 4 * error
    assert outward(1.5 * x).mean() < -20 * error


@pytest.mark.parametrize(
    ("name", "unbiased"), [("energy", True), pytest.param("laplace", False, marks=pytest.mark.slow)]
)
def test_one_positive_is_enough_for_energy_alone(name, unbiased):
    """Statement 4: the mean over single positives against the field of all of them."""
    x, positives, negatives = tiny.normal(0, 3, 2), tiny.normal(1, 40, 2), tiny.normal(2, 6, 2)
    silent = Weights(draws=jnp.zeros((1, 3)))

    def field(y):
        given = x[None], y[None], negatives[None]
        if name == "energy":
            return fields.energy(*given, silent)[0]
        return laplace.laplace(*given, silent)[0]

    def direction(v):
        return v / jnp.linalg.norm(v)

    single = jax.jit(lambda p: jax.lax.map(lambda y: field(y[None]), p).mean(axis=0))(positives)
    whole = field(positives)
    if unbiased:
        np.testing.assert_allclose(single.reshape(whole.shape), whole, atol=1e-6)
    else:
        # Nor its direction: calls are rescaled, so a far positive pulls as hard as a near one.
        assert jnp.sum(direction(single) * direction(whole)) < 0.85


def test_antisymmetry_alone_is_no_fixed_point_of_one_kind():
    """Statement 5: matching first moments already silences an antisymmetric field."""

    def means(x, p, q):
        return p.mean(axis=0)[None] - q.mean(axis=0)[None] + 0 * x

    x, p = tiny.normal(3, 4, 2), tiny.normal(4, 500, 2)
    q = 3 * (p - p.mean(axis=0)[None]) + p.mean(axis=0)[None]
    np.testing.assert_array_equal(means(x, p, q), -means(x, q, p))
    np.testing.assert_allclose(means(x, p, q), np.zeros_like(x), atol=1e-5)
    assert np.abs(fields.energy(x, p, q)).max() > 0.1


@pytest.mark.slow  # statistics of a limit
def test_far_from_the_data_laplace_knows_the_means_alone():
    """Statement 6: where all affinities stand on their floor, only first moments are compared."""
    x, noise = 0.01 * tiny.normal(5, 2, 4, 2), tiny.normal(6, 2, 5, 2)
    centred = noise - noise.mean(axis=1, keepdims=True)
    place = jnp.asarray([30.0, 10.0])[None, None]

    def direction(spread):
        force, _, _ = laplace.force(x, place + spread * centred, widths=(0.01,))
        return force / jnp.linalg.norm(force, axis=-1, keepdims=True)

    np.testing.assert_allclose(direction(0.1), direction(5.0), atol=1e-3)


@pytest.mark.slow  # test_guidance moves it
def test_guidance_weights_move_the_rest_point_to_the_guided_distribution():
    """Statement 7, for energy: at rest `p(y|c) = (q + (alpha - 1) p(y)) / alpha`.

    With p(y) = (p1 + p2) / 2 that is q = p1 + (alpha - 1) / 2 (p1 - p2), a distribution of signed
    weights; drawn here as weighted draws of q.
    """
    count, alpha = 400, 1.5
    p1, p2 = tiny.normal(7, count, 2), tiny.normal(8, count, 2) + jnp.asarray([[2.0, 0.0]])
    x = tiny.normal(9, 5, 2)[None]
    share = 1.0 + (alpha - 1.0) / 2.0
    points = jnp.concatenate([p1, p2, p1, p2])[None]
    # q in front, then unconditional samples that weigh (alpha - 1) times as much as all of q.
    q = jnp.concatenate([jnp.full(count, share), jnp.full(count, 1.0 - share)]) / count
    free = jnp.full(2 * count, (alpha - 1.0) / (2 * count))
    weights = Weights(draws=jnp.zeros((1, 5)), negatives=jnp.concatenate([q, free])[None])
    np.testing.assert_allclose(fields.energy(x, p1[None], points, weights), 0.0, atol=1e-5)
    unguided = weights.replace(negatives=jnp.concatenate([q, 0 * free])[None])
    assert np.abs(fields.energy(x, p1[None], points, unguided)).max() > 0.05


@pytest.mark.parametrize(("dims", "rho"), [(2, 1.1), (5, 1.05), (3, 0.9)])
def test_repulsion_sets_the_spread_of_a_normal(dims, rho):
    """Statement 10: normal draws are at rest at `rho / sqrt(2 - rho^2)` of the data's spread."""
    keys = jax.random.split(jax.random.key(2))
    x = jax.random.normal(keys[0], (100_000, 2, dims))
    y = jax.random.normal(keys[1], (100_000, 1, dims))

    @jax.jit
    def outward(size):
        # The score's slope in the spread, but for its sign.
        force = jnp.sum(fields.energy(size * x, y, repulsion=rho) * x, axis=-1).mean(axis=1)
        return force.mean(), force.std() / np.sqrt(len(force))

    rest = rho / np.sqrt(2 - rho**2)
    force, error = outward(rest)
    assert abs(force) < 4 * error
    # As far on either side as another rho of a tenth of the difference would be: it is found.
    assert outward(0.97 * rest)[0] > 3 * error and outward(1.03 * rest)[0] < -3 * error


def _score(x, y, rho):
    """`S_rho` of equally likely points in one dimension, in float64."""
    between = np.abs(x[:, None] - x[None]).mean()
    return np.abs(x[:, None] - y[None]).mean() - rho / 2 * between


def test_below_one_the_tails_go():
    """Statement 10: in one dimension the score is least at the data between two quantiles."""
    rho, n = 0.8, 400
    levels = (np.arange(n) + 0.5) / n
    y = stats.norm.ppf(levels)
    cut = stats.norm.ppf(0.5 + rho * (levels - 0.5))
    best = _score(cut, y, rho)
    others = [y, 1.05 * cut, 0.95 * cut, cut + 0.05, stats.norm.ppf(0.5 + 0.75 * (levels - 0.5))]
    assert all(_score(other, y, rho) > best + 1e-5 for other in others)


def test_above_one_far_draws_lower_the_score():
    """Statement 10: no distribution is the best, for a few draws may always go farther away."""
    y = stats.norm.ppf((np.arange(400) + 0.5) / 400)
    far = [np.concatenate([y, np.repeat([-reach, reach], 10)]) for reach in (10, 100, 1000)]
    scores = [_score(x, y, 1.2) for x in (y, *far)]
    assert np.all(np.diff(scores[1:]) < -0.1) and scores[-1] < scores[0]
    proper = [_score(x, y, 1.0) for x in (y, *far)]
    assert np.all(np.diff(proper) > 0)
