"""CSpD with two MAR models: the loop, its test, what is counted, and what is refused."""

import collections
import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from driftar_jax import model as models
from driftar_jax.data.pixels import patchify
from driftar_jax.heads import diffusion, randomness
from driftar_jax.hosts import mar_pair, mar_plain, mar_work, orders
from driftar_jax.hosts.schedules import checked_steps, cosine_counts, guidance_at
from driftar_jax.reports import counting
from driftar_jax.sampling import generator, plain, two_models
from driftar_jax.sampling.settings import Settings

B, N, C = 3, 6, 4
LABELS = np.array([2, -1, 0], np.int32)
# Prefill 1, checks behind 2, 4 and 5: rounds of two, two and one AR steps.
BASE = Settings(
    "own", 6, nfe=3, guidance=2.0, spacing="trimmed", temperature=0.9, draft_steps=2, draft_tau=9.0
)


@functools.cache
def _one(seed=0, **changes):
    model = tiny.parts("host", **changes)
    params = tiny.params(lambda key: models.init(model, key), seed=seed)
    return generator.Generator(tiny.config("host", **changes), model, params, 0, {})


@functools.cache
def _two(kind="other"):
    """The target with a draft model of another size, with itself, or with one near to it."""
    drafter = _one(1, host__width=6, head__width=9) if kind == "other" else _one()
    if kind == "near":
        draw = np.random.default_rng(2)
        moved = lambda a: a * (1 + 0.05 * draw.normal(size=a.shape).astype(np.float32))  # noqa: E731
        drafter = dataclasses.replace(drafter, params=jax.tree.map(moved, drafter.params))
    return _one().with_drafter(drafter)


def _tokens(two, settings, index=(0, 1, 2)):
    """Tokens `[B, N, C]`, and what passed, `[B, T]`."""
    settings.check(two.model)
    at = np.array(index, np.int32)
    request = two.params, LABELS[at], at, jnp.uint32(7)
    grid, passed = two_models.generate(two.model, settings, *request)
    return np.asarray(patchify(grid, 2)), np.asarray(passed)


@pytest.mark.slow  # by hand, some accepted and some not, in the fast ones
@pytest.mark.parametrize("guidance", [2.0, 1.0])
def test_a_draft_model_that_is_the_target_changes_nothing(guidance):
    """With a check behind each AR step both see one context and one noise."""
    settings = dataclasses.replace(BASE, draft_steps=1, guidance=guidance)
    tokens, passed = _tokens(_two("same"), settings)
    one = _one()
    request = one.params, LABELS, np.arange(3, dtype=np.int32), jnp.uint32(7)
    want, _ = plain.generate(one.model, settings.plainly, *request)
    np.testing.assert_allclose(tokens, patchify(want, 2), atol=2e-4)
    np.testing.assert_array_equal(passed, [[0, 1, 1, 1, 1, 1]] * 3)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _last_step(model, params, settings, tokens, known, at, scale, keys):
    """Brute force: what a model's reverse process ends in at the tokens `at [B, M]`."""
    labels = jnp.concatenate([LABELS, np.full(B, -1, np.int32)])
    both = [jnp.concatenate([a, a]) for a in (tokens, known)]
    z = model.host.apply({"params": params["host"]}, *both, labels).z
    z = jax.vmap(lambda a, p: a[p])(z, jnp.concatenate([at, at]))
    schedule = diffusion.trimmed_schedule(settings.nfe, 950)
    token_keys = jax.vmap(lambda a, p: a[p])(randomness.token_keys(keys, N), at)
    noise = functools.partial(randomness.normal, token_keys, channels=C)
    x, half = noise(draw=settings.nfe), 0.0
    for index in reversed(range(settings.nfe)):
        t = jnp.full(z.shape[:2], schedule.timestep_map[index])
        eps, v = model.head.apply({"params": params["head"]}, jnp.concatenate([x, x]), t, z)
        eps = eps[B:] + scale * (eps[:B] - eps[B:])
        step = diffusion.predict(schedule, jnp.int32(index), x, eps, v[:B])
        std = jnp.exp(0.5 * step.log_variance) * settings.temperature
        x = step.mean
        if index:
            x, half = x + std * noise(draw=index), half + 0.5 * step.log_variance
    return diffusion.LastStep(x, std, half)


@jax.jit
def _judge(x, draft, target, keys, real, tau):
    return two_models.judge(x, draft, target, keys, real, tau=tau)


def _by_hand(two, settings):
    """The same images step by step in Python; calls of both models."""
    keys = randomness.image_keys(jnp.uint32(7), np.arange(B, dtype=np.int32))
    order = np.asarray(orders.draw(keys, two.model.images.grid))
    rank = np.argsort(order, axis=1)
    scales = guidance_at(settings.guidance, N, settings.ar_steps)
    # Modules of both are those of one size.
    sides = {"target": two.params, "draft": two.params["drafter"]}
    first, ends = checked_steps(settings.ar_steps, settings.draft_steps, settings.draft_prefill)
    tokens, calls = np.zeros((B, N, C), np.float32), []
    left, begun, passed, drafted = N, N, np.zeros((B, settings.ar_steps), int), []

    def look(side, unknown, after, step):
        at = order[:, after:unknown]
        calls.append(side)
        context = tokens, rank >= unknown, at, scales[step], keys
        return at, _last_step(two.model.drafter, sides[side], BASE, *context)

    for step, count in enumerate(cosine_counts(N, settings.ar_steps)):
        at, reached = look("target" if step < first else "draft", left, left - count, step)
        tokens = tiny.changed(tokens, (np.arange(B)[:, None], at), to=np.asarray(reached.mean))
        left -= count
        if step < first:
            begun = left
            continue
        drafted.insert(0, reached)  # an order is revealed from its end
        if step not in ends:
            continue
        at, target = look("target", begun, left, step)
        draft = diffusion.LastStep(*(np.concatenate(a, 1) for a in zip(*drafted, strict=True)))
        token_keys = jax.vmap(lambda a, p: a[p])(randomness.token_keys(keys, N), at)
        real = np.ones(at.shape[1], bool)
        fits, new = _judge(draft.mean, draft, target, token_keys, real, settings.draft_tau)
        tokens = tiny.changed(tokens, (np.arange(B)[:, None], at), to=np.asarray(new))
        # N AR steps of a token each: the last drafted one stands first.
        passed[:, step - len(drafted) + 1 : step + 1] = np.asarray(fits)[:, ::-1]
        begun, drafted = left, []
    return tokens, passed, collections.Counter(calls)


@pytest.mark.slow
def test_the_program_is_the_loop_by_hand(monkeypatch):
    two, calls = _two("near"), []
    # A bound that some drafts pass and some do not: else half of the code would not run.
    for tau in 3.0 ** np.arange(12):
        settings = dataclasses.replace(BASE, draft_tau=float(tau))
        want, fits, by_hand = _by_hand(two, settings)
        if fits.sum() > 2:
            break
    assert 2 < fits.sum() < 3 * 5

    def counted(model, *rest):
        side = "target" if model.drafter is not None else "draft"
        jax.debug.callback(lambda: calls.append(side))
        return backbone(model, *rest)

    backbone = mar_plain.backbone
    monkeypatch.setattr(mar_plain, "backbone", counted)
    tokens, passed = _tokens(two, settings)
    jax.effects_barrier()
    np.testing.assert_array_equal(passed, fits)
    np.testing.assert_allclose(tokens, want, atol=2e-3)
    # What was counted on the way is what is said of it.
    cost, record = two_models.counts(settings), two_models.summary(two.model, settings, passed)
    assert collections.Counter(calls) == by_hand == {"target": 4, "draft": 5}
    assert (cost.backbone_calls, cost.draft_calls) == (4, 5)
    assert (cost.backbone_rows, record["draft_rows"]) == (8, 10)
    assert cost.head_evaluations == 3 * 9 and record["checks"] == 3
    assert (record["target_head_evaluations"], record["draft_head_evaluations"]) == (12, 15)
    assert record["drafted"] == 5 and record["accepted"][0] == fits.sum() / 3
    assert [row["accepted"] for row in record["by_step"]] == pytest.approx(fits[:, 1:].mean(axis=0))


@pytest.mark.slow  # test_sampler has it of one model
def test_an_image_is_the_same_in_any_batch():
    tokens, passed = _tokens(_two(), BASE)
    # Rows are of one size, so that no rounding can come between.
    again, judged = _tokens(_two(), BASE, (2, 2, 1))
    np.testing.assert_array_equal(again[[0, 2]], tokens[[2, 1]])
    np.testing.assert_array_equal(judged[[0, 2]], passed[[2, 1]])


def test_what_passes_and_what_replaces_it_follow_the_target():
    """The law of the test with both densities known, tau 1 and equal earlier steps."""
    count = 20_000
    full = functools.partial(np.full, (count, 1), dtype=np.float32)
    draft = diffusion.LastStep(full(0.8), full(0.7), full(0.1))
    target = diffusion.LastStep(full(-0.2), full(1.1), full(0.1))
    x = 0.8 + 0.7 * tiny.normal(0, count, 1)
    keys = randomness.token_keys(randomness.image_keys(jnp.uint32(0), np.arange(1)), count)[0]
    judge = jax.jit(functools.partial(two_models.judge, tau=1.0))
    passed, tokens = judge(x, draft, target, keys, np.ones(count, bool))
    standard = np.sort((np.asarray(tokens)[:, 0] + 0.2) / 1.1)
    law = np.asarray(jax.scipy.stats.norm.cdf(standard))
    # Kolmogorov's distance; 1.63 / sqrt(n) is passed by chance once in a hundred.
    assert np.abs(law - (np.arange(count) + 0.5) / count).max() < 1.63 / np.sqrt(count)
    # 1 - total variation of both normals, by a sum over a fine grid.
    at = np.linspace(-8, 8, 20_001)
    p, q = (jax.scipy.stats.norm.pdf(at, m, s) for m, s in ((-0.2, 1.1), (0.8, 0.7)))
    assert np.mean(passed) == pytest.approx(np.minimum(p, q).sum() * (at[1] - at[0]), abs=0.01)


def test_a_token_without_a_proposal_is_the_targets_own():
    """The residual is empty where the earlier steps weigh the draft's density above all."""
    one = functools.partial(np.full, (1, 2), dtype=np.float32)
    draft = diffusion.LastStep(one(0.5), one(1.0), one(9.0))
    target = diffusion.LastStep(one(0.0), one(1.0), one(0.0))
    keys = randomness.token_keys(randomness.image_keys(jnp.uint32(0), np.arange(1)), 1)[0]
    judge = jax.jit(functools.partial(two_models.judge, tau=1.0))
    for real in (True, False):  # nobody waits for padding
        passed, tokens = judge(draft.mean, draft, target, keys, np.array([real]))
        assert not passed[0]
        np.testing.assert_array_equal(tokens, target.mean)


def test_steps_are_shared_as_released():
    assert checked_steps(8, 3, 0.15) == (2, (3, 6, 7))
    assert checked_steps(6, 2, 0.05) == (1, (2, 4, 5)) and checked_steps(3, 4, 0.05) == (1, (2,))
    alone, drafting, checking, columns = mar_pair.plans_of(
        _two().model, dataclasses.replace(BASE, draft_prefill=0.2), _two().params
    )
    assert len(alone) == 1 and alone[0].next.tolist() == [5, 4]
    assert drafting.now.tolist() == [4, 3, 2, 1] and checking.now.tolist() == [4, 3, 1]
    assert columns["ends"].tolist() == [True, False, True, True]


@pytest.fixture(scope="module")
def full_size():
    """Shapes of huge with a base that drafts: nothing is drawn or compiled."""
    sizes = {}
    for name in ("mar_huge", "mar_base"):
        config = importlib.import_module(f"configs.{name}").get_config()
        images = models.ImageSpec((16, 16, 16), tuple(map(str, range(1000))), 1)
        sizes[name] = models.build(config, images)
    return dataclasses.replace(sizes["mar_huge"], drafter=sizes["mar_base"])


def test_calls_are_those_of_the_paper(full_size):
    """huge with base, 256 AR steps, prefill 5 %; mar.md section 9.3."""
    settings = Settings("own", 256, nfe=100, guidance=3.0, draft_steps=8)
    alone, *rows = mar_work.pair(full_size, settings)
    pairs, controls = rows[::2], rows[1::2]
    assert [p.target.full_calls for p in pairs] == [74, 44, 29, 21]
    assert [p.draft.full_calls for p in pairs] == [243] * 4
    assert [p.target.backbone_rows for p in pairs] == [148, 88, 58, 42]
    assert [c.target.full_calls for c in controls] == [74, 44, 29, 21]
    # Every token passes the target's head once: its operations stay.
    assert {p.target.head_flops for p in pairs} == {alone.target.head_flops}
    fewer = [alone.flops / p.flops for p in pairs]
    assert fewer == pytest.approx([1.85, 2.34, 2.68, 2.91], abs=0.01)
    cost = two_models.counts(settings)
    assert (cost.backbone_calls, cost.draft_calls, cost.backbone_rows) == (44, 243, 88)
    lines = counting.lines(full_size, settings)
    assert lines[3].startswith("| 4 AR steps drafted | 74 | 243 | 148 | 486 | 7400 | 24300 |")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (dict(gamma=1), "gamma: got 1, allowed 0"),
        (dict(accelerator="lazymar"), "accelerator: got 'lazymar', allowed none with a draft"),
        (dict(nfe_schedule="linear", nfe_last=1), "nfe_schedule: got 'linear', allowed constant w"),
        (dict(ar_steps=1), "ar_steps: got 1, allowed at least 2"),
        (dict(draft_steps=-1), "draft_steps: got -1, allowed a whole number from 0"),
        (dict(draft_prefill=0.9), "draft_prefill: got 0.9, allowed 0 to below 0.83"),
        (dict(draft_tau=0.0), "draft_tau: got 0.0, allowed a number above 0"),
    ],
)
def test_settings_that_cannot_be_are_named(changes, complaint):
    with pytest.raises(ValueError) as error:
        _two().checked(**{"ar_steps": 6, **changes})
    assert str(error.value).startswith(complaint) and "\n" not in str(error.value)


def test_pairs_that_cannot_be_are_named():
    one, drift = _one(), generator.Generator(tiny.config("drift"), tiny.parts("drift"), {}, 0, {})
    others = dataclasses.replace(tiny.IMAGES, class_names=tuple("abd"))
    latents = tiny.config("host")
    latents.data.name = "latents:elsewhere"
    for draft, complaint in (
        (drift, "draft_workdir: got 'drift', allowed with a draft model: one that has its own"),
        (
            dataclasses.replace(one, model=dataclasses.replace(one.model, images=others)),
            "draft_workdir: got '6 tokens of 4 numbers of 4x6x1 pixels, 3 classes (a, b, d)'",
        ),
        (dataclasses.replace(one, config=latents), "draft_workdir: got '6 tokens of 4 numbers of"),
    ):
        with pytest.raises(ValueError) as error:
            one.with_drafter(draft)
        assert str(error.value).startswith(complaint) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="^workdir: got 'drift', allowed with a draft model"):
        drift.with_drafter(one)
    with pytest.raises(ValueError, match="^draft_steps: got 3, allowed 0"):
        one.checked(draft_steps=3)


def test_samples_say_what_passed():
    two, base = _two(), _two().settings()
    request = {name: value for name, value in dataclasses.asdict(BASE).items()}
    changes = {n: v for n, v in request.items() if n != "method" and v != getattr(base, n)}
    samples = two.sample(LABELS, 7, batch_size=3, **changes)
    assert samples.images.shape == (3, 4, 6, 1) and samples.counts.backbone_calls == 4
    record = samples.speculation
    assert (record["target_calls"], record["draft_calls"], record["drafted"]) == (4, 5, 5)
    assert record["accepted"][0] == _tokens(two, BASE)[1].sum() / 3 and len(record["by_step"]) == 5
