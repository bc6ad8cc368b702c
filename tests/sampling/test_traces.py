"""Growth: what is traced is what was sampled, step by step."""

import functools

import numpy as np
import pytest
from recorded import cases

from driftar_jax.sampling import traces

# Run of the recordings, and changes of its settings.
PLAIN = {
    "mar": ("mar_drift", {"guidance": 2.0, "guidance_form": "extrapolate"}),
    "mar_own": ("mar_own", {"nfe": 3}),
    "raster": ("nextstep_drift", {"guidance_form": "extrapolate"}),
    "ahead": ("nextstep_drift", {"guidance_form": "extrapolate", "lookahead": 3, "delta": 0.5}),
}


@pytest.fixture(scope="module", params=PLAIN)
def grown(request):
    """A case with and without its trace."""
    run, changes = PLAIN[request.param]
    loaded = cases.loaded(run)
    ask = lambda **more: loaded.sample(cases.LABELS, seed=3, batch_size=4, **changes, **more)  # noqa: E731
    return request.param, loaded, ask(), ask(trace=True)


def test_pictures_and_counts_are_those_without_a_trace(grown):
    _, _, plain, traced = grown
    assert plain.trace is None
    # Two programs round differently.
    assert np.abs(traced.images.astype(int) - plain.images).max() <= 1
    assert traced.counts == plain.counts and traced.speculation == plain.speculation


def test_tokens_grow_to_the_picture(grown):
    name, loaded, _, traced = grown
    trace, spec = traced.trace, loaded.model.images
    calls = traces.calls(trace)
    assert trace.tokens.shape == (5, spec.num_tokens, spec.token_dim)
    assert trace.turn.min() == 0 and trace.turn.dtype == np.int32
    if name == "ahead":
        slowest = traced.speculation["calls"][2]
        assert calls == slowest < spec.num_tokens
    else:
        assert calls == traced.counts.backbone_calls
    steps = traces.moments(trace, calls + 1)
    assert steps == list(range(-1, calls))
    pictures = traces.pictures(loaded, trace, steps)
    np.testing.assert_array_equal(pictures[-1], traced.images)
    assert (pictures[0] == traces.BLANK).all()
    for step in steps[1:]:
        made = traces.known(trace, step) & ~traces.known(trace, step - 1)
        assert made.any()
        before, after = traces.tokens(trace, step - 1), traces.tokens(trace, step)
        np.testing.assert_array_equal(after[~made], before[~made])
        assert (np.abs(after[made]).max(axis=-1) > 0).all()


def test_entropies_are_those_of_the_step(grown):
    name, loaded, _, traced = grown
    trace, last = traced.trace, traces.calls(traced.trace) - 1
    seen = traces.entropy(trace, last)
    assert np.isfinite(seen).all() and (seen >= 0).all() and (seen <= 1).all() and seen.std() > 0
    first = traces.entropy(trace, 0)
    if name in ("raster", "ahead"):
        assert np.isnan(first[~traces.known(trace, 0)]).all()
        # A context of one token has nothing to be unsure about.
        assert (seen[:, :2] == 0).all() and (seen[:, 2:] > 0).all()
    else:
        assert np.isfinite(first).all() and not np.allclose(first, seen)


def test_a_hole_grows_and_the_rest_was_there():
    loaded = cases.loaded("mar_drift")
    import jax.numpy as jnp

    from driftar_jax.sampling import batches
    from driftar_jax.types import Hole

    known = np.array([True, False, True, False, False, True])
    tokens = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
    settings = loaded.checked(ar_steps=2)
    hole = Hole(tokens, jnp.asarray(known), 3)
    (part,) = batches.stream(
        loaded.model, settings, loaded.params, np.array([0, 1]), 3, hole=hole, trace=True
    )
    assert (part.trace.turn[:, known] == -1).all()
    assert (part.trace.turn[:, ~known] >= 0).all() and part.trace.turn.max() == 1
    np.testing.assert_array_equal(part.trace.tokens[:, known], np.tile(tokens[known], (2, 1, 1)))


def test_what_cannot_be_traced_is_said_before_anything_is_compiled():
    for run, changes, said in (
        ("transdiff_drift", {}, "trace: got True, allowed false: this host makes whole grids"),
        ("mar_drift", {"gamma": 2}, "trace: got True, allowed false with gamma 2"),
    ):
        with pytest.raises(ValueError, match=said):
            cases.loaded(run).sample(cases.LABELS, trace=True, **changes)


def test_the_program_without_a_trace_is_as_small_as_before():
    import jax

    from driftar_jax import seeds
    from driftar_jax.sampling import plain

    loaded = cases.loaded("mar_own")
    settings = loaded.checked(nfe=3)
    args = (loaded.model, settings, loaded.params, cases.LABELS, np.arange(5), seeds.argument(3))
    without, traced = (
        jax.make_jaxpr(functools.partial(plain.generate, trace=trace), static_argnums=(0, 1))(*args)
        for trace in (False, True)
    )
    assert len(without.out_avals) == 1 + 4  # the grid, and four counts
    assert len(traced.out_avals) == 1 + 4 + 3
    stacked = f"f32[{settings.ar_steps},5,{loaded.model.images.num_tokens}]"
    assert stacked in str(traced) and stacked not in str(without)
