"""ReCAP's cheap steps: exact where nothing changed, near where it did, and counted as they run."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from matrix_products import operations

from driftar_jax import model as models
from driftar_jax.heads import randomness
from driftar_jax.hosts import mar_lazy, mar_recap, mar_work, schedules
from driftar_jax.hosts.mar import MAR
from driftar_jax.sampling import generator, plain
from driftar_jax.sampling.settings import Settings

B, N, C = 2, 6, 4
OWN = Settings("own", 6, nfe=5, guidance=2.0, spacing="trimmed")


@functools.cache
def _host():
    host = MAR(N, C, 3, 8, 1, 3, 2, 3)
    known = np.array([[1, 1, 0, 0, 1, 0], [0, 1, 0, 1, 1, 0]], bool)
    context = tiny.normal(0, B, N, C), known, np.array([0, -1], np.int32)
    return host, {"params": tiny.params(host.init, *context)["params"]}, context


def test_a_full_step_is_the_backbone_and_the_same_context_gives_the_same_rows():
    host, variables, (tokens, known, label) = _host()
    # One encoder block: its new row is exact. Tokens 2 and 0 are what the full step revealed.
    now = tiny.changed(known, (np.arange(B), [2, 0]), to=True)
    last, new = np.array([[2, N], [0, N]]), np.array([[3, 5], [2, N]])

    @jax.jit
    def both(context):
        run = functools.partial(host.apply, variables)
        out, entropy, memory = run(*context, method=mar_recap.full)
        none = jnp.full_like(last, N)
        same = run(memory, *context, none, new, method=mar_recap.local)
        later = run(memory, tokens, now, label, last, new, method=mar_recap.local)
        return (out, entropy), same, later, run(*context)

    whole, same, later, want = both((tokens, known, label))
    z = host.apply(variables, whole[0], method=mar_lazy.features)
    np.testing.assert_allclose(z, want.z, atol=2e-5)
    np.testing.assert_allclose(whole[1], want.entropy, atol=2e-5)
    for image, at in ((0, [3, 5]), (1, [2])):
        rows = np.array(at) + 3
        np.testing.assert_allclose(same[0][image, rows], whole[0][image, rows], atol=2e-5)
        np.testing.assert_allclose(same[1][image, at], whole[1][image, at], atol=2e-5)
        moved = np.abs(later[0][image, rows] - whole[0][image, rows]).max()
        assert 1e-3 < moved < np.abs(whole[0]).max(), "the new token is seen"
    others = [row for row in range(3, 9) if row - 3 not in (2, 3, 5)]
    assert not np.any(later[0][0, others]), "all other rows are left out"


@functools.cache
def _sampler(task):
    model = tiny.parts(task, host__decoder_depth=3)
    return model, tiny.params(lambda key: models.init(model, key))


def _tokens(model, settings, params):
    keys = randomness.image_keys(np.uint32(1), np.arange(B, dtype=np.int32))

    @jax.jit
    def made(params):
        head = plain.one_step_head(model, settings, params)
        label = jnp.array([2, 0])
        return model.family.plain(model, settings, params, label, keys, head, None)

    return np.asarray(made(params))


@pytest.mark.parametrize("method", ["own", pytest.param("drift", marks=pytest.mark.slow)])
def test_images_are_the_plain_ones_but_for_cheap_steps(method):
    model, params = _sampler("host" if method == "own" else "drift")
    settings = dataclasses.replace(OWN, method=method)
    cheap = dataclasses.replace(settings, accelerator="recap")
    cheap.check(model)
    made, want = _tokens(model, cheap, params), _tokens(model, settings, params)
    gap = np.sqrt(np.mean(np.square(made - want)))
    assert np.isfinite(made).all() and 0 < gap < want.std()
    # Steps 0 to 3 and 5 are full, 4 is not; until then tokens are the same. Rounding grows over the
    # own head's reverse process; one evaluation moves a token by little more than 1e-4.
    rounding = 3e-4 if method == "own" else 1e-5
    same = np.isclose(made, want, rtol=0, atol=rounding).all(axis=-1).sum(axis=1)
    assert (same >= 4).all() and (same < N).all()
    cost = plain.counts(model, cheap)
    assert (cost.backbone_calls, cost.backbone_rows) == (6, 12)
    assert cost.head_evaluations == (5 * 5 + 2 if method == "own" else 6)


@pytest.mark.slow
def test_without_a_cheap_step_the_images_are_those_of_the_plain_loop(monkeypatch):
    monkeypatch.setattr(mar_lazy, "full_steps", lambda steps: (True,) * steps)
    model, params = _sampler("drift")
    settings = dataclasses.replace(OWN, method="drift")
    want = _tokens(model, settings, params)
    again = _tokens(model, dataclasses.replace(settings, accelerator="recap"), params)
    np.testing.assert_allclose(again, want, atol=3e-4)


def test_steps_are_full_as_released():
    assert schedules.full_steps(6) == (True, True, True, True, False, True)
    assert schedules.full_steps(5) == (True, True, True, False, True)
    assert sum(schedules.full_steps(96)) == 72 and schedules.full_steps(1) == (True,)


def test_operations_are_those_of_the_program():
    host, variables, context = _host()
    _, _, memory = jax.eval_shape(
        lambda *c: host.apply(variables, *c, method=mar_recap.full), *context
    )
    last, new = np.array([[0], [2]]), np.array([[2, 3], [0, 5]])

    def local(memory):
        return host.apply(variables, memory, *context, last, new, method=mar_recap.local)

    found = operations(jax.make_jaxpr(local)(memory).jaxpr)
    rows, fresh, kept, width = N + 3, 3 + 1, 3 + 1 + 2, 8
    want = mar_work.block(width, fresh, rows, fresh) + 3 * mar_work.block(width, kept, rows, kept)
    # The embedding of tokens runs for all, what enters the encoder for the new ones.
    assert found == B * (want + 2 * width * (fresh * width + N * C))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (dict(nfe_schedule="linear", nfe_last=1), "nfe_schedule: got 'linear', allowed constant"),
        (dict(guidance_interval="0.5,1"), "guidance_interval: got '0.5,1', allowed 0,1 with acc"),
    ],
)
def test_what_cannot_be_is_named(changes, complaint):
    model, params = _sampler("host")
    loaded = generator.Generator(tiny.config("host"), model, params, 0, {})
    with pytest.raises(ValueError) as error:
        loaded.checked(accelerator="recap", **changes)
    assert str(error.value).startswith(complaint) and "\n" not in str(error.value)
