"""Several rounds of the published merge: the last counts, and the flag ends them."""

import jax.numpy as jnp
import numpy as np
import pytest

from driftar_jax.published import sampling
from driftar_jax.published.merge import merge, start

N = 4


class Model:
    num_tokens = N


@pytest.mark.parametrize(("stop_at", "made"), [(None, 3), (1, 2)])
def test_rounds(monkeypatch, stop_at, made):
    seen = []

    def speculate(model, params, label, eps, tracker, *, guidance):
        assert guidance == 1.5 and tracker.count == len(seen)
        seen.append(eps)
        merged = merge(jnp.zeros((2, N, 1)), jnp.asarray([[[0.0]] * N, [[9.0]] * N]), 0.1)
        stopped = jnp.asarray(stop_at == len(seen) - 1)
        tracker = tracker.replace(count=tracker.count + 1)
        return sampling.Speculated(eps, merged, jnp.float32(0.5), tracker, stopped)

    monkeypatch.setattr(sampling, "speculate", speculate)
    last, rate = sampling.speculate_in_rounds(Model, {}, None, iter("abc"), guidance=1.5)
    assert last.tokens == "abc"[made - 1] and len(seen) == made
    # One image of the two is accepted whole, in every round.
    np.testing.assert_allclose(rate, 0.5)
    assert last.tracker.count == made and start().count == 0
