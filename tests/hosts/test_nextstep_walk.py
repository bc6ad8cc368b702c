"""NextStep-1 behind the protocol of speculative decoding, against its own plain road."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from driftar_jax.hosts import nextstep
from driftar_jax.hosts.nextstep_walk import NextStepWalk

B, P, N, C, HOLD, S = 2, 4, 5, 3, 9, 3
HOST = nextstep.NextStep(
    vocab_size=11,
    placeholder=HOLD,
    token_dim=C,
    width=8,
    depth=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=2,
    mlp_width=10,
    norm_eps=1e-5,
    rope_theta=50.0,
)
# Two branches: conditional rows, then unconditional ones with more padding.
IDS = jnp.array([[1, 2, 3, 7], [10, 4, 5, 7], [10, 10, 3, 7], [10, 10, 5, 7]])
PADDING = jnp.array([0, 1, 2, 2])


@pytest.fixture(scope="module")
def made():
    """Groups, tokens, and encodings `[branches * B, N, ...]` of every token, from one forward."""
    tokens = tiny.normal(0, B, N, C)
    ids = jnp.concatenate([IDS, jnp.full((2 * B, N), HOLD)], axis=1)
    twice = jnp.concatenate([tokens] * 2)
    init = functools.partial(HOST.init, method="everything")
    params = tiny.params(init, ids, twice, scale=0.4)["params"]
    whole = jax.jit(lambda p: HOST.apply({"params": p}, ids, twice, padding=PADDING))(params)
    want = jax.tree.map(lambda a: np.asarray(a[:, P - 1 : P + N - 1]), whole)
    return NextStepWalk.of(HOST, params, IDS, PADDING, N, S, branches=2), tokens, want


def _agree(encoding, want, steps, contexts=S):
    for row in range(2 * B):
        for s in range(contexts):
            k = int(steps[row % B]) + s
            if k < N:
                np.testing.assert_allclose(encoding.z[s, row, 0], want.z[row, k], atol=4e-6)
                got = encoding.entropy[s, row, 0]
                np.testing.assert_allclose(got, want.entropy[row, k], atol=4e-6)


def test_groups_are_tokens_in_raster_order(made):
    groups, _, _ = made
    step = jnp.array([2, 9])
    positions, real = groups.group(step)
    np.testing.assert_array_equal(positions, [[2], [4]])
    assert real.all() and groups.group_size == 1 and groups.num_steps == N
    np.testing.assert_array_equal(groups.known(step)[0], [1, 1, 0, 0, 0])


def test_one_call_encodes_several_contexts(made):
    """Steps differ between images; wrong drafts are rolled back; beyond the end nobody reads."""
    groups, tokens, want = made
    run = jax.jit(lambda memory, tokens, step: groups.encode(memory, tokens, step, S))
    keep = jax.jit(groups.roll_back)
    memory = jax.jit(groups.memory)()
    step = jnp.array([0, 0])
    # Tokens from 1 on are wrong in row 0, from 2 on in row 1.
    wrong = tiny.changed(tiny.changed(tokens, np.s_[0, 1:], by=1.0), np.s_[1, 2:], by=-1.0)
    encoding, memory = run(memory, wrong, step)
    _agree(encoding, want, step, contexts=2)
    assert np.abs(encoding.z[2, 0, 0] - want.z[0, 2]).max() > 1e-3

    step = jnp.array([1, 2])
    memory = keep(memory, step)
    np.testing.assert_array_equal(memory.length, [P, P + 1] * 2)
    encoding, memory = run(memory, tokens, step)
    _agree(encoding, want, step)
    # One image goes back, the other to its end.
    step = jnp.array([2, 4])
    encoding, memory = run(keep(memory, step), tokens, step)
    _agree(encoding, want, step)


def test_encodings_have_the_shapes_of_the_protocol(made):
    groups, tokens, _ = made
    step = jnp.zeros(B, jnp.int32)
    encoding, memory = jax.eval_shape(
        lambda: groups.encode(groups.memory(), tokens, step, contexts=2)
    )
    assert encoding.z.shape == (2, 2 * B, 1, 8) and encoding.entropy.shape == (2, 2 * B, 1)
    assert memory.keys.shape == (3, 2 * B, P + N + S, 2, 2)
    assert groups.take(encoding, step) is encoding
