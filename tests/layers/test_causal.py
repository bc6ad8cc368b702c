"""The causal stack: a plain loop, the cache against whole sequences, going back, padding."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from driftar_jax.layers import causal

B, T, D, L, H, KV, K, M = 2, 9, 12, 3, 6, 3, 4, 14
START = 4  # first content slot
ROOM = T + 3


def _stack(**changes):
    fields = dict(
        depth=L,
        width=D,
        num_heads=H,
        num_kv_heads=KV,
        head_dim=K,
        mlp_width=M,
        norm_eps=1e-5,
        rope_theta=100.0,
    )
    return causal.CausalStack(**{**fields, **changes})


STACK = _stack()
PADDING = jnp.array([0, 2])
CONTENT = jnp.broadcast_to(jnp.arange(T) >= START, (B, T))


@pytest.fixture(scope="module")
def made():
    x = tiny.normal(0, B, T, D)
    return {"params": tiny.params(STACK.init, x, scale=0.4)["params"]}, x


@pytest.fixture(scope="module")
def whole(made):
    run = jax.jit(lambda v, x: STACK.apply(v, x, padding=PADDING, content=CONTENT))
    return run(*made)


@jax.jit
def _advance(variables, x, cache):
    return STACK.apply(variables, x, cache, method="advance")


def _cache(slots=ROOM, padding=PADDING, depth=L):
    return causal.empty_cache(
        depth, KV, K, slots=slots, padding=padding, content_start=START, dtype=jnp.float32
    )


def _plain(params, x, padding):
    """Float64 loop over layers, rows, positions and heads; hidden states and entropies."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    rms = lambda h, w: w * h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-5)  # noqa: E731
    line = lambda h, w: h @ w["kernel"] + w.get("bias", 0)  # noqa: E731
    angles = np.arange(T)[:, None] * 100.0 ** (-np.arange(0, K, 2) / K)
    turn = np.exp(1j * angles)[:, None]

    def rotate(h):
        z = (h[..., : K // 2] + 1j * h[..., K // 2 :]) * turn
        return np.concatenate([z.real, z.imag], axis=-1)

    hidden, entropies = np.zeros((B, T, D)), np.zeros((B, T))
    for b in range(B):
        h = np.asarray(x[b], np.float64)
        for i in range(L):
            w = jax.tree.map(lambda a: a[i], p["layers"])  # noqa: B023
            u = rms(h, w["input_norm"]["scale"])
            q = rotate(line(u, w["q_proj"]).reshape(T, H, K))
            k = rotate(line(u, w["k_proj"]).reshape(T, KV, K))
            v = line(u, w["v_proj"]).reshape(T, KV, K)
            out = np.zeros((T, H, K))
            for r in range(int(padding[b]), T):
                shares = []
                for head in range(H):
                    seen = slice(int(padding[b]), r + 1)
                    logits = k[seen, head // (H // KV)] @ q[r, head] / np.sqrt(K)
                    a = np.exp(logits - logits.max())
                    a /= a.sum()
                    out[r, head] = a @ v[seen, head // (H // KV)]
                    c = a[max(START - int(padding[b]), 0) :]
                    shares.append(c / c.sum() if len(c) else c)
                if i == L - 2 and len(shares[0]) > 1:
                    c = np.mean(shares, axis=0)
                    entropies[b, r] = -(c * np.log(c)).sum() / np.log(len(c))
            h = h + line(out.reshape(T, -1), w["o_proj"])
            u = rms(h, w["mlp_norm"]["scale"])
            gate = line(u, w["gate_proj"])
            h = h + line(gate / (1 + np.exp(-gate)) * line(u, w["up_proj"]), w["down_proj"])
        hidden[b] = rms(h, p["norm"]["scale"])
    return hidden, entropies


def _valid(array):
    """Everything but padding."""
    return np.concatenate([np.asarray(array[b, PADDING[b] :]).reshape(-1) for b in range(B)])


def test_matches_a_float64_loop(made, whole):
    variables, x = made
    hidden, entropies = _plain(variables["params"], x, PADDING)
    np.testing.assert_allclose(_valid(whole[0]), _valid(hidden), atol=2e-5)
    np.testing.assert_allclose(_valid(whole[1]), _valid(entropies), atol=2e-6)
    assert np.isfinite(whole[0]).all() and (whole[1][:, : START + 1] == 0).all()
    assert (whole[1][:, START + 1 :] > 0).all()


@pytest.mark.parametrize("split", [(9,), (5, 4), (4, 1, 1, 1, 1, 1), (3, 2, 4)])
def test_cached_is_uncached(made, whole, split):
    """One call, a prompt and single steps, a prompt and several at once."""
    variables, x = made
    cache, hidden, entropies = _cache(), [], []
    for part in np.split(x, np.cumsum(split)[:-1], axis=1):
        h, e, cache = _advance(variables, part, cache)
        hidden.append(h)
        entropies.append(e)
    np.testing.assert_allclose(_valid(np.concatenate(hidden, axis=1)), _valid(whole[0]), atol=3e-6)
    np.testing.assert_allclose(
        _valid(jnp.concatenate(entropies, axis=1)), _valid(whole[1]), atol=2e-6
    )
    np.testing.assert_array_equal(cache.length, [T, T])


def test_going_back_leaves_no_trace(made, whole):
    """Rows go back to different lengths and then see what a straight run sees."""
    variables, x = made
    _, _, cache = _advance(variables, x[:, :4], _cache())
    # Drafts: one right, three right.
    wrong = tiny.changed(tiny.changed(x[:, 4:8], np.s_[0, 1:], by=1.0), np.s_[1, 3:], by=-2.0)
    _, _, cache = _advance(variables, wrong, cache)
    cache = cache.rolled_back(jnp.array([5, 7]))
    np.testing.assert_array_equal(cache.length, [5, 7])
    # The next two inputs of each row, at slots of its own.
    following = np.stack([x[0, 5:7], x[1, 7:9]])
    h, e, cache = _advance(variables, following, cache)
    for b, first in ((0, 5), (1, 7)):
        np.testing.assert_allclose(h[b], whole[0][b, first : first + 2], atol=3e-6)
        np.testing.assert_allclose(e[b], whole[1][b, first : first + 2], atol=2e-6)
    np.testing.assert_array_equal(cache.length, [7, 9])


def test_branches_of_an_image_go_back_together():
    cache = _cache(padding=jnp.zeros(4, jnp.int32))
    cache = cache.replace(length=jnp.array([5, 4, 5, 4]))
    np.testing.assert_array_equal(cache.rolled_back(jnp.array([3, 6])).length, [3, 4, 3, 4])


def test_a_full_cache_keeps_its_keys(made):
    """Overshooting inputs are not written, and move nothing back over valid keys."""
    variables, x = made
    _, _, full = _advance(variables, x, _cache(T))
    _, _, more = _advance(variables, x[:, :3], full)
    np.testing.assert_array_equal(more.keys, full.keys)
    np.testing.assert_array_equal(more.length, [T, T])


def test_padding_changes_nothing_but_the_slot(made, whole):
    """Positions are relative: the row without its padding gives the same."""
    variables, x = made
    content = np.arange(T - 2)[None] >= START - 2
    h, e = jax.jit(STACK.apply)(variables, x[1:, 2:], content=content)
    np.testing.assert_allclose(h[0], whole[0][1, 2:], atol=5e-6)
    np.testing.assert_allclose(e[0], whole[1][1, 2:], atol=5e-6)


def test_layers_that_lie_apart_are_those_of_the_stack(made, monkeypatch):
    """Of weights that a CPU's cache does not hold; other stacks stay as they are."""
    variables, x = made
    assert causal.apart(variables["params"]) is variables["params"]
    monkeypatch.setattr(causal, "_APART_BYTES", (0, 2**30))
    params = causal.apart(variables["params"])
    assert params.keys() == {"norm", "apart_0", "apart_1", "apart_2"}
    _, _, begun = _advance(variables, x[:, :4], _cache())
    whole, loose = (_advance(v, x[:, 4:6], begun) for v in (variables, {"params": params}))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(loose), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6)
    monkeypatch.setattr(causal, "_APART_LAYERS", L - 1)
    assert causal.apart(variables["params"]) is variables["params"]
    monkeypatch.undo()
    monkeypatch.setattr(causal, "_APART_BYTES", (0, 8))
    assert causal.apart(variables["params"]) is variables["params"]


def test_gradients_are_finite_and_recomputed_ones_equal(made):
    variables, x = made

    def grads(stack):
        def total(variables):
            h, e = stack.apply(variables, x, padding=PADDING, content=CONTENT)
            keep = jnp.arange(T)[None] >= PADDING[:, None]
            return jnp.sum(jnp.where(keep[..., None], h**2, 0)) + jnp.sum(jnp.where(keep, e, 0))

        return jax.jit(jax.grad(total))(variables)

    plain, again = grads(STACK), grads(_stack(remat="full"))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        assert np.isfinite(a).all() and np.abs(a).max() > 0
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


def test_the_donated_cache_is_not_copied(made):
    """What a call holds beside the cache is of one layer's size, whatever the depth."""
    deep, x = _stack(depth=12), made[1][:, :1]
    variables = nn.meta.unbox(jax.eval_shape(deep.init, jax.random.key(0), x))
    cache = _cache(64, depth=12)
    run = jax.jit(lambda v, x, c: deep.apply(v, x, c, method="advance"), donate_argnums=2)
    memory = run.lower(variables, x, cache).compile().memory_analysis()
    size = cache.keys.nbytes + cache.values.nbytes
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < size / 2


def test_chunks_of_queries_bound_the_entropy_layer():
    long, chunk = 64, 8
    stack = _stack(entropy_chunk=chunk)
    x = jax.ShapeDtypeStruct((1, long, D), jnp.float32)
    variables = nn.meta.unbox(jax.eval_shape(stack.init, jax.random.key(0), x))
    # Lowered, so that only this machine's branch is there.
    text = jax.jit(lambda v, x: stack.apply(v, x)[1]).lower(variables, x).as_text()
    assert f"1x{H}x{chunk}x{long}xf32" in text
    assert f"1x{H}x{long}x{long}xf32" not in text


@pytest.mark.parametrize(
    ("field", "changes"),
    [("depth", {"depth": 1}), ("num_kv_heads", {"num_kv_heads": 4}), ("head_dim", {"head_dim": 5})],
)
def test_impossible_sizes_name_the_field(field, changes):
    with pytest.raises(ValueError, match=f"^{field}: got"):
        _stack(**changes).init(jax.random.key(0), jnp.zeros((B, T, D)))
