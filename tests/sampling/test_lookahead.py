"""Lookahead decoding: a plain loop makes the same tokens, rows mind their own business."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from driftar_jax.drift.grid import GridDecoder
from driftar_jax.drift.head import DriftHead
from driftar_jax.drift.networks import Prior, TokenDecoder
from driftar_jax.heads import randomness
from driftar_jax.heads.flow_token import FlowTokenHead
from driftar_jax.hosts import nextstep, nextstep_encodings, nextstep_own, nextstep_plain
from driftar_jax.hosts.nextstep_walk import NextStepWalk
from driftar_jax.hosts.transdiff import TransDiff
from driftar_jax.hosts.transdiff_walk import TransDiffWalk
from driftar_jax.sampling import lookahead, speculative
from driftar_jax.sampling.settings import BOUNDS, Settings
from driftar_jax.types import Encoding

pytestmark = pytest.mark.timeout(300)

# --- a host of few lines, beside the algorithm without cache, batch or jit ----------------------

T, K, C, SIZES = 7, 2, 3, (2, 1, 2, 2, 1, 2, 2)
N = sum(SIZES)
FIRST = np.cumsum((0, *SIZES))[:-1]
NOISE = tiny.normal(1, 4, N, C)
MIX = 0.6 * np.linalg.qr(tiny.normal(2, C, C))[0].astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Toy:
    """A `Host` of a sum: a feature is that of the tokens of the context as they were read.

    Its memory is what was read, and a call reads from the group before its first context on.
    """

    images: tuple = (0, 1, 2)
    num_steps: int = T
    group_size: int = K
    num_tokens: int = N
    token_dim: int = C
    branches: int = 1

    def group(self, step):
        step = jnp.minimum(step, T - 1)
        positions = jnp.asarray(FIRST)[step][:, None] + jnp.arange(K)[None]
        return positions, jnp.arange(K)[None] < jnp.asarray(SIZES)[step][:, None]

    def memory(self):
        return jnp.zeros((len(self.images), N, C))

    def encode(self, memory, tokens, step, contexts):
        before = lambda s: jnp.arange(N)[None] < jnp.asarray(FIRST)[jnp.clip(s, 0, T - 1)][:, None]  # noqa: E731
        memory = jnp.where(before(step - 1)[..., None], memory, tokens)

        def one(s):
            z = jnp.where(before(s)[..., None], memory, 0).sum(axis=1) @ MIX
            return Encoding(z[:, None], jnp.stack([jnp.abs(jnp.sin(z[:, 0])), s / T], axis=1))

        return jax.vmap(one)(step[None] + jnp.arange(contexts)[:, None]), memory

    def roll_back(self, memory, step):
        return memory

    def take(self, tree, step):
        return tree

    def make(self, bound):
        def make(encoding, step):
            noise = jnp.asarray(NOISE)[jnp.asarray(self.images)]
            eps = jnp.take_along_axis(noise, self.group(step)[0][..., None], axis=1)
            x = jnp.tanh(encoding.z + eps)
            return x, lookahead.weights(bound, encoding.entropy, 1 + encoding.entropy)

        return make


def _by_hand(image, window, above=2):
    """One image: tokens, guesses that stood in each round, and (entropy, near) of what was judged.

    `read` is what the backbone was last given of each token: the cache, without a cache.
    """
    places = [np.arange(FIRST[k], FIRST[k] + SIZES[k]) for k in range(T)]
    size = min(window.size, T)
    again = min(window.contexts, T) - size
    tokens, read = np.zeros((N, C)), np.zeros((N, C))
    weight, entropy = np.full(N, np.nan), np.zeros(N)
    step, base, made, stood, judged = 0, 0, 0, [], []
    while step < T:
        end = min(T, step + size)
        for k in range(max(made, step), end):
            source = min(max(k - 1 if k < above else k - above, 0), max(made - 1, 0))
            tokens[places[k]] = tokens[FIRST[source] + np.arange(SIZES[k])]
        pending = FIRST[max(base - 1, 0)]
        read[pending:] = tokens[pending:]
        before = tokens.copy()
        for k in range(step, end):
            z = read[: FIRST[k]].sum(axis=0) @ MIX.astype(float)
            e = np.array([abs(np.sin(z[0])), k / T])[: SIZES[k]]
            tokens[places[k]] = np.tanh(z + NOISE[image, places[k]])
            entropy[places[k]] = e
            weight[places[k]] = {"entropy": e, "sigma": 1 + e, "constant": 1 + 0 * e}[window.bound]
        made = max(made, end)
        seen = ~np.isnan(weight)
        spread = np.sqrt(tokens[seen].var(axis=0).mean())
        most = window.delta * spread * weight / max(weight[seen].mean(), 1e-6)
        most = np.maximum(most, lookahead.SAME * np.sqrt((tokens[seen] ** 2).mean()))
        moved = np.sqrt(((tokens - before) ** 2).mean(axis=1))
        k = step
        while k + 1 < end:
            near = moved[places[k]] <= most[places[k]]
            judged += zip(entropy[places[k]], near, strict=True)
            if not near.all():
                break
            k += 1
        stood.append(k - step)
        step, base = k + 1, max(step + 1, k + 1 - again)
    return tokens, stood, judged


def _toy(window, images=(0, 1, 2)):
    host = Toy(images)
    run = lookahead.Lookahead(host, host.make(window.bound), window, len(images), 3, 2).run
    return jax.tree.map(np.asarray, jax.jit(run)())


WINDOWS = [
    lookahead.Window(3),
    lookahead.Window(9),
    lookahead.Window(1, 0.4),
    lookahead.Window(4, 0.4),
    lookahead.Window(4, 0.5, "constant"),
    lookahead.Window(5, 0.3, "sigma"),
    lookahead.Window(T, 50.0, "constant"),
]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_a_plain_loop_makes_the_same_tokens(window):
    (tokens, found), size = _toy(window), min(window.size, T)
    for i in range(3):
        want, stood, judged = _by_hand(i, window)
        np.testing.assert_allclose(tokens[i], want, atol=3e-6)
        assert found.backbone_calls[i] == len(stood)
        assert found.head_evaluations[i] == 3 * size * len(stood)
        lengths = np.bincount(stood, minlength=size)
        np.testing.assert_array_equal(found.lengths[i], lengths)
        bins = np.array([int(e * speculative.BINS) for e, _ in judged], int)
        near = np.array([n for _, n in judged], bool)
        count = functools.partial(np.bincount, minlength=speculative.BINS)
        np.testing.assert_array_equal(found.judged[i], count(bins))
        np.testing.assert_array_equal(found.accepted[i], count(bins[near]))
    assert found.batch_calls == found.backbone_calls.max()
    assert found.batch_rows == min(window.contexts, T) * found.batch_calls
    assert not found.draft_calls.any()


def test_the_windows_of_the_test_do_different_things():
    calls = [_toy(window)[1].backbone_calls.sum() for window in WINDOWS]
    assert calls[2] == 3 * T and calls[-1] == 3 and 3 < calls[3] < calls[0] <= 3 * T


@pytest.mark.parametrize("window", WINDOWS[3:5], ids=str)
def test_an_image_is_the_same_in_any_batch(window):
    tokens, found = _toy(window)
    results = []
    for images in ((2,), (3, 2, 0), (1, 2, 3)):
        again, others = _toy(window, images)
        results.append(again[images.index(2)])
        # A batch of one is a product of other shapes, which some processors round otherwise.
        np.testing.assert_allclose(results[-1], tokens[2], rtol=0, atol=1e-6)
        assert others.backbone_calls[images.index(2)] == found.backbone_calls[2]
    np.testing.assert_array_equal(results[1], results[2])


# --- the hosts: delta = 0 is plain decoding, token for token ------------------------------------

B, TOKENS, CHANNELS, WIDTH, HOLD = 3, 6, 4, 8, 9
HOST = nextstep.NextStep(
    vocab_size=11,
    placeholder=HOLD,
    token_dim=CHANNELS,
    width=WIDTH,
    depth=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=2,
    mlp_width=10,
    norm_eps=1e-5,
    rope_theta=50.0,
)
SOURCE = 2  # tokens of a source image in each prompt
IDS = np.array([[1, 2, HOLD, HOLD, 3, 7], [10, 4, HOLD, HOLD, 5, 7], [10, 10, HOLD, HOLD, 6, 7]])
PADDING = np.array([0, 1, 2])


@functools.cache
def _nextstep():
    """Parameters of the backbone, flow head, prior and decoder."""
    ids = np.concatenate([IDS, np.full((B, TOKENS), HOLD)], axis=1)
    tokens = jnp.zeros((B, SOURCE + TOKENS, CHANNELS))
    init = functools.partial(HOST.init, method="everything")
    x, e, z = jnp.zeros((1, 1, CHANNELS)), jnp.zeros((1, 1)), jnp.zeros((1, 1, WIDTH))
    return {
        "host": tiny.params(init, jnp.asarray(ids), tokens, scale=0.4)["params"],
        "head": tiny.params(FLOW.init, x, e, z, seed=1)["params"],
        "prior": tiny.params(PRIOR.init, z, e, seed=2)["params"],
        "decoder": tiny.params(DECODER.init, x[:, :, None], x, e, z, e, seed=3)["params"],
    }


FLOW = FlowTokenHead(CHANNELS, 8, 1)
PRIOR = Prior(token_dim=CHANNELS, sigma_max=0.5, tau=2.0)
DECODER = TokenDecoder(token_dim=CHANNELS, width=8, depth=1)


@dataclasses.dataclass(frozen=True)
class Case:
    """NextStep-1 with `branches` rows per image, its own head or the one-step one."""

    own: bool
    branches: int = 1

    @property
    def host(self):
        """The own head of a released model may be told the number of the token."""
        return HOST.clone(positions=self.own)

    @property
    def settings(self):
        scale = 1.0 if self.branches == 1 else 2.0
        image = 1.5 if self.branches == 3 else 1.0
        return Settings(
            "own", TOKENS, nfe=3, guidance=scale, guidance_image=image, guidance_schedule="linear"
        )

    def rows(self, images):
        """Prompts, padding and source images: of the branches one after another."""
        ids, padding = IDS[images], PADDING[images]
        sources = tiny.normal(5, B, SOURCE, CHANNELS)[images]
        bare = np.where((ids == HOLD) | (ids == 7), ids, 10)
        parts = [ids, bare, np.where(ids == HOLD, 10, bare)][: self.branches]
        tile = lambda a: jnp.asarray(np.concatenate([a] * self.branches))  # noqa: E731
        return jnp.asarray(np.concatenate(parts)), tile(padding), tile(sources)

    def run(self, window, images=(0, 1, 2)):
        return jax.tree.map(np.asarray, jax.jit(self.ahead(window, images).run)())

    def ahead(self, window, images=(0, 1, 2)):
        """What decodes these images."""
        images = list(images)
        ids, padding, sources = self.rows(images)
        keys = randomness.image_keys(np.uint32(4), jnp.asarray(images))
        token_keys = randomness.token_keys(keys, TOKENS)
        rest = dict(
            sources=sources,
            branches=self.branches,
            guidance=nextstep.guidance_at(self.settings.guidance, TOKENS, "linear"),
            make=nextstep_own.sampler(self.host, FLOW, self.settings, TOKENS, _nextstep()),
        )
        params = _nextstep()["host"]
        host = NextStepWalk.of(self.host, params, ids, padding, TOKENS, window.contexts, **rest)
        if self.own:
            make = lookahead.own(host, token_keys, window.bound)
        else:
            prior_keys = randomness.prior_keys(keys)
            make = lookahead.one_step(host, self.head(), token_keys, prior_keys, window.bound)
        return lookahead.Lookahead(host, make, window, len(images), 3 if self.own else 1)

    def head(self):
        return DriftHead(PRIOR, DECODER, _nextstep(), self.branches == 2, 1.0)

    def plain(self):
        """The tokens of the lock-step road, which knows of no window."""
        images = [0, 1, 2]
        ids, padding, sources = self.rows(images)
        keys = randomness.image_keys(np.uint32(4), jnp.asarray(images))
        if self.own:
            own_keys = randomness.token_keys(keys, TOKENS)
            one = nextstep_own.sampler(self.host, FLOW, self.settings, TOKENS, _nextstep())

            def own(encoding, k):
                noise = lambda draw: randomness.normal(own_keys[:, k], draw, CHANNELS)  # noqa: E731
                return one(encoding.z[:, -1], k, noise)

            return self.decoded(own, ids, padding, sources)
        head, token_keys = self.head(), randomness.token_keys(keys, TOKENS)
        scales = jnp.asarray(nextstep.guidance_at(self.settings.guidance, TOKENS, "linear"))

        def make(encoding, k):
            encoding = nextstep_encodings.projected(self.host, _nextstep()["host"], encoding)
            mu, std = head.starts(encoding, randomness.prior_keys(keys))
            eps = randomness.normal(token_keys[:, k], 0, CHANNELS)
            return head.tokens(encoding, mu, std, eps[:, None], scales[k])[:, 0]

        return self.decoded(make, ids, padding, sources)

    def decoded(self, make, *prompt):
        given = self.host, _nextstep()["host"], *prompt, TOKENS, self.branches, make
        return np.asarray(jax.jit(lambda: nextstep_plain.decode(*given)[0])())


CASES = [Case(True, 1), Case(True, 2), Case(True, 3), Case(False, 1), Case(False, 2)]


# The one-step head with the most branches holds what the others do.
@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=() if c is CASES[-1] else pytest.mark.slow, id=str(c)) for c in CASES],
)
def test_nextstep_without_a_bound_is_plain_decoding(case):
    """Guidance branches, prompts of several lengths and source images included."""
    want = case.plain()
    for size in (1, 4, TOKENS + 2) if case.branches == 3 else (4,):
        window = lookahead.Window(size)
        tokens, found = case.run(window)
        np.testing.assert_allclose(tokens, want, atol=2e-5)
        assert (found.backbone_calls <= TOKENS).all()
        settled = (found.lengths * (1 + np.arange(found.lengths.shape[1]))).sum(axis=1)
        np.testing.assert_array_equal(settled, TOKENS)
        assert found.batch_rows == min(window.contexts, TOKENS) * case.branches * found.batch_calls
        assert size > 1 or (found.backbone_calls == TOKENS).all()


@pytest.mark.parametrize("own", [pytest.param(True, marks=pytest.mark.slow), False])
def test_nextstep_with_a_bound_saves_calls_in_any_batch(own):
    """The caches of all layers are rolled back row by row: an image knows nothing of the others."""
    window = lookahead.Window(3, 0.05)
    case = Case(own, 2)
    tokens, found = case.run(window)
    assert found.backbone_calls.min() < TOKENS
    assert own or len(set(found.backbone_calls.tolist())) > 1
    for image in range(B):
        alone, one = case.run(window, [image])
        np.testing.assert_allclose(alone[0], tokens[image], atol=2e-5)
        assert one.backbone_calls[0] == found.backbone_calls[image]


def test_after_every_round_the_cache_is_that_of_the_settled_tokens():
    """Guesses that fell leave nothing that a later call would see; an image goes back by itself.

    One image is given its tokens as guesses, so that it runs ahead of the others.
    """
    case, fast = Case(False, 2), 1
    ahead, want = case.ahead(lookahead.Window(4)), case.plain()
    state, again = ahead.start(), jax.jit(ahead.round)
    state = state.replace(
        tokens=state.tokens.at[fast].set(want[fast]), frontier=state.frontier.at[fast].set(TOKENS)
    )

    @jax.jit
    def at_once(tokens):
        return ahead.walk.encode(ahead.walk.memory(), tokens, jnp.zeros(B, jnp.int32), TOKENS)[1]

    while ahead.goes_on(state):
        state = again(state)
        cache, whole = state.memory, at_once(state.tokens)
        held = ahead.walk.prefix - 1 + np.clip(state.base, 0, TOKENS - 1)
        np.testing.assert_array_equal(cache.length, np.tile(held, 2))
        assert (state.base <= state.step).all()
        for row, length in enumerate(np.asarray(cache.length)):
            for name in ("keys", "values"):
                found, read = (getattr(c, name)[:, row, :length] for c in (cache, whole))
                np.testing.assert_allclose(found, read, atol=2e-5)
    np.testing.assert_allclose(state.tokens, want, atol=2e-5)
    calls = state.speculation.backbone_calls
    assert calls[fast] == 2 and min(calls[0], calls[2]) > 2


def test_the_bound_of_sigma_reads_the_prior():
    case, window = Case(False), lookahead.Window(4, 0.05)
    calls = [
        case.run(dataclasses.replace(window, bound=bound))[1].backbone_calls.tolist()
        for bound in BOUNDS
    ]
    assert len(set(map(tuple, calls))) > 1


# --- images in a row ----------------------------------------------------------------------------

ROW_T, ROW_N, ROW_C = 4, 6, 5
ROW = TransDiff(
    num_rows=ROW_T * ROW_N,
    groups=ROW_T,
    reference_dim=ROW_C,
    num_classes=3,
    width=8,
    depth=3,
    num_heads=2,
    buffer_size=2,
)


@functools.cache
def _row_params():
    label, x = jnp.zeros(B, int), jnp.zeros((1, ROW_N, ROW_C))
    z, e = jnp.zeros((1, ROW_N, 8)), jnp.zeros((1, ROW_N))
    return {
        "host": tiny.params(ROW.init, label, jnp.zeros((B, ROW_T - 1, ROW_N, ROW_C)))["params"],
        "prior": tiny.params(ROW_PRIOR.init, z, e, seed=1)["params"],
        "decoder": tiny.params(GRID.init, x[:, :, None], x, e, z, e, seed=2)["params"],
    }


ROW_PRIOR = Prior(token_dim=ROW_C, sigma_max=0.5, tau=2.0)
GRID = GridDecoder(
    token_dim=ROW_C, width=8, depth=1, num_heads=2, standardised=True, guidance=False
)


class Row(TransDiffWalk):
    """With a scale for each image in a row."""

    def scales(self):
        return np.linspace(1.0, 1.5, ROW_T)


@pytest.mark.slow  # NextStep-1 is in the fast ones; no command asks for images in a row
@pytest.mark.parametrize("branches", [1, 2])
def test_images_in_a_row_without_a_bound_are_plain_decoding(branches):
    params, label = _row_params(), jnp.array([1, -1, 2])
    host = Row(ROW, params["host"], label, (2, 3), branches)
    head = DriftHead(ROW_PRIOR, GRID, params, branches == 2, 0.9)
    keys = randomness.image_keys(np.uint32(4), jnp.arange(B))
    token_keys, prior_keys = randomness.token_keys(keys, ROW_T * ROW_N), randomness.prior_keys(keys)
    given = token_keys, prior_keys
    plain = speculative.Engine(host, head, *given, speculative.Rule(0))
    want = np.asarray(jax.jit(lambda: plain.run()[0])())
    calls = []
    for window in (lookahead.Window(1), lookahead.Window(3), lookahead.Window(5, 1.0)):
        make = lookahead.one_step(host, head, *given, window.bound)
        run = lookahead.Lookahead(host, make, window, B).run
        tokens, found = jax.tree.map(np.asarray, jax.jit(run)())
        if not window.delta:
            np.testing.assert_allclose(tokens, want, atol=2e-5)
        calls.append(found.backbone_calls.sum())
    assert calls[0] == B * ROW_T and calls[2] < calls[1] <= calls[0]


def test_fewer_calls_with_larger_bounds():
    calls = [_toy(lookahead.Window(4, delta))[1].backbone_calls.sum() for delta in (0, 0.2, 0.6, 5)]
    assert all(a >= b for a, b in itertools.pairwise(calls)) and calls[0] > calls[-1]
