"""TransDiff's images in a row behind the protocol of speculative decoding, against whole calls."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from driftar_jax.drift.grid import GridDecoder
from driftar_jax.drift.head import DriftHead
from driftar_jax.drift.networks import Prior
from driftar_jax.heads import randomness
from driftar_jax.hosts.transdiff import TransDiff
from driftar_jax.hosts.transdiff_walk import TransDiffWalk
from driftar_jax.sampling import speculative, verify

# Images of 2x3 tokens, four in a row, and two branches.
B, T, N, C, S, GUIDANCE = 3, 4, 6, 5, 3, 1.5
LABEL = np.array([1, -1, 2], np.int32)
HOST = TransDiff(
    num_rows=T * N,
    groups=T,
    reference_dim=C,
    num_classes=3,
    width=8,
    depth=3,
    num_heads=2,
    buffer_size=2,
)


@pytest.fixture(scope="module")
def groups():
    params = tiny.params(HOST.init, jnp.asarray(LABEL), jnp.zeros((B, T - 1, N, C)))["params"]
    return TransDiffWalk(HOST, params, jnp.asarray(LABEL), (2, 3), branches=2)


@pytest.fixture(scope="module")
def whole(groups):
    """Encodings `[T, 2B, N, ...]` of all contexts of tokens `[B, T N, C]`, from one plain call."""
    labels = np.concatenate([LABEL, np.full(B, -1, np.int32)])

    @jax.jit
    def encode(tokens):
        images = jnp.concatenate([tokens.reshape(B, T, N, C)[:, :-1]] * 2)
        made = HOST.apply({"params": groups.params}, labels, images)
        return jax.tree.map(
            lambda a: jnp.moveaxis(a.reshape(2 * B, T, N, *a.shape[2:]), 1, 0), made
        )

    return encode


def _agree(encoding, want, steps, contexts=S):
    for row in range(2 * B):
        for s in range(contexts):
            if (k := int(steps[row % B]) + s) < T:
                for got, whole in zip(
                    jax.tree.leaves(encoding), jax.tree.leaves(want), strict=True
                ):
                    np.testing.assert_allclose(got[s, row], whole[k, row], atol=4e-6)


def test_groups_are_images_in_a_row(groups):
    step = jnp.array([2, 9, 0])
    positions, real = groups.group(step)
    np.testing.assert_array_equal(positions[:, 0], [2 * N, 3 * N, 0])
    assert real.all() and groups.group_size == N and groups.num_steps == T
    np.testing.assert_array_equal(groups.known(step).sum(axis=1), [2 * N, 3 * N, 0])


def test_one_call_encodes_several_images(groups, whole):
    """As one plain call does, from the first group on, after drafts that were wrong, at the end."""
    tokens = tiny.normal(0, B, T * N, C)
    want = whole(tokens)
    run = jax.jit(lambda memory, tokens, step: groups.encode(memory, tokens, step, S))
    step = jnp.zeros(B, jnp.int32)
    # The first image is wrong in row 0, the second one in row 1.
    wrong = tiny.changed(tiny.changed(tokens, np.s_[0, :N], by=1.0), np.s_[1, N : 2 * N], by=-1.0)
    encoding, memory = run(jax.jit(groups.memory)(), wrong, step)
    _agree(encoding, want, step, contexts=1)
    assert np.abs(encoding.z[1, 0] - want.z[1, 0]).max() > 1e-3
    # Steps differ between images from here on.
    for step in (jnp.array([1, 2, 1]), jnp.array([2, 3, 1]), jnp.array([4, 3, 2])):
        memory = jax.jit(groups.roll_back)(memory, step)
        encoding, memory = run(memory, tokens, step)
        _agree(encoding, want, step)


def _head(parts):
    prior = Prior(token_dim=C, sigma_max=0.5, tau=2.0, scale="entropy", constant=0.25)
    decoder = GridDecoder(
        token_dim=C, width=8, depth=1, num_heads=2, standardised=True, guidance=False
    )
    z, x, e = jnp.zeros((1, N, 8)), jnp.zeros((1, N, C)), jnp.zeros((1, N))
    params = {
        "prior": tiny.params(prior.init, z, e, seed=1)["params"],
        "decoder": tiny.params(decoder.init, x[:, :, None], x, e, z, e, seed=2)["params"],
    }
    return DriftHead(prior, decoder, params, guided=parts.branches == 2, temperature=0.9)


@pytest.fixture(scope="module")
def made(groups):
    """Draft head, decoding, and the engine as `rule -> tokens, found`."""
    head, keys = _head(groups), randomness.image_keys(np.uint32(4), jnp.arange(B))
    token_keys, scales = randomness.token_keys(keys, T * N), np.linspace(1.0, GUIDANCE, T)

    def draft(last, tokens, step):
        """Nearly the last image's encoding: right for some images and wrong for others."""
        seen = jnp.concatenate([tokens.reshape(B, T, N, C)[:, 0, :, :1]] * 2)
        return last.replace(z=last.z + 0.05 * seen)

    class Drafting(type(groups)):
        """The walk with a draft and scales, which no family of this host gives it."""

        def draft(self, last, tokens, step):
            return draft(last, tokens, step)

        def scales(self):
            return scales

    def run(rule):
        walk = Drafting(**{f.name: getattr(groups, f.name) for f in dataclasses.fields(groups)})
        given = walk, head, token_keys, randomness.prior_keys(keys), rule
        return jax.tree.map(np.asarray, jax.jit(lambda: speculative.Engine(*given).run())())

    @functools.partial(jax.jit, static_argnums=1)
    def decode(encoding, step):
        """Tokens and standard deviations of one step of all images, of encodings `[2B, N, ...]`."""
        eps = randomness.normal(token_keys.reshape(B, T, N)[:, step], 0, C)
        mu, std = head.starts(encoding, randomness.prior_keys(keys))
        return head.tokens(encoding, mu, std, eps, jnp.float32(scales[step])), 0.9 * std[:B]

    return jax.jit(draft), decode, run


@pytest.mark.slow  # no program drafts this host
def test_plain_decoding_is_one_whole_call_after_another(made, whole):
    _, decode, run = made
    found, spec = run(speculative.Rule(gamma=0))
    tokens = jnp.zeros((B, T * N, C))
    for step in range(T):
        encoding = jax.tree.map(lambda a, s=step: a[s], whole(tokens))
        image, _ = decode(encoding, step)
        tokens = tiny.changed(tokens, np.s_[:, step * N : (step + 1) * N], to=image)
    np.testing.assert_allclose(found, tokens, atol=2e-5)
    np.testing.assert_array_equal(spec.backbone_calls, T)


@pytest.mark.slow  # no program drafts this host
def test_a_plain_loop_drafts_the_same_images(made, whole):
    """Image by image in Python, with plain calls over everything in place of the cache."""
    rule = speculative.Rule(gamma=2, name="coupled", delta=2.5)
    draft, decode, run = made
    found, spec = run(rule)
    kinds = set()
    for i in range(B):
        tokens, step, last, lengths = jnp.zeros((B, T * N, C)), 0, None, []
        while step < T:
            drafted, now, encoding = [], tokens, last
            for k in range(step, min(step + rule.gamma, T - 1) if last is not None else step):
                encoding = draft(encoding, now, jnp.full(B, k))
                image, _ = decode(encoding, k)
                now = tiny.changed(now, np.s_[i, k * N : (k + 1) * N], to=image[i])
                drafted.append(image[i])
            targets, accepted = whole(now), 0
            for x in drafted:
                target = jax.tree.map(lambda a, k=step + accepted: a[k], targets)
                again, std = decode(target, step + accepted)
                if not verify.coupled(x, again[i], std[i], rule.delta).all():
                    break
                accepted += 1
            last = jax.tree.map(lambda a, k=step + accepted: a[k], targets)
            own, _ = decode(last, step + accepted)
            end = step + accepted
            tokens = tiny.changed(now, np.s_[i, end * N : (end + 1) * N], to=own[i])
            lengths.append(accepted)
            step = end + 1
        np.testing.assert_allclose(found[i], tokens[i], atol=3e-5)
        np.testing.assert_array_equal(spec.lengths[i], np.bincount(lengths, minlength=3))
        kinds.update(lengths[1:])
    assert len(kinds) > 1, "every round ended alike: a wrong engine could pass"


def test_hosts_that_cannot_be_drafted_are_named(groups):
    one = TransDiff(**{f: getattr(HOST, f) for f in ("width", "depth", "num_heads", "num_classes")},
                    num_rows=N, groups=1, reference_dim=C, buffer_size=2)  # fmt: skip
    with pytest.raises(ValueError, match="^groups: got 1, allowed at least 2 "):
        TransDiffWalk(one, groups.params, groups.label, (2, 3))
    with pytest.raises(ValueError, match="^num_rows: got 6 for an image, allowed 24 "):
        TransDiffWalk(HOST, groups.params, groups.label, (4, 6))
