"""TransDiff's backbone: the 1-step form, groups in a row, and the cache over groups."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from driftar_jax.hosts.transdiff import PRESETS, TransDiff, class_table

ONE = dict(num_rows=6, groups=1, reference_dim=5, num_classes=3, width=8, depth=3, num_heads=2)
MANY = dict(ONE, num_rows=12, groups=4)
LABEL = jnp.array([1, -1])


def made(**fields):
    """A module and random parameters; every table, shift and bias is drawn as well."""
    host = TransDiff(buffer_size=2, **fields)
    return host, tiny.params(host.init, LABEL, scale=0.4)["params"]


@pytest.fixture(scope="module")
def one():
    return made(**ONE)


@pytest.fixture(scope="module")
def many():
    return made(**MANY)


def images(batch=2, steps=3):
    return tiny.normal(2, batch, steps, 3, 5)


def run(made, *args, **kwargs):
    host, params = made
    call = functools.partial(host.apply, **kwargs)
    return jax.jit(call)({"params": params}, *args)


def same(got, want, atol=2e-6):
    for name in ("z", "entropy"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), atol=atol)


def test_the_one_step_form_depends_on_the_class_alone(one):
    encoding = run(one, jnp.array([1, -1, 1]))
    assert encoding.z.shape == (3, 6, 8) and encoding.entropy.shape == (3, 6)
    np.testing.assert_array_equal(encoding.z[0], encoding.z[2])
    assert np.abs(encoding.z[0] - encoding.z[1]).max() > 0.1
    assert ((encoding.entropy > 0) & (encoding.entropy <= 1)).all()


@pytest.mark.slow  # the recordings hold it
def test_the_table_of_classes_is_what_calls_give(one):
    host, params = one
    table = class_table(host, params, batch=3)
    assert table.z.shape == (4, 6, 8)
    same(jax.tree.map(lambda x: x[LABEL], table), run(one, LABEL))


@pytest.mark.slow  # the other table is tested above
def test_the_table_of_many_groups_is_group_0(many):
    host, params = many
    table = class_table(host, params)
    full = run(many, LABEL, images())
    same(jax.tree.map(lambda x: x[LABEL], table), jax.tree.map(lambda x: x[:, :3], full))


def test_a_prefix_equals_the_full_run(many):
    full = run(many, LABEL, images())
    assert full.z.shape == (2, 12, 8)
    for steps in (0, 2):
        references = images()[:, :steps] if steps else None
        rows = 3 * (steps + 1)
        same(run(many, LABEL, references), jax.tree.map(lambda x, r=rows: x[:, :r], full))


def test_later_groups_read_the_images_of_their_past(many):
    changed = tiny.changed(images(), np.s_[:, 1], by=1.0)
    difference = np.abs(run(many, LABEL, images()).z - run(many, LABEL, changed).z)
    assert difference[:, :6].max() < 1e-6 and difference[:, 6:].min(axis=(0, 2)).max() > 1e-4


def test_the_cache_gives_the_full_run(many):
    full = run(many, LABEL, images())
    encoding, cache = run(many, LABEL, method="begin")
    parts = [encoding]
    for first, last in ((0, 1), (1, 3)):
        encoding, cache = run(many, images()[:, first:last], cache, method="extend")
        parts.append(encoding)
    same(jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *parts), full)
    np.testing.assert_array_equal(cache.length, [4, 4])


def test_the_cache_rolls_back_row_by_row(many):
    """Wrong drafts behind `length` leave no trace; each image stands at its own group."""
    full = run(many, LABEL, images())
    _, cache = run(many, LABEL, method="begin")
    wrong = 7.0 * images()[:, ::-1]
    draft = jnp.stack([images()[0, :1], wrong[1, :1]])
    _, cache = run(many, jnp.concatenate([draft, wrong[:, 1:]], axis=1), cache, method="extend")
    cache = cache.replace(length=jnp.array([2, 1]))
    following = jnp.stack([images()[0, 1:3], images()[1, 0:2]])
    encoding, cache = run(many, following, cache, method="extend")
    same(jax.tree.map(lambda x: x[0], encoding), jax.tree.map(lambda x: x[0, 6:12], full))
    same(jax.tree.map(lambda x: x[1], encoding), jax.tree.map(lambda x: x[1, 3:9], full))
    np.testing.assert_array_equal(cache.length, [4, 3])


def test_groups_beyond_the_last_are_not_kept(many):
    _, cache = run(many, LABEL, method="begin")
    _, cache = run(many, images(), cache, method="extend")
    before = cache.replace(length=jnp.array([3, 4]))
    _, after = run(many, images()[:, 2:], before, method="extend")
    np.testing.assert_array_equal(after.length, [4, 4])
    for old, new in zip(before.keys, after.keys, strict=True):
        np.testing.assert_allclose(old, new, atol=2e-6)


def test_a_row_sees_its_own_group_and_earlier_ones(many):
    group = np.array([0] * 2 + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3)
    np.testing.assert_array_equal(many[0].allowed, group[:, None] >= group[None])


def test_the_penultimate_mask_narrows_one_block(one):
    size = 8
    causal = jnp.tril(jnp.ones((size, size), bool))
    free, narrow = run(one, LABEL), run(one, LABEL, penultimate_mask=causal)
    everything = run(one, LABEL, penultimate_mask=jnp.ones((size, size), bool))
    same(everything, free)
    np.testing.assert_array_equal(narrow.entropy[:, 0], 0)  # one visible key
    # The last block sees everything again, so no row is left as it was.
    assert np.abs(narrow.z - free.z).max(axis=(0, 2)).min() > 1e-4


def test_entropy_takes_content_keys_of_the_past_alone(many):
    """With uniform attention each row has entropy 1, however many keys it may see."""
    host, params = many
    params = dict(params)
    block = dict(params["encoder_blocks_1"])
    block["qkv"] = jax.tree.map(
        lambda p: tiny.changed(p, np.s_[..., 0, :, :], to=0.0), block["qkv"]
    )
    params["encoder_blocks_1"] = block
    full = run((host, params), LABEL, images())
    np.testing.assert_allclose(full.entropy, 1.0, atol=1e-6)


def test_gradients_reach_every_parameter(many):
    host, params = many

    def loss(params):
        encoding = host.apply({"params": params}, LABEL, images())
        return jnp.sum(encoding.z**2) + jnp.sum(encoding.entropy)

    for path, grad in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params)):
        assert np.isfinite(grad).all() and np.abs(grad).max() > 0, path


def test_dropout_acts_in_training_alone(one):
    host, params = one
    call = functools.partial(host.apply, {"params": params}, LABEL, deterministic=False)
    first = call(rngs={"dropout": jax.random.key(0)})
    second = call(rngs={"dropout": jax.random.key(1)})
    assert np.abs(first.z - second.z).max() > 0.01
    same(run(one, LABEL), run(one, LABEL, deterministic=True))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(ONE, depth=1), "depth: got 1"),
        (dict(ONE, groups=0), "groups: got 0"),
        (dict(ONE, groups=4), "num_rows: got 6, allowed a multiple of 4 groups"),
        (dict(ONE, num_heads=3), "num_heads: got 3"),
    ],
)
def test_bad_fields_are_named(fields, message):
    host = TransDiff(buffer_size=2, **fields)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(host.init, jax.random.key(0), LABEL)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((LABEL[None],), {}, "label: got shape"),
        ((LABEL, jnp.zeros((2, 4, 3, 5))), {}, "references: got shape"),
        ((LABEL, jnp.zeros((2, 1, 2, 5))), {}, "references: got shape"),
        ((LABEL,), dict(penultimate_mask=jnp.ones((4, 4), bool)), "penultimate_mask: got shape"),
    ],
)
def test_bad_input_is_named(many, args, kwargs, message):
    host, params = many
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(functools.partial(host.apply, **kwargs), {"params": params}, *args)


def test_the_one_step_form_has_no_next_group(one):
    encoding, cache = run(one, LABEL, method="begin")
    same(encoding, run(one, LABEL))
    with pytest.raises(ValueError, match="groups: got 1"):
        run(one, images(steps=1), cache, method="extend")


def test_released_sizes():
    assert sorted(PRESETS) == [
        "base",
        "base_mrar",
        "huge",
        "huge_mrar",
        "large",
        "large_512",
        "large_mrar",
    ]
    assert [PRESETS[n]["depth"] for n in ("base", "large", "huge_mrar")] == [24, 32, 40]
