"""Guidance trained into the per-token decoder: the field, the decoder's input, the sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from driftar_jax.drift import fields
from driftar_jax.drift.networks import TokenDecoder
from driftar_jax.sampling import plain
from driftar_jax.sampling.settings import Settings
from driftar_jax.training import tasks


def _unit(v):
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def test_the_guided_field_is_its_definition():
    """`s E u(y - x) - (s - 1) E u(x_u - x) - E u(x' - x)`, in float64, one context at a time."""
    x, y, free = tiny.normal(0, 3, 4, 2), tiny.normal(1, 3, 1, 2), tiny.normal(2, 3, 5, 2)
    scale = jnp.array([1.0, 1.5, 3.0])
    got = jax.jit(fields.guided_energy)(x, y, free, scale)
    for b, s in enumerate(np.asarray(scale)):
        for g in range(4):
            here = np.asarray(x[b, g], np.float64)
            others = np.delete(np.asarray(x[b], np.float64), g, axis=0)
            want = s * _unit(np.asarray(y[b]) - here).mean(0)
            want -= (s - 1) * _unit(np.asarray(free[b]) - here).mean(0)
            want -= _unit(others - here).mean(0)
            np.testing.assert_allclose(got[b, g], want, atol=2e-6)


def test_without_guidance_it_is_the_energy_field():
    x, y, free = tiny.normal(0, 2, 3, 2), tiny.normal(1, 2, 1, 2), tiny.normal(2, 2, 3, 2)
    got = jax.jit(fields.guided_energy)(x, y, free, np.ones(2))
    np.testing.assert_array_equal(got, jax.jit(fields.energy)(x, y))


def test_guidance_moves_the_equilibrium_away_from_the_unconditional_law():
    """p = N(1, 1), u = N(0, 2): the field at p vanishes for s = 1, points on for 2."""
    x, y = (tiny.normal(seed, 1, 4000, 1) + 1 for seed in (0, 1))
    free = 2 * tiny.normal(2, 1, 4000, 1)
    mean = jax.jit(lambda *a: fields.guided_energy(*a).mean())
    still, moved = (mean(x, y, free, np.full(1, s)) for s in (1.0, 2.0))
    assert abs(still) < 0.05 and moved > 0.2


@pytest.mark.parametrize(("guidance", "alpha"), [(True, None), (False, jnp.ones(2))])
def test_the_scale_is_wanted_where_it_was_trained(guidance, alpha):
    decoder = TokenDecoder(2, width=4, depth=1, guidance=guidance)
    mu = jnp.zeros((2, 2))
    arguments = (mu[:, None], mu, jnp.ones(2), jnp.zeros((2, 3)), jnp.zeros(2), alpha)
    with pytest.raises(ValueError, match="^alpha: got"):
        jax.eval_shape(decoder.init, jax.random.key(0), *arguments)


@pytest.mark.slow  # the field with guidance is held against a loop
def test_the_unconditional_draws_teach_nothing():
    """The gradient of the drift term is that of the field, which is held still."""
    task = tasks.build(tiny.config("drift", drift__guidance_max=3.0), tiny.IMAGES)
    params = tiny.params(task.init)
    batch = tiny.batch(4)

    def drift(p):
        return task.loss(p, batch, jax.random.key(1), jnp.int32(5), True)[1]["drift"]

    value, gradient = jax.jit(jax.value_and_grad(drift))(params)
    assert np.isfinite(value) and value > 0
    decoder = gradient["decoder"]
    assert np.abs(decoder["alpha_in"]["kernel"]).max() > 0
    assert np.abs(gradient["host"]["fake_latent"]).max() == 0


def test_scales_stay_in_range_and_spare_dropped_labels():
    task = tasks.build(tiny.config("drift", drift__guidance_max=3.0), tiny.IMAGES)
    label = np.where(np.arange(2000) % 4 == 0, -1, 1)
    scale = np.asarray(jax.jit(task._scales)(jax.random.key(0), label < 0))
    assert scale.min() == 1.0 and 2.9 < scale.max() <= 3.0
    assert (scale[::4] == 1).all()
    assert 0.27 < (scale[np.asarray(label) >= 0] == 1).mean() < 0.33


def _guided_parts():
    return tiny.parts("drift", drift__guidance_max=3.0)


def _made(parts, params, **changes):
    settings = Settings(method="drift", ar_steps=3).changed(**changes)
    settings.check(parts)
    label = jnp.array([0, 1, 2, -1])
    index = jnp.arange(4, dtype=jnp.int32)
    return plain.generate(parts, settings, params, label, index, jnp.uint32(0))


@pytest.mark.slow  # of the learned scale alone
def test_a_learned_scale_costs_no_unconditional_rows():
    parts = _guided_parts()
    params = tiny.params(
        tasks.build(tiny.config("drift", drift__guidance_max=3.0), tiny.IMAGES).init
    )
    none, counts = _made(parts, params, guidance_form="trained")
    assert int(counts.backbone_rows) == 3
    more, counts = _made(parts, params, guidance_form="trained", guidance=3.0)
    assert int(counts.backbone_rows) == 3 and np.abs(more - none).max() > 1e-3
    both, counts = _made(parts, params, guidance=3.0)
    assert int(counts.backbone_rows) == 6 and np.abs(more - both).max() > 1e-3


@pytest.mark.parametrize(
    ("highest", "changes", "words"),
    [
        (1.0, {"guidance_form": "trained"}, "no scale was trained into this checkpoint"),
        (3.0, {"guidance_form": "trained", "guidance": 0.5}, "guidance: got 0.5, allowed a number"),
        (
            3.0,
            {"guidance_form": "free"},
            "guidance_form: got 'free', allowed extrapolate | trained",
        ),
    ],
)
def test_bad_guidance_is_named(highest, changes, words):
    settings = Settings(method="drift", ar_steps=3).changed(**changes)
    with pytest.raises(ValueError) as error:
        settings.check(tiny.parts("drift", drift__guidance_max=highest))
    assert words in str(error.value)
