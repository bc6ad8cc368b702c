"""The sampler: a plain loop makes the same tokens, calls are counted, an image is its own."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn

from driftar_jax import model
from driftar_jax.data.pixels import unpatchify
from driftar_jax.hosts import mar_plan
from driftar_jax.hosts.mar import MAR
from driftar_jax.hosts.schedules import cosine_counts, guidance_at
from driftar_jax.sampling import batches, plain
from driftar_jax.sampling.settings import Settings

# N = 10 tokens of C = 3 channels in a grid of 2x5, in T = 4 AR steps of 1, 2, 4 and 3 tokens.
IMAGES = model.ImageSpec((2, 5, 3), tuple("abcde"), patch_size=1)
N, C, T = 10, 3, 4
LABELS = np.array([3, -1, 0, 4, 1], np.int32)
CALLS = collections.Counter()


pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module", autouse=True)
def few_sizes():
    """Two compiled sizes for four AR steps: most of them run padded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mar_plan, "MOST_SIZES", 2)
        patch.setattr(mar_plan, "MOST_KEEPS", 2)
        yield


class CountingMAR(MAR):
    """A MAR that counts its real calls, at run time."""

    def encode_known(self, *args, **kwargs):
        jax.debug.callback(lambda: CALLS.update(["encoder"]))
        return super().encode_known(*args, **kwargs)

    def look(self, *args, **kwargs):
        jax.debug.callback(lambda: CALLS.update(["decoder"]))
        return super().look(*args, **kwargs)


def _build(task):
    parts = model.build(tiny.config(task), IMAGES)
    x, z, e = jnp.zeros((1, N, C)), jnp.zeros((1, N, parts.host.width)), jnp.zeros((1, N))
    inputs = {
        "host": (x, e.astype(bool), jnp.zeros(1, int)),
        "head": (x, jnp.zeros((1, N), int), z),
        "prior": (z, e),
        "decoder": (x[:, :, None], x, e, z, e),
    }
    has = [name for name in inputs if getattr(parts, name) is not None]
    params = {
        name: tiny.params(getattr(parts, name).init, *inputs[name], seed=i)["params"]
        for i, name in enumerate(has)
    }
    params["host"]["class_emb"] *= 10  # so that a label shows
    return parts, params


@pytest.fixture(scope="module")
def drift():
    return _build("drift")


@pytest.fixture(scope="module")
def own():
    return _build("host")


def _grids(built, labels=LABELS, index=None, seed=9, **settings):
    """Float grids `[B, 2, 5, 3]` and counts."""
    parts, params = built
    settings = Settings(**{"ar_steps": T, "nfe": 3, "spacing": "trimmed"} | settings)
    settings.check(parts)
    index = np.arange(len(labels), dtype=np.int32) if index is None else index
    grids, counts = plain.generate(parts, settings, params, labels, index, np.uint32(seed))
    return np.asarray(grids), counts


def _plain_loop(built, label, index, seed, guidance, temperature):
    """Drift-AR's AR loop of one image, step by step in Python."""
    parts, params = built
    key = jax.random.fold_in(jax.random.key(seed), index)
    order = np.asarray(jax.random.permutation(jax.random.fold_in(key, 0), N))
    token_key = jax.random.fold_in(key, 1)
    eps = np.stack(
        [
            jax.random.normal(jax.random.fold_in(jax.random.fold_in(token_key, p), 0), (C,))
            for p in range(N)
        ]
    )

    @functools.partial(jax.jit, static_argnums=2)
    def decoded(tokens, known, label):
        """What every position would get now."""
        given = tokens[None], known[None], jnp.full(1, label)
        encoding = parts.host.apply({"params": params["host"]}, *given)
        mu, std = parts.prior.apply({"params": params["prior"]}, encoding.z, encoding.entropy)
        x0 = mu + std[..., None] * temperature * eps[None]
        variables, rest = {"params": params["decoder"]}, (mu, std, encoding.z, encoding.entropy)
        return parts.decoder.apply(variables, x0[:, :, None], *rest)[0, :, 0]

    tokens, left, written = np.zeros((N, C), np.float32), N, np.zeros(N, int)
    scales = guidance_at(guidance, N, T, "linear")
    for count, scale in zip(cosine_counts(N, T), scales, strict=True):
        known = written > 0
        new = decoded(jnp.asarray(tokens), jnp.asarray(known), int(label))
        if guidance != 1.0:
            without = decoded(jnp.asarray(tokens), jnp.asarray(known), -1)
            new = without + scale * (new - without)
        places = order[left - count : left]
        tokens[places] = np.asarray(new)[places]
        written[places] += 1
        left -= count
    assert (written == 1).all()
    return np.asarray(unpatchify(jnp.asarray(tokens)[None], 2, 5, 1)[0])


@pytest.mark.parametrize(
    ("guidance", "temperature"), [pytest.param(1.0, 1.0, marks=pytest.mark.slow), (2.5, 0.8)]
)
def test_a_plain_loop_makes_the_same_tokens(drift, guidance, temperature):
    assert cosine_counts(N, T) == (1, 2, 4, 3)
    found, _ = _grids(drift, method="drift", guidance=guidance, temperature=temperature)
    for i in (0, 1):
        want = _plain_loop(drift, LABELS[i], i, 9, guidance, temperature)
        np.testing.assert_allclose(found[i], want, atol=2e-4)
        assert want.std() > 0.1


@pytest.mark.parametrize("method", ["drift", pytest.param("own", marks=pytest.mark.slow)])
@pytest.mark.parametrize("index", [(3, 0, 8, 7, 9), pytest.param((3, 0), marks=pytest.mark.slow)])
def test_an_image_depends_on_its_seed_and_number_alone(drift, own, method, index):
    built = own if method == "own" else drift
    whole, _ = _grids(built, method=method)
    index = np.array(index, np.int32)
    labels = np.where(index < len(LABELS), LABELS[index % len(LABELS)], 2)
    others, _ = _grids(built, labels, index, method=method)
    np.testing.assert_allclose(others[:2], whole[index[:2]], rtol=1e-4, atol=1e-4)
    assert np.abs(_grids(built, method=method, seed=10)[0] - whole).max(axis=(1, 2, 3)).min() > 0.1
    shifted, _ = _grids(built, index=np.arange(1, 6, dtype=np.int32), method=method)
    assert np.abs(shifted - whole).max(axis=(1, 2, 3)).min() > 0.1


@pytest.mark.parametrize("batch_size", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_batches_change_nothing_of_the_images(drift, batch_size):
    parts, params = drift
    settings = Settings(method="drift", ar_steps=T)
    five, _ = batches.sample_images(parts, settings, params, LABELS, 9, batch_size=5)
    made, counts = batches.sample_images(parts, settings, params, LABELS, 9, batch_size=batch_size)
    np.testing.assert_array_equal(made, five)
    assert made.shape == (5, 2, 5, 3) and made.dtype == np.uint8
    assert counts.backbone_calls == T and five.std() > 20


def test_labels_guide_the_images(drift):
    one, _ = _grids(drift, method="drift")
    changed = LABELS.copy()
    changed[3] = 2
    other, _ = _grids(drift, changed, method="drift")
    moved = np.abs(one - other).max(axis=(1, 2, 3))
    assert moved[3] > 1e-3 and np.delete(moved, 3).max() < 1e-5


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_each_ar_step_calls_the_backbone_once(drift, guidance):
    parts, params = drift
    fields = {f.name: getattr(parts.host, f.name) for f in dataclasses.fields(parts.host)}
    host = CountingMAR(**{n: v for n, v in fields.items() if n not in ("parent", "name")})
    counting = dataclasses.replace(parts, host=host)
    CALLS.clear()
    _, counts = _grids((counting, params), method="mean", guidance=guidance)
    jax.effects_barrier()
    assert CALLS == {"encoder": T, "decoder": T}
    assert int(counts.backbone_calls) == T and int(counts.draft_calls) == 0
    assert int(counts.backbone_rows) == (T if guidance == 1.0 else 2 * T)
    assert int(counts.head_evaluations) == 0


@pytest.mark.parametrize(("method", "evaluations"), [("drift", T), ("mean", 0), ("own", 3 * T)])
def test_head_evaluations_are_counted(drift, own, method, evaluations):
    counts = _grids(own if method == "own" else drift, method=method)[1]
    assert int(counts.head_evaluations) == evaluations


def test_every_position_is_written(drift):
    """A prior that says the same everywhere must fill the whole grid."""
    parts, params = drift
    mean = {"kernel": jnp.zeros_like(params["prior"]["mean"]["kernel"]), "bias": jnp.full(C, 0.4)}
    for ar_steps in (1, T):
        built = parts, params | {"prior": {"mean": mean}}
        grids, _ = _grids(built, method="mean", ar_steps=ar_steps)
        np.testing.assert_allclose(grids, 0.4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "own"}, "method: got 'own', allowed drift | mean"),
        ({"ar_steps": 0}, "ar_steps: got 0, allowed 1 to 10"),
        ({"ar_steps": 11}, "ar_steps: got 11, allowed 1 to 10"),
        ({"nfe": 0}, "nfe: got 0, allowed 1 to"),
        ({"nfe": 1001}, "nfe: got 1001, allowed 1 to 1000"),
        ({"nfe": 952, "spacing": "trimmed"}, "nfe: got 952, allowed 1 to 951"),
        ({"guidance": -0.5}, "guidance: got -0.5, allowed"),
        ({"guidance": float("nan")}, "guidance: got nan, allowed"),
        ({"guidance_schedule": "cosine"}, "guidance_schedule: got 'cosine', allowed"),
        ({"temperature": 0.0}, "temperature: got 0.0, allowed"),
        ({"temperature": float("inf")}, "temperature: got inf, allowed"),
        ({"spacing": "odd"}, "spacing: got 'odd', allowed"),
    ],
)
def test_settings_that_cannot_be_are_named(drift, changes, message):
    settings = Settings(**{"method": "drift", "ar_steps": T} | changes)
    with pytest.raises(ValueError) as caught:
        settings.check(drift[0])
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("labels", [[0, 5], [-2], [], [[1, 2]]])
def test_labels_that_cannot_be_are_named(drift, labels):
    settings = Settings(method="drift", ar_steps=T)
    with pytest.raises(ValueError, match="labels: got .*, allowed"):
        batches.sample_images(*drift[:1], settings, drift[1], labels, 0)


def test_the_entropy_costs_no_second_softmax(drift):
    """Every block has one exponential, with the entropy or without it."""
    parts, params = drift
    given = jnp.zeros((2, N, C)), jnp.zeros((2, N), bool), jnp.zeros(2, int)

    def exponentials(read):
        traced = jax.make_jaxpr(lambda p: read(parts.host.apply({"params": p}, *given)))
        return _count(traced(params["host"]).jaxpr, "exp")

    blocks = parts.host.encoder_depth + parts.host.decoder_depth
    assert exponentials(lambda encoding: encoding) == blocks
    assert exponentials(lambda encoding: encoding.z) == blocks


def _count(jaxpr, primitive):
    """How often a primitive stands in a program, those inside its functions included."""
    found = 0
    for equation in jaxpr.eqns:
        found += equation.primitive.name == primitive
        if equation.params.get("branches_platforms"):  # attention: only this machine's branch runs
            named = equation.params["branches_platforms"]
            here = [
                i for i, platforms in enumerate(named) if platforms is None or "cpu" in platforms
            ]
            found += _count(equation.params["branches"][here[0]].jaxpr, primitive)
            continue
        for inner in jax.tree.leaves(
            equation.params, is_leaf=lambda p: hasattr(p, "jaxpr") or hasattr(p, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            found += _count(inner, primitive) if hasattr(inner, "eqns") else 0
    return found


def test_modules_of_a_run_can_be_a_key_of_the_compiled_program(drift, own):
    assert hash(drift[0]) == hash(_build("drift")[0]) and drift[0] == _build("drift")[0]
    assert drift[0] != own[0] and isinstance(drift[0].host, nn.Module)
