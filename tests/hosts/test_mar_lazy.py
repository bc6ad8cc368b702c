"""LazyMAR's caches on MAR: exact where nothing changed, and counted as published."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from matrix_products import operations

from driftar_jax import model as models
from driftar_jax.heads import diffusion, randomness
from driftar_jax.heads import lazy as lazy_head
from driftar_jax.hosts import mar_lazy, mar_work
from driftar_jax.hosts.mar import ACCELERATORS, MAR
from driftar_jax.sampling import generator, plain
from driftar_jax.sampling.settings import Settings

B, N, C = 2, 6, 4
OWN = Settings("own", ar_steps=6, nfe=3, guidance=2.0, spacing="trimmed")


@functools.cache
def _host(encoder=2, decoder=3):
    host = MAR(N, C, 3, 8, encoder, decoder, 2, 3)
    known = np.array([[1, 1, 0, 0, 1, 0], [0, 1, 0, 1, 1, 0]], bool)
    context = tiny.normal(0, B, N, C), known, np.array([0, 2], np.int32)
    return host, {"params": tiny.params(host.init, *context)["params"]}, context


def _step(host, variables, method, *args):
    return jax.jit(lambda *a: host.apply(variables, *a, method=method))(*args)


def _full(host, variables, context):
    def full(memory, *context):
        return host.apply(variables, memory, *context, True, method=mar_lazy._full)

    return jax.jit(full)(mar_lazy._memory(host, B), *context)


def test_a_full_step_is_the_backbone():
    host, variables, (tokens, known, label) = _host()
    out, entropy, memory = _full(host, variables, (tokens, known, label))
    for rows, shift, of in (
        (out, 0.0, label),
        (out + memory["difference"], memory["entropy_difference"], np.full(B, -1, np.int32)),
    ):
        want = host.apply(variables, tokens, known, of)
        z = host.apply(variables, rows, method=mar_lazy.features)
        np.testing.assert_allclose(z, want.z, atol=2e-5)
        np.testing.assert_allclose(entropy + shift, want.entropy, atol=2e-5)


@pytest.mark.parametrize("kept", [9, 5])
def test_where_nothing_changed_new_rows_are_those_of_the_full_step(kept):
    """The same context again: keys and values of the cache are its own, for all rows or some."""
    host, variables, (tokens, known, label) = _host(decoder=6)
    out, entropy, memory = _full(host, variables, (tokens, known, label))
    none, new = np.full((B, 2), N), np.array([[2, N], [0, 5]])

    def lazy(memory):
        args = memory, tokens, known, label, none, new, kept
        return host.apply(variables, *args, method=mar_lazy._new_rows)

    again, entropies, after = jax.jit(lazy)(memory)
    for image, at in ((0, [2]), (1, [0, 5])):
        rows = np.array(at) + 3
        np.testing.assert_allclose(again[image, rows], out[image, rows], atol=2e-5)
        np.testing.assert_allclose(entropies[image, at], entropy[image, at], atol=2e-5)
    for before, now in zip(jax.tree.leaves(memory), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(now, before, atol=2e-5)
    conditional = _step(host, variables, mar_lazy._conditional, memory, tokens, known, label)
    np.testing.assert_allclose(conditional[0], out, atol=2e-5)


def test_a_new_token_goes_through_the_encoder_as_in_a_full_step():
    """With one encoder block its keys are the full ones: what it puts on the canvas is exact."""
    host, variables, (tokens, known, label) = _host(encoder=1)
    _, _, memory = _full(host, variables, (tokens, known, label))
    now = tiny.changed(known, (np.arange(B), [2, 0]), to=True)
    last, new = np.array([[2], [0]]), np.array([[3], [2]])

    def lazy(memory):
        return host.apply(
            variables, memory, tokens, now, label, last, new, 9, method=mar_lazy._new_rows
        )

    _, _, after = jax.jit(lazy)(memory)
    _, _, want = _full(host, variables, (tokens, now, label))
    for image, token in ((0, 2), (1, 0)):
        found = after["canvas"][image, 3 + token]
        np.testing.assert_allclose(found, want["canvas"][image, 3 + token], atol=2e-5)
        assert np.abs(found - memory["canvas"][image, 3 + token]).max() > 0.01


def _tokens(model, settings, params):
    keys = randomness.image_keys(np.uint32(1), np.arange(B, dtype=np.int32))
    label = jnp.array([2, 0])

    @jax.jit
    def made(params):
        head = plain.one_step_head(model, settings, params)
        return model.family.plain(model, settings, params, label, keys, head, None)

    return np.asarray(made(params))


@functools.cache
def _sampler(task):
    model = tiny.parts(task, host__decoder_depth=6)
    return model, tiny.params(lambda key: models.init(model, key))


@pytest.mark.parametrize("method", [pytest.param("own", marks=pytest.mark.slow), "drift"])
def test_without_a_cheap_step_the_images_are_those_of_the_plain_loop(method):
    model, params = _sampler("host" if method == "own" else "drift")
    settings = dataclasses.replace(OWN, method=method)
    want = _tokens(model, settings, params)
    for name in ("condition_cache", "token_cache"):
        same = dataclasses.replace(settings, accelerator=name)
        same.check(model)
        np.testing.assert_allclose(_tokens(model, same, params), want, atol=3e-4)
        assert plain.counts(model, same).backbone_rows == 2 * 6


@pytest.mark.slow
def test_cheap_steps_are_near_the_full_ones(monkeypatch):
    model, params = _sampler("host")
    want, far = _tokens(model, OWN, params), {}
    monkeypatch.setattr(mar_lazy, "FULL_FIRST", 1)
    monkeypatch.setattr(mar_lazy, "FULL_EVERY", 2)
    for name in ("condition_cache", "token_cache", "lazymar"):
        lazy = dataclasses.replace(OWN, accelerator=name)
        made = _tokens(model, lazy, params)
        assert np.isfinite(made).all()
        far[name] = np.sqrt(np.mean(np.square(made - want)))
        # Full: 0, 1, 3, 5.
        assert plain.counts(model, lazy).backbone_rows == 6 + 4
    # Another image is `sqrt(2) spread` away.
    assert all(0 < gap < want.std() for gap in far.values()), far


def test_operations_are_those_of_the_program():
    host, variables, (tokens, known, label) = _host(decoder=6)
    rows, width = N + 3, 8
    memory = mar_lazy._memory(host, B)

    def full(memory):
        return host.apply(variables, memory, tokens, known, label, True, method=mar_lazy._full)

    found = operations(jax.make_jaxpr(full)(memory).jaxpr)
    want = 8 * mar_work.block(width, rows, rows, rows)
    want += 2 * width * (rows * width + N * C)
    assert found == 2 * B * want

    last, new, kept = np.full((B, 1), N), np.array([[2], [0]]), 5

    def lazy(memory):
        args = memory, tokens, known, label, last, new, kept
        return host.apply(variables, *args, method=mar_lazy._new_rows)

    found = operations(jax.make_jaxpr(lazy)(memory).jaxpr)
    fresh = 3 + 1
    want = 2 * mar_work.block(width, fresh, rows, fresh) + 2 * width * (fresh * width + N * C)
    want += 3 * mar_work.block(width, rows, rows, rows)
    # Rows that go need not ask: here their attention is left out, in the published program not.
    want += mar_work.block(width, kept, rows, rows) + 2 * mar_work.block(width, kept, rows, kept)
    assert found == B * want


@pytest.mark.parametrize("guided", [False, True])
def test_a_head_without_cheap_steps_is_the_plain_one(guided, monkeypatch):
    head, params, z, noise = _head()
    given = {"guidance": 2.0, "z_uncond": z[::-1]} if guided else {}
    given |= {"schedule": diffusion.trimmed_schedule(9, 950), "temperature": 0.9}
    want = jax.jit(lambda p: diffusion.head_sample(head, p, z, noise, **given))(params)
    near = jax.jit(lambda p: lazy_head.sample(head, p, z, noise, **given))(params)
    monkeypatch.setattr(lazy_head, "EVERY", 1)
    found = jax.jit(lambda p: lazy_head.sample(head, p, z, noise, **given))(params)
    np.testing.assert_allclose(found, want, atol=2e-5)
    # Fresh: 8, 7 and 0 of nine; the others lean on them.
    assert 1e-4 < np.abs(near - want).max() < 3 * np.abs(want).max()


def test_a_cached_step_of_the_head_at_the_same_place_is_the_fresh_one():
    """What blocks added and MLPs gave is exact there, hot or not."""
    head, params, z, _ = _head()
    x, t, c = tiny.normal(5, 3, C), jnp.int32(400), tiny.normal(6, 3, head.width)

    @jax.jit
    def both(params):
        run = functools.partial(head.apply, {"params": params}, x, t, c, method=lazy_head._predict)
        fresh, memory = run()
        return fresh, [run(memory=memory, hot=hot)[0] for hot in (False, True)]

    fresh, cached = both(params)
    eps, v = jax.jit(lambda p: head.apply({"params": p}, x, t, c, method="denoise"))(params)
    np.testing.assert_allclose(fresh, np.concatenate([eps, v], axis=1), atol=1e-5)
    for again in cached:
        np.testing.assert_allclose(again, fresh, atol=1e-5)


@functools.cache
def _head():
    head = diffusion.DiffusionHead(token_dim=C, width=10, depth=6)
    z = tiny.normal(3, 3, 7)
    params = tiny.params(head.init, jnp.zeros((1, C)), jnp.zeros((1,), jnp.int32), z[:1])["params"]
    keys = randomness.token_keys(randomness.image_keys(np.uint32(1), np.arange(1)), 3)[0]
    return head, params, z, lambda draw: randomness.normal(keys, draw, C)


def test_a_row_of_the_head_is_counted_as_it_runs():
    head = tiny.parts("host").head
    z = jnp.zeros((1, head.width))
    params = jax.eval_shape(
        head.init, jax.random.key(0), jnp.zeros((1, C)), jnp.zeros((1,), int), z
    )

    def rows(count):
        def call(params, x, c):
            return head.apply(params, x, jnp.int32(0), c, method="denoise")

        shapes = jnp.zeros((count, C)), jnp.zeros((count, head.width))
        return operations(jax.make_jaxpr(call)(params, *shapes).jaxpr)

    assert rows(5) - rows(3) == 2 * mar_work.head_row(head, head.depth, 0)


@pytest.mark.parametrize(("size", "least"), [("base", 2.80), ("large", 2.79), ("huge", 2.77)])
def test_the_published_saving_is_found(size, least):
    """arXiv 2503.12450 says 2.8 times fewer operations: caches of the backbone and of the head."""
    import importlib

    config = importlib.import_module("configs.mar_full").own_head(size, "")
    images = models.ImageSpec((16, 16, 16), tuple(map(str, range(1000))), 1)
    model = models.build(config, images)
    settings = Settings("own", ar_steps=64, nfe=100, guidance=2.9)
    none, condition, lazy, both, recap = rows = mar_work.table(model, settings)
    assert [w.method for w in rows] == list(ACCELERATORS)
    # ReCAP: 32 full steps and every other one behind them, both branches in all.
    assert (recap.full_calls, recap.cheap_calls, recap.backbone_rows) == (48, 16, 128)
    assert recap.head_evaluations == 48 * 100 + 16 * 40
    assert (none.full_calls, lazy.full_calls, lazy.cheap_calls) == (64, 12, 52)
    assert (none.backbone_rows, condition.backbone_rows) == (128, 76)
    assert least < none.flops / both.flops < least + 0.02
    # Without the head's cache it is not reached.
    assert 1.88 < none.flops / lazy.flops < 1.98 and 1.4 < none.flops / condition.flops < 1.5
    one_step = mar_work.table(model, dataclasses.replace(settings, method="drift"))
    assert one_step[0].head_flops == 0 and one_step[2].flops == one_step[3].flops


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (dict(accelerator="lazy"), "accelerator: got 'lazy', allowed none | condition_cache"),
        (dict(order="spiral"), "order: got 'spiral', allowed random | halton"),
        (
            dict(accelerator="lazymar", gamma=1),
            "accelerator: got 'lazymar', allowed none with gamma",
        ),
    ],
)
def test_what_cannot_be_is_named(changes, complaint):
    model, params = _sampler("drift")
    loaded = generator.Generator(tiny.config("drift"), model, params, 0, {})
    with pytest.raises(ValueError) as error:
        loaded.checked(**changes)
    assert str(error.value).startswith(complaint)
