"""The plan of the AR steps: few sizes, little padding, the counts of the schedules."""

import itertools

import numpy as np
import pytest

from driftar_jax.hosts import mar_plan, schedules


def _waste(sizes, values):
    return (sizes[np.searchsorted(sizes, values)] - values).sum()


@pytest.mark.parametrize("seed", range(8))
def test_padding_is_the_least_possible(seed):
    rng = np.random.default_rng(seed)
    values, most = rng.integers(0, 20, rng.integers(1, 12)), int(rng.integers(1, 6))
    sizes = mar_plan.padded(values, most)
    assert len(sizes) <= most and (np.diff(sizes) > 0).all()
    smaller = np.unique(values)[:-1]
    tried = [
        np.array([*chosen, values.max()])
        for number in range(most)
        for chosen in itertools.combinations(smaller, number)
    ]
    assert _waste(sizes, values) == min(_waste(t, values) for t in tried)


@pytest.mark.parametrize("ar_steps", [1, 8, 64, 256])
def test_every_step_finds_room(ar_steps):
    made = mar_plan.make(
        256, ar_steps, guidance=2.0, guidance_schedule="linear", head_steps=(5,) * ar_steps
    )
    assert len(made.keeps) <= mar_plan.MOST_KEEPS and len(made.sizes) <= mar_plan.MOST_SIZES
    assert (np.array(made.keeps)[made.keep] >= 256 - made.now).all()
    assert (np.array(made.sizes)[made.size] >= made.now - made.next).all()
    assert made.lengths == (5,) and made.now[0] == 256 and made.next[-1] == 0
    assert {len(column) for column in made.columns().values()} == {ar_steps}


@pytest.mark.parametrize("ar_steps", [8, 64, 256])
def test_blocks_in_a_loop_are_compiled_at_few_sizes_and_run_little_more(ar_steps):
    given = dict(guidance=2.0, guidance_schedule="linear", head_steps=(5,) * ar_steps)
    many = mar_plan.make(256, ar_steps, **given)
    few = mar_plan.make(256, ar_steps, **given, most=(mar_plan.LOOP_KEEPS, mar_plan.LOOP_SIZES))
    for part in few.first_apart():
        assert len(part.keeps) <= mar_plan.LOOP_KEEPS and len(part.sizes) <= mar_plan.LOOP_SIZES
    # Rows of MAR base: 64 of the buffer in the encoder, and 320 of all tokens in the decoder.
    rows = [64 + 320 + np.mean(np.array(plan.keeps)[plan.keep]) for plan in (many, few)]
    assert rows[1] < 1.07 * rows[0]


def test_few_tokens_are_compiled_at_few_sizes():
    made = mar_plan.make(64, 8, guidance=1.0, guidance_schedule="linear", head_steps=(1,) * 8)
    assert made.keeps == (64,) and len(made.sizes) == mar_plan.MOST_SIZES_OF_FEW


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        ("constant", (50, 50, 50, 50, 50)),
        ("two_stage", (50, 50, 50, 5, 5)),
        ("linear", (50, 39, 28, 16, 5)),
        ("cosine", (50, 43, 28, 12, 5)),
    ],
)
def test_head_steps_fall(schedule, steps):
    assert schedules.head_steps(50, 5, 5, schedule) == steps
    assert schedules.head_steps(50, 5, 1, schedule) == (50,)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="^nfe_schedule: got 'exp', allowed constant | two_stage"):
        schedules.head_steps(50, 5, 5, "exp")
