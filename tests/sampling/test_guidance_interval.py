"""Guidance in some AR steps alone: the same tokens, and no unconditional rows in the others."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from driftar_jax import model as models
from driftar_jax.evaluation import compare
from driftar_jax.hosts import mar_plain, mar_plan, mar_work, schedules
from driftar_jax.sampling import generator, plain
from driftar_jax.sampling.settings import Settings

B, T = 2, 4
BASE = Settings("own", T, nfe=2, guidance=2.17, spacing="trimmed", guidance_interval="0.5,1")
KINDS = {"own": ("host", {}), "drift": ("drift", {}), "trained": ("drift", {"guidance_max": 3.0})}


@functools.cache
def _generator(kind):
    task, changes = KINDS[kind]
    config = tiny.config(task, **{f"drift__{n}": v for n, v in changes.items()})
    model = models.build(config, tiny.IMAGES)
    params = tiny.params(lambda key: models.init(model, key))
    return generator.Generator(config, model, params, 0, {})


def _tokens(kind, settings):
    one = _generator(kind)
    settings.check(one.model)
    request = one.params, np.array([2, 0], np.int32), np.arange(B, dtype=np.int32), jnp.uint32(5)

    # A function of its own: jax keeps programs by function and settings, and one that is there
    # already would neither count its rows nor read other scales.
    def generate(*arguments):
        return plain.generate.__wrapped__(one.model, settings, *arguments)[0]

    return np.asarray(jax.jit(generate)(*request))


def _of(kind, interval):
    method = "own" if kind == "own" else "drift"
    form = "trained" if kind == "trained" else "extrapolate"
    return dataclasses.replace(BASE, method=method, guidance_form=form, guidance_interval=interval)


@pytest.mark.parametrize(
    ("kind", "interval", "many"),
    [
        pytest.param("own", "0.5,1", 128, marks=pytest.mark.slow),
        ("drift", "0,0.5", 128),
        pytest.param("trained", "0.5,1", 128, marks=pytest.mark.slow),
        pytest.param("own", "0.25,0.75", 4, marks=pytest.mark.slow),
        # The first step, whose unconditional rows are all alike, is apart.
        pytest.param("drift", "0,0.5", 4, marks=pytest.mark.slow),
    ],
)
def test_outside_the_scale_is_one_and_the_rows_are_left_out(kind, interval, many, monkeypatch):
    monkeypatch.setattr(mar_plan, "MANY_TOKENS", many)
    backbone, passed = mar_plain.backbone, []

    def counted(*given):
        encoding = backbone(*given)
        jax.debug.callback(functools.partial(passed.append, len(encoding.z)))
        return encoding

    monkeypatch.setattr(mar_plain, "backbone", counted)
    settings = _of(kind, interval)
    tokens = _tokens(kind, settings)
    jax.effects_barrier()
    rows = plain.counts(_generator(kind).model, settings).backbone_rows
    begin, end = settings.guided_steps
    assert rows == settings.rows == T + (kind != "trained") * (end - begin)
    assert sum(passed) == B * rows
    # Extrapolation by 1 is the conditional prediction.
    at = schedules.guidance_at

    def scales(*given):
        inside = (begin <= np.arange(T)) & (np.arange(T) < end)
        return np.where(inside, at(*given), np.float32(1))

    monkeypatch.setattr(mar_plan, "guidance_at", scales)
    everywhere = dataclasses.replace(settings, guidance_interval="0,1")
    np.testing.assert_allclose(tokens, _tokens(kind, everywhere), atol=2e-4)


@pytest.mark.parametrize(
    ("ar_steps", "interval", "want"),
    [
        (8, "0,1", (0, 8)),
        (8, "0.5,1", (4, 8)),
        (10, "0.3,0.7", (3, 7)),
        (64, "0.25,1", (16, 64)),
        (3, "0.5,1", (2, 3)),
        (1, "0,0.5", (0, 1)),
    ],
)
def test_shares_of_the_steps(ar_steps, interval, want):
    assert schedules.guided_steps(ar_steps, interval) == want


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (dict(guidance_interval="0.5"), "guidance_interval: got '0.5', allowed A,B with 0 <= A"),
        (dict(guidance_interval="1,0.5"), "guidance_interval: got '1,0.5', allowed A,B with"),
        (dict(guidance_interval="0,nan"), "guidance_interval: got '0,nan', allowed A,B with"),
        (dict(guidance_interval="-1,1"), "guidance_interval: got '-1,1', allowed A,B with"),
        (dict(guidance_interval="0,1,2"), "guidance_interval: got '0,1,2', allowed A,B with"),
        (
            dict(guidance_interval="0.6,0.7"),
            "guidance_interval: got '0.6,0.7', allowed one that holds at least one of 4 AR steps",
        ),
        (
            dict(guidance_interval="0.5,1", accelerator="condition_cache"),
            "guidance_interval: got '0.5,1', allowed 0,1 with accelerator condition_cache",
        ),
    ],
)
def test_what_cannot_be_is_named(changes, complaint):
    with pytest.raises(ValueError) as error:
        _generator("own").checked(ar_steps=T, **changes)
    assert str(error.value).startswith(complaint) and "\n" not in str(error.value)


def test_what_is_saved_is_counted():
    one = _generator("own")
    whole, late = mar_work.table(one.model, BASE)
    assert (whole.method, late.method) == ("none", "none, guidance in 0.5,1")
    assert (whole.backbone_rows, late.backbone_rows) == (8, 6)
    assert whole.full_calls == late.full_calls == 4
    alone = mar_work.of(one.model, dataclasses.replace(BASE, guidance=1.0, guidance_interval="0,1"))
    # Every unconditional row costs what its conditional one does, in backbone and head.
    assert alone.flops < late.flops < whole.flops == 2 * alone.flops
    cost = compare.costs(one, BASE, np.array([0]), 1)
    assert (cost.backbone_calls, cost.backbone_rows, cost.head_evaluations) == (4, 6, 8)
