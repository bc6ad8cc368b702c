"""Head steps that change over the AR steps: the same sampler, true counts, the same tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from configs import mar_small
from driftar_jax import model
from driftar_jax.heads import diffusion
from driftar_jax.hosts import mar_plain, mar_plan
from driftar_jax.sampling import generator, plain
from driftar_jax.sampling.settings import Settings
from driftar_jax.training import tasks

pytestmark = pytest.mark.timeout(300)

LABEL = jnp.array([3, -1], jnp.int32)
INDEX = jnp.arange(2, dtype=jnp.int32)


@pytest.fixture(scope="module")
def made():
    """A small host with random arrays (a fresh head would return its noise)."""
    config = mar_small.get_config("tiny")
    parts = model.build(config, model.ImageSpec((5, 5, 2), ("a", "b", "c", "d"), 1))
    return config, parts, tiny.params(tasks.build(config, parts.images).init)


def _generate(parts, params, **changes):
    settings = Settings("own", 7, nfe=6, guidance=2.0, spacing="trimmed", **changes)
    settings.check(parts)
    return plain.generate(parts, settings, params, LABEL, INDEX, np.uint32(3))


def test_falling_to_the_same_number_is_the_constant_schedule(made):
    _, parts, _ = made
    settings = Settings("own", 7, nfe=6, nfe_schedule="linear", nfe_last=6)
    assert mar_plain.plans_of(parts, settings, {"host": {}})[0].lengths == (6,)


@pytest.mark.slow  # of the schedule's start alone
def test_the_first_stage_is_that_of_the_constant_schedule(made):
    """Tokens fixed before the number changes are the same; later ones are not."""
    _, parts, params = made
    constant, counts = _generate(parts, params)
    assert int(counts.head_evaluations) == 7 * 6
    annealed, counts = _generate(parts, params, nfe_schedule="two_stage", nfe_last=2)
    assert int(counts.head_evaluations) == 4 * 6 + 3 * 2 and int(counts.backbone_calls) == 7
    steps = mar_plan.make(25, 7, guidance=1.0, guidance_schedule="linear", head_steps=(1,) * 7)
    early = 25 - int(steps.next[3])
    same = np.isclose(constant, annealed, atol=1e-4).all(axis=-1).reshape(2, -1).sum(axis=1)
    np.testing.assert_array_equal(same, early)


def test_a_padded_process_equals_its_own(made):
    schedules = [diffusion.trimmed_schedule(n, 950) for n in (2, 5, 1)]
    for which, schedule in enumerate(schedules):
        chosen, steps = jax.jit(lambda w: _tables(diffusion.chosen(schedules, w)))(which)
        assert int(steps) == schedule.num_steps
        for name, table in chosen.items():
            want = getattr(schedule, name).astype(np.float32)
            np.testing.assert_array_equal(table[: len(want)], want, err_msg=name)


def _tables(chosen):
    schedule, steps = chosen
    return {f.name: getattr(schedule, f.name) for f in dataclasses.fields(schedule)}, steps


@pytest.mark.slow  # test_parity_mar compares both
def test_the_encoder_on_known_tokens_alone_changes_nothing(made, monkeypatch):
    _, parts, params = made
    all_tokens, _ = _generate(parts, params)
    monkeypatch.setattr(mar_plan, "MANY_TOKENS", 25)
    monkeypatch.setattr(mar_plan, "MOST_KEEPS", 2)
    monkeypatch.setattr(mar_plan, "MOST_SIZES", 2)
    plain.generate.clear_cache()
    settings = Settings("own", 7, nfe=6, guidance=2.0, spacing="trimmed")
    assert mar_plain.plans_of(parts, settings, {"host": {}})[-1].keeps[-1] < 25
    few, _ = _generate(parts, params)
    np.testing.assert_allclose(few, all_tokens, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nfe_schedule": "exp"}, "^nfe_schedule: got 'exp', allowed constant | two_stage"),
        ({"nfe_schedule": "linear", "nfe_last": 7}, "^nfe_last: got 7, allowed 1 to nfe 6"),
        ({"nfe_schedule": "linear", "nfe_last": 0}, "^nfe_last: got 0, allowed 1 to nfe 6"),
    ],
)
def test_bad_settings_are_refused(made, changes, message):
    with pytest.raises(ValueError, match=message):
        _generate(*made[1:], **changes)


def test_configs_of_older_runs_stay_constant(made):
    config, parts, params = made
    config = config.copy_and_resolve_references()
    del config.sample.nfe_schedule, config.sample.nfe_last
    loaded = generator.Generator(config, parts, params, 0, {})
    assert loaded.settings().head_steps == (4, 4, 4)
    assert loaded.settings(nfe_schedule="linear", nfe_last=2).head_steps == (4, 3, 2)
