"""NextStep-1 trained and sampled at the smallest size: losses, drafts, both ways to decode."""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from driftar_jax import model
from driftar_jax.data import captions
from driftar_jax.evaluation import compare
from driftar_jax.heads import draft, randomness
from driftar_jax.hosts import nextstep_encodings
from driftar_jax.sampling import batches, generator, plain, texts
from driftar_jax.training import tasks

pytestmark = pytest.mark.timeout(300)

# N = 6 tokens of C = 4 channels in a grid of 3x2; captions of at most 4 words.
TEXTS = ["red fox", "blue fox sits", "a red bird here", "bird"]
GRID, C, N = (3, 2), 4, 6
FITTED = captions.fit("set", TEXTS, GRID, 4)
IMAGES = model.ImageSpec((6, 4, 1), tuple("ab"), patch_size=2, text=FITTED.spec)
BOOK = captions.Book(
    captions.WordTokenizer(FITTED.tokenizer), FITTED.spec, GRID, (("red fox",), ("bird", "fox"))
)
BATCH = {
    "image": np.random.default_rng(0).integers(0, 256, (4, *IMAGES.image_shape), np.uint8),
    "label": np.array([0, 0, 1, 1], np.int32),
    "text": FITTED.rows,
}
FILES = {"host": "nextstep_small", "drift": "drift_nextstep", "draft": "draft_nextstep"}


def _config(name, **changes):
    made = importlib.import_module(f"configs.{FILES[name]}").get_config("tiny")
    made.host.update(width=12, num_heads=2, mlp_width=14)
    made.mask.tokens_per_image = 3
    made.sample.ar_steps = N
    if name != "host":
        made.drift.update(width=10, draws=3)
        made.draft.update(width=8)
    for field, value in changes.items():
        section, field = field.split("__")
        made[section][field] = value
    return made


@functools.cache
def _built(name):
    """Config, task and parameters that switch nothing off."""
    config = _config(name)
    task = tasks.build(config, IMAGES)
    return config, task, tiny.params(task.init, scale=0.3)


@functools.cache
def _gradient(name):
    """`params -> ((loss, metrics), gradients)` half-way through phase I, always the same draws."""
    task = _built(name)[1]
    loss = functools.partial(task.loss, step=jnp.int32(2), frozen=False)
    return jax.jit(
        lambda p: jax.value_and_grad(loss, has_aux=True)(p, batch=BATCH, key=jax.random.key(1))
    )


@pytest.mark.parametrize(
    ("name", "quiet"),
    [
        ("host", set()),
        pytest.param("drift", {"host.lm_head.kernel"}, marks=pytest.mark.slow),
    ],
)
def test_the_loss_reaches_every_parameter_and_falls(name, quiet):
    params = _built(name)[2]
    (first, metrics), grads = _gradient(name)(params)
    without = {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
        if not np.abs(leaf).max() > 0
    }
    # A bias of all keys moves no softmax.
    assert without - {"host.stack.layers.k_proj.bias"} == quiet
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    if name == "drift":
        m = jax.tree.map(float, metrics)
        draft = m["draft_reg"] + m["draft_entropy"]
        want = m["alpha"] * draft + (1 - m["alpha"]) * (m["drift"] + m["mu"])
        np.testing.assert_allclose(first, want, rtol=1e-5)  # Eq. 9
        assert min(m["draft_reg"], m["draft_entropy"], m["drift"], m["mu"]) > 0
        assert 0 < m["sigma_mean"] <= 0.5
    else:
        np.testing.assert_allclose(first, metrics["image"] + 0.01 * metrics["text"], rtol=1e-5)
    descend = jax.jit(lambda params, grads: jax.tree.map(lambda p, g: p - 0.03 * g, params, grads))
    for _ in range(12):
        params = descend(params, _gradient(name)(params)[1])
    falls = "image" if name == "host" else "mu"
    assert _gradient(name)(params)[0][1][falls] < 0.95 * metrics[falls]


def test_dropped_captions_leave_nothing_to_read():
    """With all captions dropped the loss does not depend on them."""
    task = _built("drift")[1]
    bare = dataclasses.replace(task.contexts, drop=1.0, unknown=0.0)
    rows = bare.conditions(jax.random.key(0), BATCH)
    want = np.tile(captions.nothing(FITTED.spec), (4, 1))
    read = np.concatenate([rows["padding"][:, None], rows["ids"]], axis=1)
    np.testing.assert_array_equal(read, want)
    assert rows["dropped"].all()
    some = dataclasses.replace(task.contexts, drop=0.0, unknown=0.9)
    rows = some.conditions(jax.random.key(0), BATCH)
    ids = rows["ids"]
    np.testing.assert_array_equal(rows["padding"], BATCH["text"][:, 0])
    given = BATCH["text"][:, 1:]
    assert set(ids[ids != given].tolist()) == {FITTED.spec.unknown}
    words = (given != FITTED.spec.pad) & (np.arange(given.shape[1]) < 4)
    assert ((ids == given) | words).all() and (ids != given).mean() > 0.2


@pytest.mark.parametrize("name", ["host", "drift"])
def test_noise_is_on_what_is_read_and_not_on_what_is_made(name):
    """Each image has its own strength, by the step's key; a draft head meets none."""
    task, key = _built(name)[1], jax.random.key(3)
    clean = task.draw(BATCH, key, False)[0]
    config = _config(name, host__context_noise=0.3)
    noisy = tasks.build(config, IMAGES)
    rows = noisy.draw(BATCH, key, False)[0]
    again = noisy.draw(BATCH, key, False)[0]
    np.testing.assert_array_equal(rows["read"], again["read"])
    assert "read" not in clean and rows.keys() == clean.keys() | {"read"}
    for field in ("tokens", "ids", "padding", "positions"):
        np.testing.assert_array_equal(clean[field], rows[field])
    off = np.asarray(rows["read"] - rows["tokens"])
    deviations = off.std(axis=(1, 2))
    assert len(set(deviations.round(6).tolist())) == len(off) and 0 < deviations.max() < 1.5 * 0.3
    encode = lambda rows: noisy.contexts.encode(_built(name)[2], rows, None).z  # noqa: E731
    read = encode(rows | {"tokens": rows["read"]})
    np.testing.assert_array_equal(encode(rows), read)
    assert np.abs(read[:, 0] - encode(clean)[:, 0]).max() == 0  # no token before the first
    assert np.abs(read[:, 1:] - encode(clean)[:, 1:]).min() > 0
    draft = tasks.build(_config("draft", host__context_noise=0.3), IMAGES)
    assert not draft.contexts.noise


@pytest.mark.slow  # the other has both heads
def test_noise_changes_the_loss_of_the_own_head_through_the_contexts_alone():
    task, params = _built("host")[1:]
    key = jax.random.key(3)
    rows, totals = task.draw(BATCH, key, False)
    loss = lambda rows: float(task.terms(params, rows, totals, key, 2, False)[0])  # noqa: E731
    assert loss(rows | {"read": rows["tokens"]}) == loss(rows)
    assert loss(rows | {"read": rows["tokens"] + 0.2}) != loss(rows)


@pytest.mark.parametrize("name", ["host", pytest.param("drift", marks=pytest.mark.slow), "draft"])
def test_parts_of_a_batch_have_its_loss_together(name):
    """Captions of unequal lengths and rounds of unequal numbers: still one mean over all."""
    _, task, params = _built(name)
    key = jax.random.key(3)
    rows, totals = jax.jit(task.draw, static_argnums=2)(BATCH, key, False)
    terms = jax.jit(lambda rows, totals: task.terms(params, rows, totals, key, 2, False))
    value, metrics = terms(rows, totals)
    share = jax.tree.map(lambda a: a / 2, totals)
    halves = [terms(jax.tree.map(lambda a, i=i: a[i::2], rows), share) for i in range(2)]
    np.testing.assert_allclose(np.mean([half[0] for half in halves]), value, rtol=1e-5)
    assert halves[0][0] != pytest.approx(float(halves[1][0]), rel=1e-4)
    for field, whole in metrics.items():
        mean = np.mean([half[1][field] for half in halves])
        np.testing.assert_allclose(mean, whole, rtol=1e-5, atol=1e-6, err_msg=field)


def test_windows_end_with_the_token_before():
    parts = _built("drift")[1].parts
    tokens = tiny.normal(0, 2, N, C)
    seen, known = draft.window(parts, tokens, jnp.array([[1, 4, 6], [2, 3, 5]]))
    assert seen.shape == (2, 3, 3, C)
    np.testing.assert_array_equal(known[0], [[0, 0, 1], [1, 1, 1], [1, 1, 1]])
    np.testing.assert_array_equal(seen[0, 1], tokens[0, 1:4])
    np.testing.assert_array_equal(seen[1, 0, 1:], tokens[1, :2])


@functools.cache
def _loaded(name):
    config, task, params = _built(name)
    reader = texts.Captions(BOOK)
    return generator.Generator(config, task.parts, params, 0, {}, batches.as_pixels, reader)


def test_one_token_after_another_is_one_call_over_all():
    """The tokens of plain decoding are those that their own context makes."""
    loaded, rows = _loaded("drift"), jnp.asarray(BOOK.rows(["red fox", "", "bird here"]))
    settings = loaded.checked(guidance=2.0)
    keys = jax.random.split(jax.random.key(4), 3)
    model, params = loaded.model, loaded.params

    @jax.jit
    def run(params, rows, keys):
        head = plain.one_step_head(model, settings, params)
        return model.family.plain(model, settings, params, rows, keys, head, None)

    made = run(params, rows, keys)
    encode = jax.jit(nextstep_encodings.encodings, static_argnums=0)
    hidden = encode(model, params, rows[:, 1:], rows[:, 0], made)
    hidden = nextstep_encodings.projected(model.host, params["host"], hidden)
    head = plain.one_step_head(model, settings, params)
    mu, std = head.starts(hidden, keys)
    eps = randomness.normal(randomness.token_keys(keys, N), 0, C)
    again = head.tokens(hidden, mu, std, eps, jnp.full(3, 2.0))
    np.testing.assert_allclose(made, again, atol=2e-5)
    assert (std[:, :2] == 0).all() and (std[:, 2:] > 0).all()


def test_captions_and_batches(monkeypatch):
    """An image depends on caption, number and seed, not on its batch; both heads make images."""
    texts = ["red fox", "blue fox sits", "bird"]
    own = _loaded("host").sample(texts, seed=3, batch_size=2, nfe=3, guidance=1.5)
    assert own.images.shape == (3, *IMAGES.image_shape)
    counts = own.counts
    assert (counts.backbone_calls, counts.head_evaluations, counts.backbone_rows) == (6, 18, 12)
    drift = _loaded("drift")
    made = drift.sample(texts, seed=3, batch_size=2)
    assert dataclasses.astuple(made.counts) == (N, N, 0, N)
    alone = drift.sample(["red fox", "blue fox sits", "red fox"], seed=3, batch_size=2)
    near = np.abs(alone.images.astype(int) - made.images).max(axis=(1, 2, 3))
    assert (near[:2] <= 1).all() and near[2] > 1
    by_class = drift.sample(np.array([0, 0, 0]), seed=3, batch_size=2)
    np.testing.assert_array_equal(by_class.images[0], made.images[0])


@pytest.mark.slow  # test_speculative holds the walk
def test_drafts_that_must_agree_change_nothing():
    """Coupled with bound 0 every token is the target's own; calls are counted."""
    drift, texts = _loaded("drift"), ["red fox", "bird"]
    plain = drift.sample(texts, seed=5, batch_size=2)
    rule = dict(gamma=2, rule="coupled", delta=0.0)
    made = drift.sample(texts, seed=5, batch_size=2, **rule)
    assert np.abs(made.images.astype(int) - plain.images).max() <= 1
    lengths = made.speculation["accepted_lengths"]
    assert sum((n + 1) * rounds for n, rounds in enumerate(lengths)) == 2 * N
    loose = drift.sample(texts, seed=5, batch_size=2, **rule | {"delta": 1e6})
    assert loose.counts.backbone_calls < N - 1 and loose.counts.draft_calls > 0


@pytest.mark.slow  # test_lookahead holds the walk
@pytest.mark.parametrize("name", ["host", "drift"])
def test_looking_ahead_without_a_bound_changes_nothing(name):
    """Both heads, guided rows, a batch that is not full; calls are counted as they are made."""
    asked = ["red fox", "blue fox sits", "bird"]
    rest = dict(seed=5, batch_size=2, guidance=2.0) | ({"nfe": 3} if name == "host" else {})
    plain = _loaded(name).sample(asked, **rest)
    made = _loaded(name).sample(asked, **rest, lookahead=4, delta=0.0)
    assert np.abs(made.images.astype(int) - plain.images).max() <= 1
    assert made.lookahead == 4 and made.gamma == 0
    lengths = made.speculation["accepted_lengths"]
    assert sum((n + 1) * rounds for n, rounds in enumerate(lengths)) == 3 * N
    mean, low, high = made.speculation["calls"]
    assert low <= mean == made.counts.backbone_calls <= high <= N
    evaluations = 4 * mean * (3 if name == "host" else 1)
    assert made.counts.head_evaluations == pytest.approx(evaluations)
    loose = _loaded(name).sample(asked, **rest, lookahead=4, delta=1e6, bound="constant")
    assert loose.counts.backbone_calls == 2 and loose.counts.draft_calls == 0


def test_an_evaluation_looks_ahead():
    """A row for each head, with the calls that were counted; plain rows have theirs as before."""
    asked = compare.Extras(lookahead=4, delta=1e6)
    table = compare.methods(compare.Runs(_loaded("host"), _loaded("drift")), asked)
    assert [m.name for m in table[-2:]] == [f"{n}, lookahead 4 (1e+06)" for n in ("own", "drift")]
    plain, ahead = table[-3].settings, table[-1].settings
    labels = np.array([0, 1])
    assert compare.costs(_loaded("drift"), plain, labels, 2).backbone_calls == N
    assert compare.costs(_loaded("drift"), ahead, labels, 2).backbone_calls < N
    assert len(compare.methods(compare.Runs(_loaded("host"), _loaded("drift")))) == len(table) - 2


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"ar_steps": 3}, "ar_steps: got 3, allowed 6"),
        ({"guidance": 0.5}, "guidance: got 0.5, allowed"),
        ({"guidance": 4.0}, "guidance: got 4.0, allowed 1 to 3"),
        ({"nfe_schedule": "linear"}, "nfe_schedule: got 'linear', allowed constant"),
        ({"method": "own"}, "method: got 'own', allowed drift"),
        ({"gamma": 6}, "gamma: got 6, allowed"),
        ({"lookahead": 7}, "lookahead: got 7, allowed -1 (chosen by measuring) or 0 to 6"),
        ({"lookahead": 4, "gamma": 2}, "lookahead: got 4, allowed 0 with gamma 2"),
        ({"lookahead": 4, "bound": "even"}, "bound: got 'even', allowed entropy | constant"),
        ({"lookahead": 4, "delta": -0.1}, "delta: got -0.1, allowed a number from 0"),
        ({"labels": ["zebra"]}, "prompt: got 'zebra', allowed at least one word"),
        ({"labels": [2]}, "labels: got 2, allowed 0 to 1"),
    ],
)
def test_bad_requests_are_one_line(changes, line):
    labels = changes.pop("labels", ["fox"])
    with pytest.raises(ValueError) as error:
        _loaded("drift").sample(labels, **changes)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)
