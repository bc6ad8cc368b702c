"""Task draft: only the draft head learns, from contexts that sampling meets."""

import functools
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from driftar_jax.hosts.schedules import cosine_counts
from driftar_jax.training import losses, optim, runs, step, tasks

T, N = 3, 6


@functools.cache
def _task(**changes):
    return tasks.build(tiny.config("draft", sample__ar_steps=T, **changes), tiny.IMAGES)


@functools.cache
def _params():
    return tiny.params(_task().init)


def _loss(seed=0, **changes):
    task = _task(**changes)
    given = tiny.batch(5), jax.random.key(seed), jnp.int32(0), False
    return jax.tree.map(float, jax.jit(task.loss, static_argnums=4)(_params(), *given))


def test_contexts_are_those_of_sampling_one_step_apart():
    contexts = _task().contexts.rounds(jax.random.key(0), jax.random.key(1), 64, 2)
    known = np.cumsum((0, *cosine_counts(N, T)))
    first, second, third = (N - np.asarray(c.num_unknown) for c in contexts)
    assert set(first) == set(known[:2]) and set(second) == set(known[1:3])
    at = np.searchsorted(known, first)
    np.testing.assert_array_equal(second, known[at + 1])
    np.testing.assert_array_equal(third, known[np.minimum(at + 2, T - 1)])
    # What is known stays known along one order.
    assert all((a.known <= b.known).all() for a, b in zip(contexts, contexts[1:], strict=False))


@pytest.mark.slow  # three programs; test_accumulation adds its terms up
def test_the_loss_is_the_mean_over_steps_ahead():
    value, terms = _loss()
    want = terms["draft_reg"] + terms["draft_entropy"] + terms["draft_prior"]
    np.testing.assert_allclose(value, want, rtol=1e-5)
    assert min(terms.values()) > 0
    near, _ = _loss(teacher__unroll=1)
    assert near != pytest.approx(value, rel=1e-3)
    without, _ = _loss(teacher__prior=0.0)
    np.testing.assert_allclose(without, terms["draft_reg"] + terms["draft_entropy"], rtol=1e-5)


@pytest.mark.slow  # test_drafts says it of a run
def test_only_the_draft_head_moves_and_it_gets_better():
    task = _task()
    optimizer = optim.make_optimizer(tiny.config("draft", optim__lr=0.01).optim, 40)
    state = optim.init_state(_params(), optimizer, task.tracked)
    update = jax.jit(step.make_step(task, optimizer, seed=0, frozen=False, accumulate=1, ema=0.9))
    batch = tiny.batch(5)
    before = jax.tree.map(np.asarray, state.params)
    for _ in range(40):
        state, metrics = update(state, batch)
    for name in ("host", "prior", "decoder"):
        chex.assert_trees_all_equal(before[name], state.params[name])
    first, _ = _loss()
    assert float(metrics["loss"]) < 0.5 * first
    # The teacher's entropy does not move, and its statistics are kept.
    mean, square = (float(state.tracked[n]) for n in ("entropy_mean", "entropy_square"))
    assert 0 < mean**2 <= square < 1


def test_a_fresh_head_is_not_the_teachers(monkeypatch):
    monkeypatch.setattr(runs.load, "read_weights", lambda folder: (_params(), {}, 0))
    monkeypatch.setattr(runs.checkpoints, "read_config", lambda folder: {})
    training = types.SimpleNamespace(abstract=types.SimpleNamespace(params=_params()))
    for fresh in (False, True):
        settings = tiny.config("draft", init_from="teacher", teacher__fresh_head=fresh)
        taken = set(runs._host_weights(settings, training))
        assert taken == {"host", "prior", "decoder"} | (set() if fresh else {"draft"})


def test_the_divergence_of_priors_is_the_gaussians_own():
    """Against the integral on a grid, in one channel."""
    x = np.linspace(-8, 8, 40_001)
    pdf = lambda m, s: np.exp(-0.5 * ((x - m) / s) ** 2) / s / np.sqrt(2 * np.pi)  # noqa: E731
    mu_q, std_q, mu_p, std_p = 0.3, 0.5, -0.1, 0.8
    p, q = pdf(mu_p, std_p), pdf(mu_q, std_q)
    want = np.sum(p * np.log(p / q)) * (x[1] - x[0])
    prior = lambda m, s: (jnp.full((2, 3, 1), m), jnp.full((2, 3), s))  # noqa: E731
    weight = jnp.array([[1.0, 0, 1], [0, 0, 1]])
    got = losses.prior_divergence(prior(mu_q, std_q), prior(mu_p, std_p), weight)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    four = lambda m, s: (jnp.full((2, 3, 4), m), jnp.full((2, 3), s))  # noqa: E731
    same = losses.prior_divergence(four(mu_q, std_q), four(mu_p, std_p), weight)
    np.testing.assert_allclose(same, got, rtol=1e-5)
