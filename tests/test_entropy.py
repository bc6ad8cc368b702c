"""Row entropy, sigma and the prior draw: Eq. 4, 6 and 7."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driftar_jax import entropy

CAUSAL = np.tril(np.ones((6, 6), bool))
VISIBLE = np.arange(1, 7)

row_entropy = jax.jit(entropy.row_entropy, static_argnames="floor")


def _logits(seed):
    return np.random.default_rng(seed).normal(size=(6, 6)).astype(np.float32)


@jax.jit
def _attention(logits):
    """Causal softmax of `[N, N]` -> `[1, N, N]`, exact zeros at the masked keys."""
    return jax.nn.softmax(jnp.where(CAUSAL, logits, -jnp.inf), axis=-1)[None]


def test_row_entropy_matches_a_float64_loop():
    weights = _attention(_logits(0))
    want = [0.0]
    for r in range(1, 6):
        p = np.asarray(weights[0, r, : r + 1], np.float64)
        want.append(-(p * np.log(p)).sum() / np.log(r + 1))
    np.testing.assert_allclose(row_entropy(weights, VISIBLE)[0], want, atol=1e-6)


def test_query_chunks_give_the_same_rows():
    weights = np.asarray(_attention(_logits(2)))
    whole = row_entropy(weights, VISIBLE)
    parts = [row_entropy(weights[:, i : i + 2], VISIBLE[i : i + 2]) for i in (0, 2, 4)]
    np.testing.assert_array_equal(whole, np.concatenate(parts, axis=1))


def test_gradient_is_finite_through_masked_keys():
    def mean_entropy(logits):
        return entropy.row_entropy(_attention(logits), VISIBLE).mean()

    grad = jax.jit(jax.grad(mean_entropy))(_logits(1))
    assert np.isfinite(grad).all() and np.abs(grad).max() > 0


def test_certain_and_uniform_rows_are_the_ends():
    weights = np.stack([np.eye(5)[2], np.full(5, 0.2), np.eye(5)[0]])[None]
    found = row_entropy(weights, np.array([5, 5, 1]))[0]
    np.testing.assert_allclose(found, [0.0, 1.0, 0.0], atol=1e-6)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"weights: got shape \(2, 3\), allowed \[B, Q, N\]"):
        entropy.row_entropy(jnp.ones((2, 3)), jnp.ones(3, int))
    with pytest.raises(ValueError, match=r"visible: got shape \(4,\)"):
        entropy.row_entropy(jnp.ones((2, 3, 4)), jnp.ones(4, int))


@pytest.mark.parametrize(("sigma_max", "tau"), [(0.5, 2.0), (1.3, 0.4), (0.2, 30.0)])
def test_sigma_matches_equation_6(sigma_max, tau):
    e = np.linspace(0, 1, 7)
    want = sigma_max * (np.exp(e / tau) - 1) / (np.exp(1 / tau) - 1)
    found = jax.jit(lambda e: entropy.sigma(e, sigma_max=sigma_max, tau=tau))(e)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-7)
    assert found[0] == 0.0
    np.testing.assert_allclose(found[-1], sigma_max, rtol=1e-6)


def _sigma(e, tau):
    return entropy.sigma(jnp.asarray(e), sigma_max=0.5, tau=tau)


@settings(deadline=None, max_examples=50)
@given(
    low=st.floats(0, 1, width=32),
    high=st.floats(0, 1, width=32),
    tau=st.floats(0.05, 50),
)
def test_sigma_rises_with_the_entropy(low, high, tau):
    low, high = min(low, high), max(low, high)
    few, many = np.asarray(_sigma(np.array([low, high]), tau))
    assert 0 <= few <= many <= 0.5 * (1 + 1e-6)
    assert few < many or high - low < 1e-3


TAUS = [5e-324, 1e-45, 1e-30, 1e-6, 0.0113, 0.0112, 0.0199, 0.0201, 1.0, 9e5, 2e6, 1e30, 1.7e308]


@pytest.mark.parametrize("tau", TAUS)
def test_sigma_is_finite_for_every_tau_and_follows_equation_6(tau):
    e = np.array([0.0, 1e-6, 0.3, 0.9, 0.999, 1.0], np.float32)
    found = np.asarray(_sigma(e, tau), np.float64)
    with np.errstate(over="ignore"):
        t = np.float64(tau)
        exact = np.exp((e.astype(np.float64) - 1) / t)
        # In float64 and divided by exp(1 / tau); a straight line where tau is beyond that too.
        want = exact * np.expm1(-e / t) / np.expm1(-1 / t) if tau < 1e12 else e
    np.testing.assert_allclose(found, 0.5 * np.nan_to_num(want), rtol=2e-5, atol=1e-7)
    assert (np.diff(found) >= 0).all() and found[0] == 0 and found[-1] == pytest.approx(0.5)
    slope = jax.vmap(jax.grad(lambda e: _sigma(e, tau)))(jnp.asarray(e))
    assert np.isfinite(slope).all()


def test_prior_draw_has_the_moments_of_equation_7():
    mu = np.array([[0.3, -2.0, 1.0]])
    std = np.array([0.7])
    eps = np.random.default_rng(3).normal(size=(40_000, 1, 3))
    x0 = np.asarray(jax.jit(entropy.prior_draw)(mu[None], std[None], eps), np.float64)[:, 0]
    np.testing.assert_allclose(x0.mean(0), mu[0], atol=4 * 0.7 / 200)
    covariance = np.cov(x0, rowvar=False)
    np.testing.assert_allclose(covariance, 0.49 * np.eye(3), atol=4 * 0.49 * 1.5 / 200)


def test_a_floor_counts_masked_keys_too():
    weights, floor = _attention(_logits(4)), 0.01
    want = [0.0]
    for r in range(1, 6):
        p = np.maximum(np.asarray(weights[0, r], np.float64), floor)
        want.append(np.clip(-(p * np.log(p)).sum() / np.log(r + 1), 0, 1))
    found = row_entropy(weights, VISIBLE, floor=floor)[0]
    np.testing.assert_allclose(found, want, atol=1e-6)
    assert np.abs(found - row_entropy(weights, VISIBLE)[0]).max() > 1e-2
