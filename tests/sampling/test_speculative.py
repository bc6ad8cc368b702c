"""The engine: a plain loop makes the same tokens, calls are saved and counted, bounds hold."""

import collections
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy import stats

from driftar_jax import model
from driftar_jax.data.pixels import patchify
from driftar_jax.evaluation import draft_timing
from driftar_jax.heads import early_stop, randomness
from driftar_jax.hosts.mar import MAR
from driftar_jax.hosts.schedules import cosine_counts, guidance_at
from driftar_jax.sampling import drafted as drafted_lib
from driftar_jax.sampling import plain, speculative, verify
from driftar_jax.sampling.settings import Settings
from driftar_jax.types import Encoding

# N = 10 tokens of C = 3 channels in a grid of 2x5, in T = 6 AR steps.
IMAGES = model.ImageSpec((2, 5, 3), tuple("abcde"), patch_size=1)
N, C, T, SEED = 10, 3, 6, 9
LABELS = np.array([3, -1, 0, 4, 1], np.int32)
COUNTS = cosine_counts(N, T)
CALLS = collections.Counter()

pytestmark = pytest.mark.timeout(300)


class CountingMAR(MAR):
    """A MAR that counts its real calls and their rows, at run time."""

    def encode_known(self, tokens, *args, **kwargs):
        rows = tokens.shape[0]
        jax.debug.callback(lambda: CALLS.update({"calls": 1, "rows": rows}))
        return super().encode_known(tokens, *args, **kwargs)


@pytest.fixture(scope="module")
def built():
    """Drift-AR with a draft head that is right as often as not."""
    parts = model.build(tiny.config("drift"), IMAGES)
    x, z, e = jnp.zeros((1, N, C)), jnp.zeros((1, N, parts.host.width)), jnp.zeros((1, N))
    inputs = {
        "host": (x, e.astype(bool), jnp.zeros(1, int)),
        "prior": (z, e),
        "decoder": (x[:, :, None], x, e, z, e),
        "draft": (Encoding(z=z, entropy=e), x, e.astype(bool)),
    }
    params = {
        name: tiny.params(getattr(parts, name).init, *given, seed=i)["params"]
        for i, (name, given) in enumerate(inputs.items())
    }
    params["host"]["class_emb"] *= 10
    params["draft"]["features_out"]["kernel"] *= 0.1
    return parts, params


def _settings(**changes):
    return Settings(**{"method": "drift", "ar_steps": T, "temperature": 0.9} | changes)


def _spec(built, rule, labels=LABELS, index=None, **settings):
    """Tokens `[B, N, C]` and what it cost."""
    parts, params = built
    index = np.arange(len(labels), dtype=np.int32) if index is None else index
    asked = parts, rule, _settings(**settings), params, labels, index, np.uint32(SEED)
    grids, found = drafted_lib.generate(*asked)
    return np.asarray(patchify(grids, 1)), jax.tree.map(np.asarray, found)


def _plain(built, **settings):
    parts, params = built
    index = np.arange(len(LABELS), dtype=np.int32)
    grids, _ = plain.generate(parts, _settings(**settings), params, LABELS, index, np.uint32(SEED))
    return np.asarray(patchify(grids, 1))


class Loop:
    """The same rules for one image, step by step in Python."""

    def __init__(self, built, label, index, rule, guidance, temperature):
        self.parts, self.params = built
        self.rule, self.guidance, self.temperature = rule, guidance, temperature
        self.labels = [int(label), -1] if guidance != 1.0 else [int(label)]
        key = jax.random.fold_in(jax.random.key(SEED), index)
        self.order = np.asarray(jax.random.permutation(jax.random.fold_in(key, 0), N))
        self.token_keys = randomness.token_keys(key[None], N)[0]
        self.eps = np.asarray(randomness.normal(self.token_keys, 0, C))
        self.scales = guidance_at(guidance, N, T, "linear")
        self.left = N - np.cumsum((0, *COUNTS))

    def known(self, step):
        known = np.ones(N, bool)
        known[self.order[: self.left[step]]] = False
        return known

    def group(self, step):
        return self.order[self.left[step + 1] : self.left[step]]

    def encode(self, tokens, step):
        """An encoding of each branch."""
        return [
            _programs(self.parts)["encode"](self.params, tokens, self.known(step), label)
            for label in self.labels
        ]

    def draft(self, last, tokens, step):
        one = _programs(self.parts)["draft"]
        return [one(self.params, branch, tokens, self.known(step)) for branch in last]

    def starts(self, encodings):
        """(mean, std) of each branch, in numpy."""
        one = _programs(self.parts)["starts"]
        return [jax.tree.map(np.asarray, one(self.params, e)) for e in encodings]

    def decoded(self, encodings, eps, step):
        """What every position would get, from noise `[N, C]`."""
        made = []
        for encoding, (mu, std) in zip(encodings, self.starts(encodings), strict=True):
            x0 = mu + self.temperature * std[:, None] * eps
            made.append(
                np.asarray(_programs(self.parts)["decode"](self.params, encoding, x0, mu, std))
            )
        if len(made) == 1:
            return made[0]
        return made[1] + self.scales[step] * (made[0] - made[1])

    def judge(self, draft, target, step, x):
        """Which tokens of the group stand, and the noise of the target's own group."""
        places = self.group(step)
        (mu_q, std_q), (mu_p, std_p) = self.starts(draft)[0], self.starts(target)[0]
        eps = self.eps.copy()
        if self.rule.name == "gaussian":
            q = verify.Normal(mu_q[places], self.temperature * std_q[places])
            p = verify.Normal(mu_p[places], self.temperature * std_p[places])
            x0 = q.mean + q.std[:, None] * self.eps[places]
            keys = randomness.verdict_keys(self.token_keys[places])
            verdict = jax.jit(verify.gaussian)(x0, q, p, keys)
            eps[places] = (verdict.x0 - p.mean) / p.std[:, None]
            return np.asarray(verdict.accepted), eps
        if self.rule.name == "coupled":
            again = self.decoded(target, self.eps, step)
            far = np.linalg.norm(x[places] - again[places], axis=-1)
            std = self.temperature * np.asarray(std_p)[places]
            return far <= self.rule.delta * std, eps
        gaps = [
            np.sqrt(np.mean((d.z - t.z) ** 2, axis=-1)) for d, t in zip(draft, target, strict=True)
        ]
        return np.max(gaps, axis=0)[places] < self.rule.delta, eps

    def run(self):
        """Tokens, accepted lengths of the rounds, backbone calls and draft calls."""
        tokens, step, last, lengths, draft_calls = np.zeros((N, C), np.float32), 0, None, [], 0
        average = self.rule.stop / self.rule.share
        while step < T:
            drafted, encodings, now = [], last, tokens.copy()
            threshold = min(self.rule.share * average, self.rule.stop)
            while last is not None and len(drafted) < self.rule.gamma:
                k = step + len(drafted)
                if k >= T - 1:
                    break
                draft_calls += 1
                encodings = self.draft(encodings, now, k)
                if encodings[0].entropy.mean() < threshold:
                    break
                x = self.decoded(encodings, self.eps, k)
                drafted.append((encodings, x))
                now[self.group(k)] = x[self.group(k)]
            # ONE call in the engine: every context sees the drafts that it knows and no others.
            targets = [self.encode(now, step + s) for s in range(len(drafted) + 1)]
            accepted, eps = 0, self.eps
            for (draft, x), target in zip(drafted, targets, strict=False):
                good, corrected = self.judge(draft, target, step + accepted, x)
                if not good.all():
                    eps = corrected
                    break
                places = self.group(step + accepted)
                tokens[places] = x[places]
                accepted += 1
            last, step = targets[accepted], step + accepted
            tokens[self.group(step)] = self.decoded(last, eps, step)[self.group(step)]
            average = 0.9 * average + 0.1 * float(last[0].entropy.mean())
            lengths.append(accepted)
            step += 1
        return tokens, lengths, draft_calls


@functools.cache
def _programs(parts):
    """The modules on one image without its batch axis, compiled once."""

    def first(tree):
        return jax.tree.map(lambda a: a[0], tree)

    def one(tree):
        return jax.tree.map(lambda a: a[None], tree)

    def encode(params, tokens, known, label):
        given = tokens[None], known[None], jnp.full(1, label)
        return first(parts.host.apply({"params": params["host"]}, *given))

    def draft(params, last, tokens, known):
        given = one(last), tokens[None], known[None]
        return first(parts.draft.apply({"params": params["draft"]}, *given))

    def starts(params, encoding):
        return first(
            parts.prior.apply({"params": params["prior"]}, *one((encoding.z, encoding.entropy)))
        )

    def decode(params, encoding, x0, mu, std):
        given = one((x0[:, None], mu, std, encoding.z, encoding.entropy))
        return parts.decoder.apply({"params": params["decoder"]}, *given)[0, :, 0]

    return {f.__name__: jax.jit(f) for f in (encode, draft, starts, decode)}


RULES = {
    "gaussian": speculative.Rule(gamma=3),
    "coupled": speculative.Rule(gamma=3, name="coupled", delta=1.0),
    "feature": speculative.Rule(gamma=2, name="feature", delta=0.399),
    "stopping": speculative.Rule(gamma=3, name="feature", delta=9.0, stop=0.9997, share=1.0),
}


# Guided rows go through all that plain ones do.
GUIDANCE = [pytest.param(1.0, marks=pytest.mark.slow), 2.5]


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("rule", RULES)
def test_a_plain_loop_makes_the_same_tokens(built, rule, guidance):
    rule = RULES[rule]
    found, spec = _spec(built, rule, guidance=guidance)
    kinds = set()
    for i, label in enumerate(LABELS):
        want, lengths, draft_calls = Loop(built, label, i, rule, guidance, 0.9).run()
        np.testing.assert_allclose(found[i], want, atol=3e-4)
        assert spec.backbone_calls[i] == len(lengths)
        assert spec.draft_calls[i] == draft_calls
        np.testing.assert_array_equal(
            spec.lengths[i], np.bincount(lengths, minlength=rule.gamma + 1)
        )
        kinds.update(lengths)
    assert len(kinds) > 1, "every round ended alike: a wrong engine could pass"


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_no_drafts_are_plain_decoding(built, guidance):
    found, spec = _spec(built, speculative.Rule(gamma=0), guidance=guidance)
    np.testing.assert_allclose(found, _plain(built, guidance=guidance), atol=2e-4)
    np.testing.assert_array_equal(spec.backbone_calls, T)
    np.testing.assert_array_equal(spec.head_evaluations, T)
    assert spec.batch_calls == T and spec.batch_rows == T * (1 if guidance == 1.0 else 2)
    assert not spec.draft_calls.any() and spec.batch_draft_calls == 0


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_a_bound_of_nothing_is_plain_decoding(built, guidance):
    rule = speculative.Rule(gamma=2, name="coupled", delta=0.0)
    found, spec = _spec(built, rule, guidance=guidance)
    np.testing.assert_allclose(found, _plain(built, guidance=guidance), atol=2e-4)
    np.testing.assert_array_equal(spec.lengths[:, 1:], 0)
    np.testing.assert_array_equal(spec.backbone_calls, T)


@pytest.mark.parametrize("delta", [pytest.param(1.0, marks=pytest.mark.slow), 2.0])
def test_the_bound_holds_for_every_token(built, delta):
    """Each token against what the target makes of the same context and noise."""
    tokens, spec = _spec(built, speculative.Rule(gamma=3, name="coupled", delta=delta))
    worst = 0.0
    for i, label in enumerate(LABELS):
        loop = Loop(built, label, i, speculative.Rule(gamma=0), 1.0, 0.9)
        for step in range(T):
            target = loop.encode(tokens[i], step)
            again, places = loop.decoded(target, loop.eps, step), loop.group(step)
            std = 0.9 * np.asarray(loop.starts(target)[0][1])[places]
            far = np.linalg.norm(tokens[i][places] - again[places], axis=-1) / std
            worst = max(worst, far.max())
    assert worst < delta + 2e-3
    assert spec.lengths[:, 1:].any() and worst > 0.05 * delta


@pytest.mark.parametrize("index", [(3, 0, 7, 9, 8), pytest.param((3, 0), marks=pytest.mark.slow)])
def test_an_image_depends_on_its_seed_and_number_alone(built, index):
    """Not on its row, the images beside it or, where two are made, on how many there are."""
    whole, spec = _spec(built, RULES["gaussian"], guidance=2.5)
    index = np.array(index, np.int32)
    labels = np.where(index < len(LABELS), LABELS[index % len(LABELS)], 2)
    others, again = _spec(built, RULES["gaussian"], labels, index, guidance=2.5)
    np.testing.assert_allclose(others[:2], whole[index[:2]], atol=3e-4)
    np.testing.assert_array_equal(again.lengths[:2], spec.lengths[index[:2]])


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_calls_are_saved_and_counted(built, guidance):
    """With everything accepted: a plain call, then gamma + 1 groups a call, and no call unseen."""
    parts, params = built
    fields = {f.name: getattr(parts.host, f.name) for f in dataclasses.fields(parts.host)}
    host = CountingMAR(**{n: v for n, v in fields.items() if n not in ("parent", "name")})
    CALLS.clear()
    rule = speculative.Rule(gamma=2, name="feature", delta=9.0)
    counting = dataclasses.replace(parts, host=host), params
    _, spec = _spec(counting, rule, guidance=guidance)
    jax.effects_barrier()
    # T = 6 groups as 1, then 2 drafts and 1, then 1 draft and 1.
    branches = 1 if guidance == 1.0 else 2
    assert CALLS["calls"] == spec.batch_calls == 3
    assert CALLS["rows"] == spec.batch_rows * len(LABELS) == 7 * branches * len(LABELS)
    np.testing.assert_array_equal(spec.backbone_calls, 3)
    np.testing.assert_array_equal(spec.draft_calls, 3)
    assert spec.batch_draft_calls == 3
    np.testing.assert_array_equal(spec.head_evaluations, 6)
    np.testing.assert_array_equal(spec.lengths, np.tile([1, 1, 1], (len(LABELS), 1)))
    # The drafted groups are 1, 2 and 4.
    drafted = COUNTS[1] + COUNTS[2] + COUNTS[4]
    np.testing.assert_array_equal(spec.judged.sum(axis=1), drafted)
    np.testing.assert_array_equal(spec.accepted, spec.judged)


def test_one_program_that_asks_nobody(built):
    """Compiled once for a shape, a loop inside, no callback to Python."""
    parts, params = built
    rule, index = RULES["gaussian"], np.arange(len(LABELS), dtype=np.int32)
    before, settings = drafted_lib.generate._cache_size(), _settings(guidance=2.5)
    for seed in (1, 2):
        drafted_lib.generate(parts, rule, settings, params, LABELS, index, np.uint32(seed))
    assert drafted_lib.generate._cache_size() <= before + 1
    lowered = drafted_lib.generate.lower(
        parts, rule, settings, params, LABELS, index, np.uint32(0)
    ).as_text()
    assert "stablehlo.while" in lowered and "callback" not in lowered


# --- a host made for the test ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class FixedHost:
    """Tokens whose priors do not depend on the context: `z` holds mean and standard deviation.

    Its memory is the number of groups that stand, as a cache's length would be.
    """

    group_size, token_dim = 1, 2
    batch: int
    mean: tuple[float, ...]
    std: float
    num_steps: int = 5
    branches: int = 1
    draft: Any = None  # (last, tokens, step) -> encoding

    @property
    def num_tokens(self):
        return self.num_steps

    def group(self, step):
        return jnp.minimum(step, self.num_steps - 1)[:, None], (step < self.num_steps)[:, None]

    def known(self, step):
        return jnp.arange(self.num_tokens)[None] < step[:, None]

    def memory(self):
        return jnp.zeros(self.batch, jnp.int32)

    def encoding(self):
        z = jnp.array([*self.mean, self.std])[None, None]
        z = jnp.broadcast_to(z, (self.branches * self.batch, self.num_tokens, 3))
        return Encoding(z=z, entropy=jnp.full(z.shape[:2], 0.5))

    def encode(self, memory, tokens, step, contexts):
        # A call that finds the wrong length makes nonsense.
        encoding = self.encoding()
        right = jnp.tile(memory == step, self.branches)
        encoding = encoding.replace(z=jnp.where(right[:, None, None], encoding.z, 99.0))
        return jax.tree.map(lambda a: jnp.stack([a] * contexts), encoding), memory + contexts

    def roll_back(self, memory, step):
        return jnp.minimum(memory, step)

    def read(self, encoding):
        return encoding

    def scales(self):
        return np.ones(self.num_steps, np.float32)

    def take(self, tree, step):
        positions = jnp.tile(self.group(step)[0], (self.branches, 1))
        return jax.tree.map(lambda a: jax.vmap(lambda v, p: v[p])(a, positions), tree)


class FixedHead:
    """A token is its start, in the conditional row."""

    temperature = 1.0

    def starts(self, encoding, keys):
        return encoding.z[..., :2], encoding.z[..., 2]

    def tokens(self, encoding, mu, std, eps, scale):
        return mu[: len(eps)] + std[: len(eps), :, None] * eps


@pytest.mark.parametrize("std", [pytest.param(0.5, marks=pytest.mark.slow), 0.65])
def test_generated_starts_are_the_targets(std):
    """Through drafts, corrections and discarded groups, tokens are independent draws of the target.

    `1.1 p/q` in place of `p/q` fails this at 4,000 images as well.
    """
    batch = 5000
    target = FixedHost(batch, (0.3, -0.2), std)
    wrong = FixedHost(batch, (0.0, 0.1), 0.5).encoding()

    @jax.jit
    def run(seed):
        keys = randomness.image_keys(seed, jnp.arange(batch))
        tokens, priors = randomness.token_keys(keys, 5), randomness.prior_keys(keys)
        walk = dataclasses.replace(target, draft=lambda *_: wrong)
        rule = speculative.Rule(gamma=3)
        return speculative.Engine(walk, FixedHead(), tokens, priors, rule).run()

    tokens, spec = jax.tree.map(np.asarray, run(np.uint32(3)))
    whitened = (tokens.reshape(batch, 10) - np.tile(target.mean, 5)) / std
    error = np.sqrt(1 / batch)
    assert np.abs(whitened.mean(axis=0)).max() < 4.5 * error
    covariance = np.cov(whitened.T) - np.eye(10)
    assert np.abs(covariance).max() < 4.5 * np.sqrt(2) * error
    radius = (whitened.reshape(-1, 2) ** 2).sum(axis=1)
    assert stats.kstest(radius, "chi2", args=(2,)).pvalue > 1e-4
    assert (spec.lengths.sum(axis=0) > 100).all()
    assert spec.backbone_calls.mean() < 4.5


def test_drafting_ends_by_the_statistics_of_training():
    """Target entropies of 0.5 pull the average, and tau_c, below the drafts' 0.45."""
    host, rule = FixedHost(3, (0.3, -0.2), 0.5, num_steps=9), speculative.Rule(2, "coupled", 99.0)
    rule = dataclasses.replace(rule, stop=early_stop.TRAINED)
    drafted = host.encoding().replace(entropy=jnp.full((3, 9), 0.45))

    @jax.jit
    def run(tracker):
        keys = randomness.image_keys(np.uint32(0), jnp.arange(3))
        given = randomness.token_keys(keys, 9), randomness.prior_keys(keys), rule, tracker
        walk = dataclasses.replace(host, draft=lambda *_: drafted)
        return speculative.Engine(walk, FixedHead(), *given).run()[1]

    # tau_g is 0.6: the average decides, 0.5 + 0.1 * 0.9^calls, and is under 0.5625 after 5 calls.
    low = run(early_stop.of_threshold(0.6).replace(ema=np.float32(0.6)))
    np.testing.assert_array_equal(low.backbone_calls, 5 + 2)
    np.testing.assert_array_equal(low.draft_calls, 4 + 2)
    # tau_g of 0.44 stops nothing, whatever the average.
    high = run(early_stop.of_threshold(0.44).replace(ema=np.float32(1.0)))
    np.testing.assert_array_equal(high.backbone_calls, 4)
    with pytest.raises(ValueError, match="^stop: got auto, allowed 0 to 1 "):
        run(None)


def test_a_group_stands_while_all_before_it_and_both_branches_do():
    """Drafts of step 2 fail in the conditional rows, of step 4 in the others; timed in pieces."""
    host = FixedHost(3, (0.3, -0.2), 0.5, num_steps=10, branches=2)
    rule = speculative.Rule(gamma=3, name="feature", delta=0.1)

    def draft(last, tokens, step):
        wrong = jnp.concatenate([step == 2, step == 4])
        encoding = host.encoding()
        return encoding.replace(z=encoding.z + wrong[:, None, None])

    def bind(seed):
        keys = randomness.image_keys(seed, jnp.arange(3))
        given = randomness.token_keys(keys, 10), randomness.prior_keys(keys), rule
        walk = dataclasses.replace(host, draft=draft)
        return speculative.Engine(walk, FixedHead(), *given)

    _, spec = jax.jit(lambda seed: bind(seed).run())(np.uint32(0))
    # Groups 0; 1, 2; 3, 4; 5 to 8; 9: the last ones of each are the target's own.
    np.testing.assert_array_equal(spec.lengths, np.tile([2, 2, 0, 1], (3, 1)))
    np.testing.assert_array_equal(spec.backbone_calls, 5)
    timed = draft_timing.measure(bind, (np.uint32(0),), repetitions=2)
    assert timed.count == 5 and timed.whole.shape == (2,) and timed.pieces.shape == (2, 3)
    assert (timed.pieces > 0).all() and "whole over sum" in timed.line()
