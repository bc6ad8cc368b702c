"""The block and its entropy: two roads for every number."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy import special

from driftar_jax.layers import attention as attention_lib
from driftar_jax.layers.attention import attention_with_entropy
from driftar_jax.layers.blocks import TransformerBlock

B, N, H, K, START = 2, 7, 3, 4, 2
WIDTH = H * K

attention = jax.jit(attention_with_entropy, static_argnames=("content_start", "chunk", "kind"))


def _qkv(seed=0):
    return list(tiny.normal(seed, 3, B, N, H, K))


def _brute_force(q, k, v, mask, start):
    """Float64 loop over rows and heads."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    out, ent = np.zeros(q.shape), np.zeros(q.shape[:2])
    for b in range(B):
        for r in range(N):
            content = []
            for h in range(H):
                logits = k[b, :, h] @ q[b, r, h] / np.sqrt(K)
                w = np.exp(logits) * mask[b, r]
                w /= w.sum()
                out[b, r, h] = w @ v[b, :, h]
                content.append(w[start:] / w[start:].sum())
            p = np.mean(content, axis=0)
            n = mask[b, r, start:].sum()
            p = p[p > 0]
            ent[b, r] = -(p * np.log(p)).sum() / np.log(n) if n > 1 else 0.0
    return out, ent


@pytest.mark.parametrize("chunk", [2, 3, 256])
@pytest.mark.parametrize("masked", ["none", "causal"])
def test_attention_with_entropy_matches_a_float64_loop(chunk, masked):
    q, k, v = _qkv()
    mask = np.ones((B, N, N), bool)
    if masked == "causal":
        mask = np.tril(mask)
        mask[:, :, START] = True  # every row needs one content key for the loop above
    given = None if masked == "none" else mask
    out, ent = attention(q, k, v, given, content_start=START, chunk=chunk)
    want_out, want_ent = _brute_force(q, k, v, mask, START)
    np.testing.assert_allclose(out, want_out, atol=2e-6)
    np.testing.assert_allclose(ent, want_ent, atol=2e-6)


def test_content_may_lie_anywhere():
    """A mask of content keys: as a suffix the same as `content_start`, else by a permutation."""
    q, k, v = _qkv(5)
    content = np.arange(N)[None].repeat(B, axis=0) >= START
    want_out, want = attention(q, k, v, content_start=START)
    order = np.random.default_rng(6).permutation(N)
    out, got = attention(q, k[:, order], v[:, order], content=content[:, order], chunk=3)
    np.testing.assert_allclose(out, want_out, atol=2e-6)
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_consecutive_query_heads_share_a_key_head():
    q, k, v = _qkv(7)
    mask = np.tril(np.ones((1, N, N), bool))
    q = np.concatenate([q, q + 1], axis=2)
    got = attention(q, k, v, mask)
    wide = [np.repeat(a, 2, axis=2) for a in (k, v)]
    for a, b in zip(got, attention(q, *wide, mask), strict=True):
        np.testing.assert_array_equal(a, b)
    fused = jax.jit(jax.nn.dot_product_attention)(q, k, v, mask=mask[:, None])
    np.testing.assert_allclose(got[0], fused, atol=2e-6)


def test_head_average_comes_after_renormalisation():
    q, k, v = _qkv(3)
    _, ent = attention(8 * q, k, v, content_start=START)
    w = special.softmax(np.einsum("bqhk,bnhk->bhqn", 8 * q, k) / 2.0, axis=-1)
    first_mean = w.mean(1)[..., START:]
    first_mean = first_mean / first_mean.sum(-1, keepdims=True)
    p = np.asarray(first_mean, np.float64)
    other = -(p * np.log(p)).sum(-1) / np.log(N - START)
    assert np.abs(np.asarray(ent) - other).max() > 1e-2


def test_row_that_sees_nothing_is_finite_forward_and_backward():
    q, k, v = _qkv(1)
    mask = tiny.changed(np.ones((B, N, N), bool), (0, 3), to=False)

    def total(q):
        out, ent = attention(q, k, v, mask, content_start=START, chunk=3)
        return out.sum() + ent.sum(), ent

    grad, ent = jax.jit(jax.grad(total, has_aux=True))(q)
    assert np.isfinite(grad).all()
    assert ent[0, 3] == 0.0


def test_chunks_never_hold_the_whole_map():
    long, chunk = 96, 8
    q = jax.ShapeDtypeStruct((1, long, H, K), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda q: attention(q, q, q, chunk=chunk, kind="xla"))(q)
    assert f"1,{H},{chunk},{long}]" in str(jaxpr)
    assert f"1,{H},{long},{long}]" not in str(jaxpr)


@pytest.mark.parametrize(
    ("field", "kwargs"), [("content_start", {"content_start": N}), ("chunk", {"chunk": 0})]
)
def test_bad_arguments_name_the_field(field, kwargs):
    with pytest.raises(ValueError, match=f"^{field}: got"):
        attention(*_qkv(), **kwargs)


def _block(**kwargs):
    block = TransformerBlock(WIDTH, H, **kwargs)
    x = tiny.normal(5, B, N, WIDTH)
    return block, tiny.params(block.init, x, scale=0.4), x


@functools.cache
def _compiled(block, **options):
    return jax.jit(functools.partial(block.apply, **options))


WITH_ENTROPY = dict(content_start=START, method="with_entropy")


def test_entropy_form_equals_the_fused_form():
    block, params, x = _block(entropy_chunk=3)
    plain = _compiled(block)(params, x)
    out, ent = _compiled(block, **WITH_ENTROPY)(params, x)
    np.testing.assert_allclose(out, plain, atol=2e-6)
    assert ent.shape == (B, N - START) and ent.dtype == jnp.float32


def test_masked_keys_equal_dropped_keys():
    block, params, x = _block()
    keep = np.array([0, 1, 3, 6])
    mask = tiny.changed(np.zeros((B, N), bool), np.s_[:, keep], to=True)
    masked = np.asarray(_compiled(block)(params, x, mask))[:, keep]
    np.testing.assert_allclose(masked, _compiled(block)(params, x[:, keep]), atol=2e-6)


def test_fully_masked_block_is_finite():
    block, params, x = _block()
    mask = jnp.zeros((B, N), bool)
    assert np.isfinite(_compiled(block)(params, x, mask)).all()
    out, ent = _compiled(block, **WITH_ENTROPY)(params, x, mask)
    assert np.isfinite(out).all() and (ent == 0).all()


def test_attention_dropout_keeps_entropy_and_changes_output():
    block, params, x = _block(attention_dropout=0.5, entropy_chunk=3)

    @jax.jit
    def run(key):
        rngs = {"dropout": key}
        return block.apply(params, x, deterministic=False, rngs=rngs, **WITH_ENTROPY)

    (a, ent_a), (b, ent_b) = run(jax.random.key(0)), run(jax.random.key(1))
    assert np.abs(a - b).max() > 1e-3
    np.testing.assert_array_equal(ent_a, ent_b)
    train = _compiled(block, deterministic=False)
    trained = train(params, x, rngs={"dropout": jax.random.key(0)})
    assert np.abs(trained - _compiled(block)(params, x)).max() > 1e-3


def test_bfloat16_keeps_float32_entropy():
    block, params, x = _block(dtype=jnp.bfloat16)
    run = _compiled(block, method="with_entropy")
    out, ent = run(params, x.astype(jnp.bfloat16))
    assert out.dtype == jnp.bfloat16 and ent.dtype == jnp.float32


def test_every_matrix_has_logical_names():
    block = TransformerBlock(WIDTH, H)
    tree = jax.eval_shape(block.init, jax.random.key(0), jnp.zeros((B, N, WIDTH)))["params"]
    names = {
        "qkv": ("embed", None, "heads", None),
        "proj": ("heads", "embed"),
        "fc1": ("embed", "mlp"),
        "fc2": ("mlp", "embed"),
    }
    for name, want in names.items():
        assert tree[name]["kernel"].names == want


def test_heads_must_divide_width():
    with pytest.raises(ValueError, match="^num_heads: got 5"):
        TransformerBlock(WIDTH, 5).init(jax.random.key(0), jnp.zeros((1, 2, WIDTH)))


def test_attention_image_by_image_is_the_same(monkeypatch):
    shape = (3, 6, 2, 4)
    q, k, v = (jax.random.normal(jax.random.key(i), shape) for i in range(3))
    mask = jax.random.bernoulli(jax.random.key(3), 0.6, (3, 6, 6)) | jnp.eye(6, dtype=bool)[None]
    for seen in (None, mask[:, :1], mask):
        at_once = attention_lib.attention(q, k, v, seen)
        with monkeypatch.context() as patch:
            patch.setattr(attention_lib, "_CACHED", 0)
            program = jax.make_jaxpr(attention_lib.attention)(q, k, v, seen)
            apart = attention_lib.attention(q, k, v, seen)
        assert "scan" in str(program)
        np.testing.assert_allclose(apart, at_once, rtol=1e-6, atol=1e-6)
