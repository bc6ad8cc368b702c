"""Where the published mode and this project's own differ: one test per row of docs/published.md.

Each shows both sides, so that neither can drift into the other unseen.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from driftar_jax.drift.grid import GridDecoder
from driftar_jax.drift.laplace import laplace_loss
from driftar_jax.features.maps import Penultimate
from driftar_jax.heads import early_stop
from driftar_jax.hosts.transdiff import TransDiff
from driftar_jax.published import losses as published
from driftar_jax.published import model, sampling
from driftar_jax.published.merge import merge, start
from driftar_jax.sampling import verify
from driftar_jax.training import losses
from driftar_jax.types import Encoding

B, N, C, D, F = 2, 6, 3, 8, 2
SIZES = dict(num_classes=4, width=D, depth=3, num_heads=2, buffer_size=F, mlp_ratio=2.0)
MODEL = model.DriftAR(N, C, decoder_depth=1, draft_depth=1, **SIZES)
LABEL = np.asarray([1, 3])
EPS = tiny.normal(1, B, N, C)


@functools.cache
def _params():
    return model.with_features(tiny.params(MODEL.init, LABEL, EPS, scale=0.5)["params"])


def _apply(method, *args):
    return jax.jit(functools.partial(MODEL.apply, method=method))({"params": _params()}, *args)


def _host(**options):
    host = TransDiff(num_rows=N, groups=1, reference_dim=C, **SIZES, **options)
    return jax.jit(host.apply), {"params": _params()["host"]}


@functools.cache
def _encoding():
    return _apply("encode", LABEL)


def _terms(params, phase_two=False, key=None):
    real, made = tiny.normal(2, B, 5, D), tiny.normal(3, B, 4, D)
    return published.terms(
        MODEL, params, LABEL, EPS, real, made, phase_two=phase_two, dropout_key=key
    )


@functools.cache
def _gradients(phase_two=False):
    """Gradients of the drift and of the entropy term, from one program."""

    @jax.jit
    def run(params):
        def both(params):
            parts = _terms(params, phase_two)
            return jnp.stack([parts.drift, parts.entropy])

        _, pull = jax.vjp(both, params)
        return [pull(one)[0] for one in jnp.eye(2)]

    return run(_params())


def _size(tree):
    return max(float(np.abs(x).max()) for x in jax.tree.leaves(tree))


def test_mask_of_the_entropy_block():
    apply, variables = _host()
    own, theirs = apply(variables, LABEL), _encoding()
    np.testing.assert_array_equal(theirs.entropy[:, 0], 0.0)
    assert own.entropy.min() > 0.1 and np.abs(own.z - theirs.z).max() > 0.01
    # The mask is all of it: the floor alone stays under 1e-6.
    masked = apply(variables, LABEL, penultimate_mask=model.block_mask(F, N))
    np.testing.assert_allclose(masked.z, theirs.z, atol=1e-6)
    np.testing.assert_allclose(masked.entropy, theirs.entropy, atol=1e-5)


@pytest.mark.slow  # of a difference that is said in docs/published.md
def test_what_the_encoder_sees():
    """The label alone: `z_proj` is dead. With references the same parameters are alive."""
    drift, _ = _gradients()
    assert _size(drift["host"]["z_proj"]) == 0 and _size(drift["host"]["mask_token"]) > 0
    host = TransDiff(num_rows=N, groups=2, reference_dim=C, **SIZES)
    image = tiny.normal(4, B, 1, N // 2, C)
    params = tiny.params(host.init, LABEL, image)["params"]

    def loss(z_proj):
        return jnp.sum(host.apply({"params": {**params, "z_proj": z_proj}}, LABEL, image).z ** 2)

    assert _size(jax.jit(jax.grad(loss))(params["z_proj"])) > 0


def test_which_entropy_the_loss_pushes():
    _, theirs = _gradients()
    assert _size(theirs["host"]) > 0 and _size(theirs["draft"]) == 0

    def own(draft, target):
        encodings = (Encoding(jnp.zeros((B, N, D)), e) for e in (draft, target))
        return losses.draft_entropy(*encodings, jnp.ones(B), "match")

    e = np.random.default_rng(5).uniform(size=(2, B, N)).astype(np.float32)
    of_draft, of_target = jax.jit(jax.grad(own, (0, 1)))(*e)
    assert _size(of_draft) > 0 and _size(of_target) == 0


def test_where_the_draft_is_compared():
    """A draft that is perfect by its loss: merged at the wrong place there, accepted here."""
    z = tiny.normal(6, B, N, D)
    ahead = np.roll(z, -1, axis=1)
    assert published.regression_loss(ahead, z) == 0
    assert not merge(ahead, z, 0.5).accepted.any()
    e = np.zeros((B, N))
    encoding = Encoding(ahead, e)
    assert jax.jit(losses.draft_regression)(encoding, encoding, np.ones(B)) == 0
    assert verify.feature(ahead, ahead, 0.1).all()


def test_unit_of_the_threshold():
    """The same relative error at two widths."""
    near = [(1.02 * z, z) for z in (jnp.ones((1, 1, 4)), jnp.ones((1, 1, 400)))]
    assert [bool(merge(*pair, 0.1).accepted) for pair in near] == [True, False]
    assert [bool(verify.feature(*pair, 0.1)) for pair in near] == [True, True]


def test_what_is_merged():
    """Every close position, behind a rejected one too; the prefix is only counted."""
    z = jnp.zeros((1, N, D))
    draft = z.at[:, 2].set(1.0).at[:, 4].set(0.01)
    merged = merge(draft, z, 0.1)
    assert merged.prefix == 2 and merged.accepted.sum() == N - 1
    np.testing.assert_array_equal(merged.features[0, 4], draft[0, 4])
    np.testing.assert_array_equal(merged.features[0, 2], z[0, 2])


@functools.cache
def _speculated(guidance):
    """A round whose stop is not raised, and one whose is."""
    run = functools.partial(sampling.speculate, MODEL, guidance=guidance, threshold=1e9)
    run = jax.jit(run)
    # Entropies never fall under the first tracker's thresholds, and never reach the second's.
    calm = early_stop.EntropyTracker(*map(jnp.float32, (9, 0, 1e9, 9)))
    return run(_params(), LABEL, EPS, start()), run(_params(), LABEL, EPS, calm)


def test_what_speculation_saves():
    """Nothing; plain it changes the image, and guided the decoder never sees the merge."""
    sample = jax.jit(functools.partial(sampling.samples, MODEL))
    plain, free = (sample(_params(), label, EPS) for label in (LABEL, np.full(B, -1)))
    merged, _ = _speculated(1.0)
    assert merged.merged.accepted.all() and np.abs(merged.tokens - plain).max() > 1e-3
    guided, _ = _speculated(1.5)
    start = Encoding(guided.merged.features, _encoding().entropy)
    own_z = _apply("generate", start, EPS, _encoding().z)
    np.testing.assert_allclose(guided.tokens, free + 1.5 * (own_z - free), atol=1e-5)


def test_early_stop():
    """Raised or not, the image is the same; our rule answers for each row, and drafting ends."""
    eager, calm = _speculated(1.0)
    assert not eager.stopped and calm.stopped
    np.testing.assert_array_equal(eager.tokens, calm.tokens)
    fresh = early_stop.context_threshold(eager.tracker), early_stop.global_threshold(eager.tracker)
    np.testing.assert_allclose(*fresh, rtol=1e-6)
    rows = jnp.stack([jnp.zeros(N), jnp.ones(N)])
    np.testing.assert_array_equal(early_stop.stop(rows, eager.tracker), [True, False])


def test_start_and_output_of_the_decoder():
    """Same parameters: only the residual parts them; the standardised start is one input more."""
    x0, z, e = EPS[:, :, None], _encoding().z, _encoding().entropy
    given = dict(x0=x0, mu=EPS, std=np.ones((B, N)), z=z, entropy=e)
    sizes = dict(token_dim=C, width=D, depth=1, num_heads=2, mlp_ratio=2.0, standardised=False)
    outputs = [
        jax.jit(GridDecoder(residual=r, zero_start=r, **sizes).apply)(
            {"params": _params()["decoder"]}, **given
        )
        for r in (True, False)
    ]
    np.testing.assert_allclose(outputs[0] - x0, outputs[1], atol=1e-6)
    own = GridDecoder(**{**sizes, "standardised": True})
    shapes = jax.eval_shape(own.init, jax.random.key(0), **given)["params"]["input"]["kernel"]
    assert shapes.value.shape == (2 * C, D)
    assert _params()["decoder"]["input"]["kernel"].shape == (C, D)


def test_gates_of_a_fresh_decoder():
    fresh = jax.jit(lambda key: MODEL.init(key, LABEL, EPS)["params"]["decoder"])(jax.random.key(0))
    assert _size(fresh["block_0"]["table"]) > 0 and _size(fresh["level"]) > 0
    own = GridDecoder(C, D, depth=1, num_heads=2)
    given = (EPS[:, :, None], EPS, EPS[..., 0], _encoding().z, _encoding().entropy)
    fresh = jax.jit(own.init)(jax.random.key(0), *given)["params"]
    assert _size(fresh["block_0"]["table"]) == 0 and _size(fresh["level"]) == 0


def test_what_the_samples_of_the_drift_are():
    """There the places of one image: their order is free. Here draws: a place keeps its row."""
    tokens, real = tiny.normal(7, 4, N, C), tiny.normal(8, 5, N, C)
    order = np.asarray([3, 0, 5, 1, 4, 2])
    phi = functools.partial(MODEL.apply, {"params": _params()}, method="features")

    @jax.jit
    def theirs(grids):
        bag = phi(real).reshape(1, -1, D)
        return laplace_loss(phi(grids), jnp.broadcast_to(bag, (4, *bag.shape[1:])))[0]

    np.testing.assert_allclose(theirs(tokens), theirs(tokens[:, order]), rtol=1e-4)
    places = Penultimate(lambda params, h: h, (2, 3), C)
    identity = {"projection": jnp.eye(C), "block": None}

    @jax.jit
    def own(grids):
        draws, positives = (jnp.swapaxes(places(identity, g)["block"], 0, 1) for g in (grids, real))
        return laplace_loss(draws, positives)[1].scale

    assert np.abs(own(tokens) / own(tokens[:, order]) - 1) > 1e-3


@pytest.mark.slow  # of a difference that is said in docs/published.md
def test_what_moves_with_the_decoder():
    """Phi's projection learns in both phases there, and the encoder keeps its dropout."""
    for phase_two in (False, True):
        grads, _ = _gradients(phase_two)
        assert "to_features" in published.TRAINED[phase_two] and _size(grads["to_features"]) > 0
        assert _size(grads["feature_block"]) == 0
        assert (_size(grads["host"]) > 0) != phase_two
        assert ("prior" in published.TRAINED[phase_two]) != phase_two and _size(grads["prior"]) > 0
    run = jax.jit(lambda key: _terms(_params(), True, key).entropy)
    assert run(jax.random.key(0)) != run(jax.random.key(1))


def test_phases():
    """Alpha by epoch, and the epoch of the freeze belongs to Phase I with alpha 0."""
    epochs, at = 50, 0.8
    assert published.alpha(40, epochs, start=0.95, freeze_at=at) == 0
    second = published.in_phase_two(np.asarray([40, 41]), epochs, freeze_at=at)
    np.testing.assert_array_equal(second, [False, True])
    assert losses.freeze_step(epochs, at) == 40
    parts = published.Terms(*map(jnp.float32, (3.0, 5.0, 7.0)), tokens=None)
    assert published.total(parts, 0.25, False) == 0.25 * 12 + 0.75 * 3
    assert published.total(parts, 0.25, True) == 3


def test_price_of_guidance():
    assert (sampling.cost(1.0).backbone_rows, sampling.cost(1.3).backbone_rows) == (1, 2)
    decoder = GridDecoder(C, D, depth=1, num_heads=2, guidance=True)
    given = (EPS[:, :, None], EPS, EPS[..., 0], _encoding().z, _encoding().entropy, jnp.ones(B))
    assert jax.eval_shape(decoder.init_with_output, jax.random.key(0), *given)[0].shape[0] == B
