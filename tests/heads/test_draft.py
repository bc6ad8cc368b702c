"""The draft head: what it starts from, what it reads, whose entropy it returns."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn

from driftar_jax.heads.draft import DraftHead
from driftar_jax.types import Encoding

B, N, C, D = 2, 6, 3, 5
HEAD = DraftHead(token_dim=C, features=D, width=8, depth=2, num_heads=2)
KNOWN = jnp.asarray(np.random.default_rng(3).random((B, N)) < 0.5)


@pytest.fixture(scope="module")
def inputs():
    entropy = jnp.asarray(np.random.default_rng(0).random((B, N)), jnp.float32)
    return Encoding(z=tiny.normal(1, B, N, D), entropy=entropy), tiny.normal(2, B, N, C), KNOWN


@pytest.fixture(scope="module")
def apply(inputs):
    params = tiny.params(HEAD.init, *inputs)
    return jax.jit(lambda *changed: HEAD.apply(params, *changed))


def test_a_fresh_head_predicts_that_nothing_changes(inputs):
    params = nn.meta.unbox(jax.jit(HEAD.init)(jax.random.key(0), *inputs))
    found = jax.jit(HEAD.apply)(params, *inputs)
    np.testing.assert_array_equal(found.z, inputs[0].z)
    assert found.entropy.shape == (B, N)
    assert 0 < found.entropy.min() and found.entropy.max() <= 1


def test_unknown_tokens_are_never_read(inputs, apply):
    last, tokens, known = inputs
    before = apply(last, tokens, known)
    hidden = jnp.where(known[..., None], tokens, jnp.nan)
    chex.assert_trees_all_equal(apply(last, hidden, known), before)
    place = tuple(np.argwhere(np.asarray(known))[0])
    seen = apply(last, tiny.changed(tokens, place, by=1.0), known)
    assert np.abs(seen.z - before.z).max() > 1e-3


def test_every_position_sees_the_known_tokens_and_the_features(inputs, apply):
    last, tokens, known = inputs
    before = apply(last, tokens, known)
    image, position = np.argwhere(np.asarray(known))[0]
    for changed in (
        apply(last, tiny.changed(tokens, (image, position), by=1.0), known),
        apply(last.replace(z=tiny.changed(last.z, (image, position), by=1.0)), tokens, known),
        apply(last, tokens, tiny.changed(known, (image, position), to=False)),
    ):
        moved = np.abs(np.asarray(changed.z - before.z)).max(axis=-1)
        assert (np.delete(moved[image], position) > 1e-6).all()
        assert moved[1 - image].max() < 1e-6
        assert np.abs(np.asarray(changed.entropy - before.entropy))[image].max() > 1e-6


def test_the_entropy_is_its_own_and_not_the_last_ones(inputs, apply):
    last, tokens, known = inputs
    other = apply(last.replace(entropy=1 - last.entropy), tokens, known)
    chex.assert_trees_all_equal(other, apply(last, tokens, known))
