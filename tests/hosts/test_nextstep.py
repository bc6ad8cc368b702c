"""The NextStep-1 backbone: inputs, cache, verifying drafts, losses, guidance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from driftar_jax.heads.flow_token import FlowTokenHead
from driftar_jax.hosts import nextstep, nextstep_own

B, P, N, C, HOLD, GAMMA = 2, 5, 4, 3, 9, 3
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
HEAD = FlowTokenHead(C, 6, 1)
PROMPT = jnp.array([[10, 1, 2, 3, 7], [10, 10, 4, 5, 7]])
PADDING = jnp.array([1, 2])
IDS = jnp.concatenate([PROMPT, jnp.full((B, N), HOLD), jnp.array([[8], [8]])], axis=1)


@pytest.fixture(scope="module")
def made():
    tokens = tiny.normal(0, B, N, C)
    init = functools.partial(HOST.init, method="everything")
    host = tiny.params(init, IDS, tokens, scale=0.4)["params"]
    head = tiny.params(HEAD.init, tokens[0], tokens[0, :, 0], tiny.normal(1, N, 8))["params"]
    return {"host": host, "head": head}, tokens


@pytest.fixture(scope="module")
def whole(made):
    params, tokens = made
    run = jax.jit(lambda p, t: HOST.apply({"params": p}, IDS, t, padding=PADDING))
    return run(params["host"], tokens)


@jax.jit
def _prefill(params, cache):
    return HOST.apply({"params": params}, PROMPT, cache, method="prefill")


@jax.jit
def _advance(params, tokens, cache):
    return HOST.apply({"params": params}, tokens, cache, method="advance")


def _start(params):
    return _prefill(params["host"], HOST.empty_cache(P + N + GAMMA + 1, PADDING, P))


def test_image_tokens_stand_at_their_placeholders(made):
    params, tokens = made
    ids = jnp.array([[1, HOLD, 2, HOLD, HOLD, 3], [HOLD, 4, 5, 6, 7, HOLD]])
    x = HOST.apply({"params": params["host"]}, ids, tokens[:, :3], method="embed")
    image = HOST.apply({"params": params["host"]}, tokens, method="embed_image")
    for b in range(B):
        nth = 0
        for i, token in enumerate(ids[b]):
            want = image[b, nth] if token == HOLD else params["host"]["embed_tokens"][token]
            nth += int(token == HOLD)
            np.testing.assert_allclose(x[b, i], want, atol=1e-6)
    with pytest.raises(ValueError, match=r"^tokens: got shape \(2, 3, 2\), allowed \[2, any, 3\]"):
        HOST.apply({"params": params["host"]}, ids, tokens[:, :3, :2], method="embed")


def test_step_by_step_is_the_whole_sequence(made, whole):
    """The encoding of token k stands at the slot before it; E is 0 for the first two."""
    params, tokens = made
    encoding, cache = _start(params)
    for k in range(N):
        np.testing.assert_allclose(encoding.z[:, 0], whole.z[:, P + k - 1], atol=3e-6)
        np.testing.assert_allclose(encoding.entropy[:, 0], whole.entropy[:, P + k - 1], atol=3e-6)
        assert bool((encoding.entropy == 0).all()) == (k < 2)
        encoding, cache = _advance(params["host"], tokens[:, k : k + 1], cache)


def test_verifying_gamma_drafts_is_stepwise_decoding(made, whole):
    """One call on the pending token and its drafts; wrong drafts are taken back without a trace."""
    params, tokens = made
    _, cache = _start(params)
    # Token 0 is pending; of the drafts of tokens 1..3 row 0 gets one right, row 1 all.
    drafts = tiny.changed(tokens[:, : GAMMA + 1], np.s_[0, 2:], by=1.0)
    encoding, cache = _advance(params["host"], drafts, cache)
    # Encodings of tokens 1.. up to the one behind the last right draft.
    for row, right in ((0, 2), (1, 4)):
        at = slice(P, P + right)
        np.testing.assert_allclose(encoding.z[row, :right], whole.z[row, at], atol=3e-6)
        np.testing.assert_allclose(encoding.entropy[row, :right], whole.entropy[row, at], atol=3e-6)
    assert np.abs(encoding.z[0, 2] - whole.z[0, P + 2]).max() > 1e-3
    cache = cache.rolled_back(P + jnp.array([2, 3]))
    pending = jnp.stack([tokens[0, 2:3], tokens[1, 3:4]])
    encoding, cache = _advance(params["host"], pending, cache)
    for row, slot in ((0, P + 2), (1, P + 3)):
        np.testing.assert_allclose(encoding.z[row, 0], whole.z[row, slot], atol=3e-6)
        np.testing.assert_allclose(encoding.entropy[row, 0], whole.entropy[row, slot], atol=3e-6)


def test_positions_reach_the_condition_alone(made):
    params, tokens = made
    with_table = HOST.clone(positions=True)
    z = tiny.normal(3, B, 8)
    told = with_table.apply({"params": params["host"]}, z, jnp.int32(33), method="condition")
    table = nextstep.generation_positions(8)
    want = HOST.apply({"params": params["host"]}, z + table[None, 33], method="condition")
    np.testing.assert_allclose(told, want, atol=1e-6)
    # Row 33 is column 1 of row 1; column first, sines first.
    np.testing.assert_allclose(table[33, [0, 2, 4]], [np.sin(1), np.cos(1), np.sin(1)], rtol=1e-6)
    np.testing.assert_allclose(table[2, [0, 4]], [np.sin(2), 0], rtol=1e-6)


@pytest.mark.parametrize("project", [False, True])
def test_losses_match_a_plain_sum(made, whole, project):
    params, tokens = made
    copies, rows = 2, B * N
    noise, u = tiny.normal(5, copies * rows, C), tiny.normal(6, copies * rows)
    weight = jnp.array([1.0, 0.25])
    run = jax.jit(
        lambda params: nextstep_own.training_losses(
            HOST,
            HEAD,
            params,
            IDS,
            tokens,
            noise,
            u,
            image_weight=weight,
            padding=PADDING,
            project=project,
        )
    )
    got = run(params)
    logits = HOST.apply({"params": params["host"]}, whole.z, method="logits")
    logp = np.asarray(jax.nn.log_softmax(logits), np.float64)
    nats = [
        -logp[b, i, IDS[b, i + 1]]
        for b in range(B)
        for i in range(int(PADDING[b]), IDS.shape[1] - 1)
        if IDS[b, i + 1] != HOLD
    ]
    np.testing.assert_allclose(got.text, np.mean(nats), rtol=1e-5)
    z = whole.z[:, P - 1 : P + N - 1]
    c = HOST.apply({"params": params["host"]}, z, method="condition") if project else z
    total = 0.0
    for i in range(copies * rows):
        b, k = divmod(i % rows, N)
        t = jax.nn.sigmoid(u[i])
        v = HEAD.apply(
            {"params": params["head"]}, t * tokens[b, k] + (1 - t) * noise[i], t, c[b, k]
        )
        total += float(weight[b] * jnp.mean((v - tokens[b, k] + noise[i]) ** 2))
    np.testing.assert_allclose(got.image, total / (copies * N * float(weight.sum())), rtol=1e-5)
    np.testing.assert_allclose(got.total, 0.01 * got.text + got.image, rtol=1e-6)
    with pytest.raises(ValueError, match="^noise: got shapes"):
        nextstep_own.training_losses(HOST, HEAD, params, IDS, tokens, noise[1:], u[1:])


def test_guidance_schedules():
    np.testing.assert_allclose(nextstep.guidance_at(3.0, 5, "linear"), [3.0, 2.6, 2.2, 1.8, 1.4])
    np.testing.assert_allclose(nextstep.guidance_at(3.0, 4, "rising"), [1.5, 1.5, 2.0, 2.5])
    np.testing.assert_array_equal(nextstep.guidance_at(7.5, 3), [7.5] * 3)
    with pytest.raises(ValueError, match="^guidance_schedule: got 'cosine'"):
        nextstep.guidance_at(2.0, 3, "cosine")


def test_normalised_tokens_lie_on_the_sphere():
    x = nextstep.normalise(3.0 + 2.0 * tiny.normal(0, B, N, C))
    np.testing.assert_allclose(x.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(x, axis=-1), np.sqrt(C), rtol=1e-4)


def test_bfloat16_is_close(made, whole):
    params, tokens = made
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params["host"])
    host = HOST.clone(dtype=jnp.bfloat16)
    got = jax.jit(lambda p, t: host.apply({"params": p}, IDS, t, padding=PADDING))(half, tokens)
    assert got.z.dtype == jnp.float32 and got.entropy.dtype == jnp.float32
    keep = np.arange(IDS.shape[1]) >= np.asarray(PADDING)[:, None]
    np.testing.assert_allclose(got.z[keep], whole.z[keep], atol=0.2)
    np.testing.assert_allclose(got.entropy[keep], whole.entropy[keep], atol=0.02)


def test_impossible_sizes_name_the_field():
    with pytest.raises(ValueError, match="^placeholder: got 11, allowed 0..10"):
        wrong = HOST.clone(placeholder=11)
        jax.eval_shape(wrong.init, jax.random.key(0), IDS, tiny.normal(0, B, N, C))
