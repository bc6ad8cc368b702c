"""Every number of a config at the ends of what is allowed: losses and pictures stay finite."""

import jax
import numpy as np
import pytest
import tiny
from flax import linen as nn

from driftar_jax import config, seeds
from driftar_jax.sampling import load
from driftar_jax.training import optim, step, tasks

pytestmark = pytest.mark.timeout(300)
# Ends that rules have, below 1 in float64 and in float32; those without an upper end stay at
# ordinary numbers there.
ENDS = (0.0, 5e-324, 1e-30, 1.0 - 2.0**-24, 1.0 - 2.0**-53, 1.0)


def _ends(task):
    flat = config.flatten(tiny.config(task))
    fields = config.fields()
    for name, value in flat.items():
        field = fields[name]
        if field.kind is float:
            allowed = [end for end in ENDS if field.rule(end)]
            for end in sorted({min(allowed), max(allowed)} - {value}):
                yield name, end


WALK = [(task, *end) for task in ("host", "drift") for end in _ends(task)]
FAST = ("sample.temperature",)


def _cases():
    for task, name, end in WALK:
        slow = name not in FAST or end > 0.5
        yield pytest.param(
            task, name, end, marks=[pytest.mark.slow] * slow, id=f"{task} {name} {end:g}"
        )


@pytest.mark.parametrize(("task", "name", "end"), _cases())
def test_a_number_at_its_end(task, name, end):
    settings = tiny.config(task, **{name.replace(".", "__"): end})
    config.check(settings)
    if name.startswith("sample."):
        made = load.random(settings, tiny.IMAGES)
        grids = made.sample([0, 1, -1], 3, nfe=3) if task == "host" else made.sample([0, 1, -1], 3)
        assert grids.images.shape == (3, 4, 6, 1)
        # Of numbers that are not finite a picture would be of one grey.
        assert (grids.images.std(axis=(1, 2, 3)) > 0).all()
        return
    learner = tasks.build(settings, tiny.IMAGES)
    optimizer = optim.make_optimizer(settings.optim, settings.train.steps)
    params = nn.meta.unbox(jax.jit(learner.init)(seeds.key(0)))
    state = optim.init_state(params, optimizer, learner.tracked)
    chosen = dict(seed=0, frozen=False, accumulate=1, ema=settings.optim.ema)
    advance = jax.jit(step.make_step(learner, optimizer, **chosen))
    for number in range(2):
        state, metrics = advance(state, tiny.batch(4, number))
        assert all(np.isfinite(value) for value in metrics.values()), metrics
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.ema)))


def test_below_one_is_below_it_in_float32_too():
    config.check(tiny.config("host", optim__b2=1 - 2.0**-24))
    with pytest.raises(ValueError, match="optim.b2: got 0.999.*, allowed .* below 1"):
        config.check(tiny.config("host", optim__b2=1 - 2.0**-53))
