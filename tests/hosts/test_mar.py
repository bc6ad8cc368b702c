"""The MAR backbone: masking, dropping, unconditional rows, entropy; its schedules and patches."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from driftar_jax.data.pixels import patchify, unpatchify
from driftar_jax.hosts import mar, schedules

B, N, C, F, CLASSES, WIDTH = 3, 6, 2, 4, 5, 8
KNOWN = jnp.array([[1, 0, 0, 1, 0, 0], [0, 1, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0]], bool)
LABEL = jnp.array([2, -1, 0])


def _host(**kwargs):
    fields = dict(encoder_depth=1, decoder_depth=2, num_heads=2, buffer_size=F)
    return mar.MAR(N, C, CLASSES, WIDTH, **{**fields, **kwargs})


@pytest.fixture(scope="module")
def made():
    host = _host()
    tokens = tiny.normal(0, B, N, C)
    return host, tiny.params(host.init, tokens, KNOWN, LABEL), tokens


@functools.cache
def _compiled(host, **options):
    return jax.jit(functools.partial(host.apply, **options))


def _run(made, tokens=None, known=KNOWN, label=LABEL, **options):
    """The host's encoding; everything but `options` is an argument of the compiled program."""
    host, variables, own = made
    return _compiled(host, **options)(variables, own if tokens is None else tokens, known, label)


def test_shapes_and_types(made):
    out = _run(made)
    assert out.z.shape == (B, N, WIDTH) and out.entropy.shape == (B, N)
    assert out.entropy.dtype == jnp.float32
    assert (out.entropy > 0).all() and (out.entropy <= 1).all()


@pytest.mark.parametrize("keep", [3, 4, N])
def test_dropping_equals_masking(made, keep):
    masked, dropped = _run(made), _run(made, keep=keep)
    np.testing.assert_allclose(dropped.z, masked.z, atol=3e-5)
    np.testing.assert_allclose(dropped.entropy, masked.entropy, atol=1e-5)
    rows = _run(made, keep=keep, method="encode_known")
    assert rows.shape == (B, F + keep, WIDTH)


def test_nothing_known(made):
    nothing = jnp.zeros_like(KNOWN)
    masked, dropped = _run(made, known=nothing), _run(made, known=nothing, keep=0)
    np.testing.assert_allclose(dropped.z, masked.z, atol=3e-5)


@pytest.mark.parametrize("keep", [None, 4])
def test_unknown_tokens_are_never_read(made, keep):
    spoilt = jnp.where(KNOWN[..., None], made[2], jnp.nan)
    want = _run(made, keep=keep)
    np.testing.assert_array_equal(_run(made, spoilt, keep=keep).z, want.z)


def test_known_tokens_and_label_are_read(made):
    base = _run(made).z
    moved = _run(made, made[2] + KNOWN[..., None]).z
    assert np.abs(moved - base)[:2].max() > 1e-3
    relabelled = _run(made, label=jnp.array([3, -1, 0])).z
    assert np.abs(relabelled - base)[0].max() > 1e-4
    np.testing.assert_array_equal(relabelled[1:], base[1:])


def test_label_minus_one_is_the_unconditional_embedding(made):
    host, variables, tokens = made
    as_class = jax.tree.map(lambda a: a, variables)
    fake = variables["params"]["fake_latent"]
    as_class["params"]["class_emb"] = tiny.changed(variables["params"]["class_emb"], 4, to=fake[0])
    want = _run((host, as_class, tokens), label=jnp.full(B, 4))
    got = _run(made, label=jnp.full(B, -1))
    np.testing.assert_allclose(got.z, want.z, atol=1e-6)


def test_rows_of_a_batch_do_not_meet(made):
    alone, whole = _run(made, made[2][1:2], KNOWN[1:2], LABEL[1:2]), _run(made)
    np.testing.assert_allclose(alone.z[0], whole.z[1], atol=3e-5)


def test_entropy_is_the_penultimate_decoder_block_over_content_keys():
    host = _host(decoder_depth=3)
    tokens = tiny.normal(0, B, N, C)
    variables = tiny.params(host.init, tokens, KNOWN, LABEL, scale=0.3)
    run = functools.partial(host.apply, capture_intermediates=lambda m, name: m.name == "qkv")
    out, state = jax.jit(run)(variables, tokens, KNOWN, LABEL)
    block = state["intermediates"]["decoder_blocks_1"]["qkv"]["__call__"][0]
    q, k = (np.asarray(a, np.float64) for a in block[:2])
    logits = np.einsum("bqhk,bnhk->bhqn", q, k)[:, :, F:, F:] / np.sqrt(q.shape[-1])
    p = np.exp(logits)
    p = (p / p.sum(-1, keepdims=True)).mean(1)
    np.testing.assert_allclose(out.entropy, -(p * np.log(p)).sum(-1) / np.log(N), atol=2e-6)


def test_dropout_only_in_training(made):
    host, variables, tokens = made

    @jax.jit
    def run(key):
        rngs = {"dropout": key}
        return host.apply(variables, tokens, KNOWN, LABEL, keep=3, deterministic=False, rngs=rngs)

    assert np.abs(run(jax.random.key(0)).z - run(jax.random.key(1)).z).max() > 1e-3


def test_bfloat16_is_close():
    tokens = tiny.normal(0, B, N, C)
    variables = tiny.params(_host().init, tokens, KNOWN, LABEL)
    want, got = (
        _run((_host(dtype=kind), variables, tokens)) for kind in (jnp.float32, jnp.bfloat16)
    )
    assert got.z.dtype == jnp.float32 and got.entropy.dtype == jnp.float32
    np.testing.assert_allclose(got.z, want.z, atol=0.1)
    np.testing.assert_allclose(got.entropy, want.entropy, atol=0.01)


@pytest.mark.parametrize(
    ("field", "kwargs"), [("decoder_depth", {"decoder_depth": 0}), ("num_heads", {"num_heads": 3})]
)
def test_impossible_sizes_name_the_field(field, kwargs):
    with pytest.raises(ValueError, match=f"^{field}: got"):
        _host(**kwargs).init(jax.random.key(0), jnp.zeros((B, N, C)), KNOWN, LABEL)


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("tokens", lambda h, v: h.apply(v, jnp.zeros((B, N, C + 1)), KNOWN, LABEL)),
        ("known", lambda h, v: h.apply(v, jnp.zeros((B, N, C)), KNOWN[:, 1:], LABEL)),
        ("keep", lambda h, v: h.apply(v, jnp.zeros((B, N, C)), KNOWN, LABEL, keep=N + 1)),
    ],
)
def test_misfits_name_the_field(made, field, call):
    with pytest.raises(ValueError, match=f"^{field}: got"):
        call(*made[:2])


def test_every_parameter_of_more_than_one_axis_has_logical_names():
    tree = jax.eval_shape(_host().init, jax.random.key(0), jnp.zeros((B, N, C)), KNOWN, LABEL)[
        "params"
    ]
    known_names = {"embed", "mlp", "heads", "position", "class", None}
    boxed = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    for leaf in boxed:
        if isinstance(leaf, nn.LogicallyPartitioned):
            assert len(leaf.names) == leaf.value.ndim and set(leaf.names) <= known_names
        else:
            assert leaf.ndim == 1


@pytest.mark.parametrize(
    ("ar_steps", "want"),
    [
        (16, (2, 3, 7, 8, 11, 13, 15, 16, 19, 20, 22, 23, 23, 25, 24, 25)),
        (256, (1,) * 256),
        (1, (256,)),
    ],
)
def test_cosine_counts(ar_steps, want):
    assert schedules.cosine_counts(256, ar_steps) == want


@pytest.mark.parametrize("ar_steps", [1, 2, 7, 31, 64, 100])
def test_cosine_counts_always_cover_the_grid(ar_steps):
    counts = schedules.cosine_counts(100, ar_steps)
    assert sum(counts) == 100 and min(counts) >= 1 and len(counts) == ar_steps


def test_linear_guidance_never_reaches_the_nominal_scale():
    scales = schedules.guidance_at(3.0, 64, 8)
    assert (np.diff(scales) > 0).all() and scales.dtype == np.float32
    np.testing.assert_allclose(scales[-1], 1 + 2 * 63 / 64)
    np.testing.assert_array_equal(schedules.guidance_at(3.0, 64, 8, "constant"), np.full(8, 3.0))


def test_patches_have_channels_slowest():
    image = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    tokens = patchify(image, 2)
    assert tokens.shape == (2, 6, 12)
    want = [int(image[1, 2 + a, 4 + b, c]) for c in range(3) for a in range(2) for b in range(2)]
    np.testing.assert_array_equal(tokens[1, 5], want)
    np.testing.assert_array_equal(unpatchify(tokens, 4, 6, 2), image)


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("ar_steps", lambda: schedules.cosine_counts(4, 5)),
        ("ar_steps", lambda: schedules.guidance_at(2.0, 4, 0)),
        ("schedule", lambda: schedules.guidance_at(2.0, 4, 2, "cosine")),
        ("patch", lambda: patchify(jnp.zeros((1, 4, 6, 3)), 4)),
        ("tokens", lambda: unpatchify(jnp.zeros((1, 5, 12)), 4, 6, 2)),
        ("patch", lambda: unpatchify(jnp.zeros((1, 6, 12)), 4, 6, 0)),
    ],
)
def test_bad_schedules_and_patches_name_the_field(field, call):
    with pytest.raises(ValueError, match=f"^{field}: got"):
        call()
