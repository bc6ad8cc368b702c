"""NextStep-1 against recorded arrays of the official program: every array of case `nextstep`."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import channels_first, channels_last, claims, load, uncovered

from driftar_jax.conversion import nextstep as conversion
from driftar_jax.conversion import rules
from driftar_jax.data.pixels import patchify, unpatchify
from driftar_jax.heads import flow_token
from driftar_jax.hosts import nextstep, nextstep_own, nextstep_plain
from driftar_jax.hosts.nextstep_stored import abstract_params, modules, stacked, unstacked
from driftar_jax.layers import causal
from driftar_jax.sampling.settings import Settings

CASE = load("nextstep")
MADE_WITH = CASE.config["constructor"]["config"]
CALLS = CASE.config["calls"]
PATCH = MADE_WITH["latent_patch_size"]


def each(name: str, values: list[str]):
    """Parametrises over recordings; the case's name stands in the test id."""
    return pytest.mark.parametrize(name, values, ids=[f"nextstep-{v}" for v in values])


named = pytest.mark.parametrize("case", ["nextstep"])


@functools.cache
def converted():
    """Fields, and parameters with stacked layers, from the recorded weights."""
    weights = {n: a for n, a in CASE.weights.items() if n != conversion.BUFFER}
    shapes = {name: array.shape for name, array in weights.items()}
    c = MADE_WITH
    fields = conversion.sizes(shapes, c)
    assert fields == dict(
        vocab_size=c["vocab_size"],
        placeholder=c["image_placeholder_id"],
        token_dim=c["latent_channels"] * PATCH**2,
        width=c["hidden_size"],
        depth=c["num_hidden_layers"],
        num_heads=c["num_attention_heads"],
        num_kv_heads=c["num_key_value_heads"],
        head_dim=c["head_dim"],
        mlp_width=c["intermediate_size"],
        norm_eps=c["rms_norm_eps"],
        rope_theta=c["rope_theta"],
        attention_bias=c["attention_bias"],
        head_width=c["fm_head_dim"],
        head_depth=c["fm_head_layers"],
    )
    # Fixed in our modules; another recording must agree.
    assert not (c["mlp_bias"] or c["o_attention_bias"] or c["tie_word_embeddings"])
    assert c["hidden_act"] == "silu"
    wanted = rules.shapes_of(unstacked(abstract(fields)))
    report = rules.plan(shapes, conversion.RULES, wanted)
    report.check()
    return fields, stacked(rules.unflatten(rules.to_ours(weights, report, wanted)))


def abstract(fields):
    return abstract_params(*modules(fields))


@functools.cache
def parts(positions: bool = MADE_WITH["use_gen_pos_embed"]):
    """Backbone, head and parameters."""
    fields, params = converted()
    return *modules(fields, positions=positions), params


@functools.cache
def compiled(method: str, positions: bool):
    host = parts(positions)[0]
    return jax.jit(lambda p, a, k: host.apply({"params": p}, *a, method=method, **k))


def ask(method, *args, positions=MADE_WITH["use_gen_pos_embed"], **kwargs):
    """A method of the backbone, jitted once per shape."""
    return compiled(method, positions)(parts()[2]["host"], args, kwargs)


def patches(latents):
    return patchify(jnp.asarray(channels_last(latents)), PATCH)


@functools.cache
def sequence():
    """Encoding and the states between the layers of the recorded sequence, uncached."""
    host, _, params = parts()

    @jax.jit
    def run(params, ids, tokens):
        return host.apply(
            {"params": params}, ids, tokens, mutable=["intermediates"], capture_intermediates=False
        )

    tokens = patches(CASE["in.seq.latents"])
    encoding, states = run(params["host"], CASE["in.seq.input_ids"], tokens)
    return encoding, jax.tree.map(np.asarray, states["intermediates"]["stack"]["layers"])


@named
def test_every_array_is_covered(case):
    assert uncovered(load(case), sys.modules[__name__]) == []


@named
def test_weights_come_back_bit_by_bit(case):
    fields, params = converted()
    flat = rules.flatten(unstacked(params))
    official, report = rules.to_official(flat, conversion.RULES)
    assert not report.unused
    official[conversion.BUFFER] = conversion.buffer(fields["width"])
    assert official.keys() == load(case).weights.keys()
    for name, array in load(case).weights.items():
        np.testing.assert_array_equal(official[name], array, err_msg=name)


@named
@claims("nextstep", "in.seq.*", "out.seq.patches", "out.seq.inputs_embeds", "out.seq.hidden0")
def test_inputs(case):
    tokens = patches(CASE["in.seq.latents"])
    CASE.close(tokens, "out.seq.patches")
    x = ask("embed", CASE["in.seq.input_ids"], tokens)
    CASE.close(x, "out.seq.inputs_embeds")
    CASE.close(x, "out.seq.hidden0")


@named
@claims("nextstep", "in.seq.*", "out.seq.hidden[1-9]*", "out.seq.logits")
def test_hidden_states_and_logits(case):
    encoding, states = sequence()
    depth = MADE_WITH["num_hidden_layers"]
    for i in range(1, depth):
        CASE.close(states["out"][0][i - 1], f"out.seq.hidden{i}")
    CASE.close(encoding.z, f"out.seq.hidden{depth}")
    rows = len(CASE["out.seq.logits"])
    CASE.close(ask("logits", encoding.z[:rows]), "out.seq.logits")


@named
@claims("nextstep", "out.seq.attn*", "out.rope.inv_freq")
def test_attention_and_its_entropy(case):
    """The entropy is that of the recorded attention of the layer before the last."""
    encoding, states = sequence()
    repeat = MADE_WITH["num_attention_heads"] // MADE_WITH["num_key_value_heads"]
    for i in range(MADE_WITH["num_hidden_layers"]):
        rows = len(CASE[f"out.seq.attn{i}"])
        q, k = (states[name][0][i][:rows] for name in "qk")
        logits = np.einsum("bqhk,bnhk->bhqn", q, np.repeat(k, repeat, axis=2))
        seen = np.tril(np.ones(logits.shape[-2:], bool))
        logits = np.where(seen, logits / np.sqrt(q.shape[-1]), -np.inf)
        CASE.close(jax.nn.softmax(logits, axis=-1), f"out.seq.attn{i}")
    layer = MADE_WITH["num_hidden_layers"] - 2
    attention = CASE[f"out.seq.attn{layer}"].astype(np.float64)
    content = CASE["in.seq.input_ids"][: len(attention)] == MADE_WITH["image_placeholder_id"]
    visible = np.cumsum(content, axis=-1)
    share = attention * content[:, None, None]
    share = (share / np.maximum(share.sum(-1, keepdims=True), 1e-30)).mean(1)
    nats = -(share * np.log(np.where(share > 0, share, 1))).sum(-1)
    want = np.where(visible > 1, nats / np.log(np.maximum(visible, 2)), 0)
    np.testing.assert_allclose(encoding.entropy[: len(want)], want, atol=1e-5)
    theta = MADE_WITH["rope_theta"]
    CASE.close(causal.inverse_frequencies(MADE_WITH["head_dim"], theta), "out.rope.inv_freq")


@named
@claims("nextstep", "in.pad.attention_mask", "out.pad.hidden_row1_valid")
def test_left_padding(case):
    mask = CASE["in.pad.attention_mask"]
    padding = (mask == 0).sum(axis=1)
    np.testing.assert_array_equal(mask == 0, np.arange(mask.shape[1]) < padding[:, None])
    encoding = ask(
        "__call__",
        CASE["in.seq.input_ids"],
        patches(CASE["in.seq.latents"]),
        padding=padding,
    )
    assert np.isfinite(encoding.z).all()
    CASE.close(encoding.z[1:2, padding[1] :], "out.pad.hidden_row1_valid")


@named
@claims("nextstep", "out.cache.*")
def test_cache(case):
    """Prefill of some positions and then one at a time, and all of them in one call."""
    host, _, params = parts()
    ids, tokens = CASE["in.seq.input_ids"], patches(CASE["in.seq.latents"])
    batch, length = ids.shape
    x = ask("embed", ids, tokens)
    none = jnp.zeros(batch, jnp.int32)

    @jax.jit
    def advance(params, x, cache):
        run = lambda module, x, cache: module.stack.advance(x, cache)  # noqa: E731
        return host.apply({"params": params}, x, cache, method=run)

    def roads(prefill):
        cache, hidden = host.empty_cache(length + 2, none, 0), []
        bounds = [0, prefill, *range(prefill + 1, length + 1)]
        for start, end in zip(bounds, bounds[1:], strict=False):
            h, _, cache = advance(params["host"], x[:, start:end], cache)
            hidden.append(h)
        return jnp.concatenate(hidden, axis=1), cache

    for hidden, cache in (roads(length // 2), roads(length)):
        CASE.close(hidden, "out.cache.stepwise_hidden")
        for got, name in ((cache.keys, "out.cache.key0"), (cache.values, "out.cache.value0")):
            first = np.moveaxis(np.asarray(got[0, :, :length]), 1, 2)
            want = CASE[name]
            # Keys and values have no entry in float32_rounding, and some are nearly zero.
            np.testing.assert_allclose(first, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
    whole = CASE[f"out.seq.hidden{MADE_WITH['num_hidden_layers']}"]
    recorded = np.abs(CASE["out.cache.stepwise_hidden"] - whole).max()
    np.testing.assert_allclose(recorded, CASE["out.cache.max_difference"], rtol=1e-5)


def velocity(x, t, c):
    _, head, params = parts()
    return head.apply({"params": params["head"]}, jnp.asarray(x), jnp.asarray(t), jnp.asarray(c))


@named
@claims("nextstep", "in.head.*", "out.head.*")
def test_head_and_its_loss(case):
    x, t, c = (CASE[f"in.head.{name}"] for name in "xtc")
    CASE.close(velocity(x, t, c), "out.head.velocity")
    target, noise, u, mask = (
        jnp.asarray(CASE[f"in.head.{n}"]) for n in ("target", "loss_noise", "loss_u", "mask")
    )
    rows = flow_token.flow_loss(functools.partial(velocity, c=c), target, noise, u)
    got = flow_token.masked_mean(rows, mask, flow_token.MASK_FLOOR)
    CASE.close(got, "out.head.loss")
    # The released training code has no floor: the same but for rounding.
    CASE.close(flow_token.masked_mean(rows, mask), "out.head.loss")


@functools.cache
def sampler(steps, shift, last, branches):
    """`(params, conditions, noises [S, n, C], scales [2]) -> tokens`, jitted once per kind."""
    assert last == flow_token.LAST_STEP
    _, head, _ = parts()

    @jax.jit
    def run(params, c, noises, scales):
        return flow_token.flow_sample(
            head,
            params,
            c,
            lambda draw: noises[draw],
            steps=steps,
            shift=shift,
            guidance=scales[0] if branches > 1 else None,
            guidance_image=scales[1] if branches > 2 else None,
        )

    return run


def sample(c, noise, scales, call):
    """Tokens `[n, C]` from conditions of all branches and recorded draws `[S, r, C]`."""
    branches = 1 + (scales[0] > 1) + (scales[1] > 1)
    run = sampler(
        call["num_sampling_steps"],
        call["timesteps_shift"],
        call.get("last_step_size", flow_token.LAST_STEP),
        branches,
    )
    noises = flow_token.shared_noise(jnp.asarray(noise), len(c) // branches)
    return run(parts()[2]["head"], jnp.asarray(c), noises, jnp.asarray(scales, jnp.float32))


TOKENS = CASE.parts("out.", ".token")


@each("call", TOKENS)
@claims("nextstep", "in.{call}.*", "out.{call}.token")
def test_one_token(call):
    made = CALLS[call]
    noise = CASE[f"in.{call}.noise"]
    assert noise.shape[:2] == (made["num_sampling_steps"], made["noise_repeat"])
    got = sample(CASE[f"in.{call}.c"], noise, (made["cfg"], made["cfg2"]), made)
    CASE.close(got, f"out.{call}.token")


RUNS = CASE.parts("out.", ".tokens")


def scales_of(run):
    made = CALLS[run]
    num_tokens, schedule = made["max_new_len"], made["cfg_schedule"]
    both = [nextstep.guidance_at(made[n], num_tokens, schedule) for n in ("cfg", "cfg_img")]
    return np.stack(both, axis=-1)


def prompt_of(run):
    mask = CASE[f"in.{run}.attention_mask"]
    return CASE[f"in.{run}.input_ids"], jnp.asarray((mask == 0).sum(axis=1))


@each("run", RUNS)
@claims(
    "nextstep",
    "in.{run}.*",
    "out.{run}.c0",
    "out.{run}.cfg_per_token",
    "out.{run}.head_conditions",
    "out.{run}.tokens",
)
def test_decoding_step_by_step(run):
    """A complete loop with the recorded noises; what every token is told is compared."""
    made = CALLS[run]
    positions = made["use_gen_pos_embed"]
    host, _, params = parts(positions)
    ids, padding = prompt_of(run)
    noise, scales = CASE[f"in.{run}.noise"], scales_of(run)
    num_tokens = made["max_new_len"]
    assert noise.shape[:3] == (
        num_tokens,
        made["num_sampling_steps"],
        made["num_images_per_caption"],
    )
    CASE.close(scales, f"out.{run}.cfg_per_token")
    branches = 1 + (made["cfg"] > 1) + (made["cfg_img"] > 1)
    method = functools.partial(ask, positions=positions)
    cache = host.empty_cache(ids.shape[1] + num_tokens, padding, ids.shape[1])
    encoding, cache = method("prefill", ids, cache)
    before = jnp.asarray(nextstep.generation_positions(host.width))[None, :1] if positions else 0
    CASE.close(encoding.z + before, f"out.{run}.c0")

    conditions, tokens = [], []
    for k in range(num_tokens):
        c = method("condition", encoding.z[:, -1], jnp.int32(k))
        x = sample(c, noise[k], scales[k], made)
        x = nextstep.normalise(x) if made["use_norm"] else x
        conditions.append(c)
        tokens.append(x)
        encoding, cache = method("advance", jnp.tile(x, (branches, 1))[:, None], cache)
    CASE.close(np.stack(conditions), f"out.{run}.head_conditions")
    CASE.close(np.stack(tokens, axis=1), f"out.{run}.tokens")


@each("run", RUNS)
@claims("nextstep", "in.{run}.*", "out.{run}.tokens")
def test_decoding_in_one_program(run):
    """The jitted sampler, on the same noises."""
    made = CALLS[run]
    host, head, params = parts(made["use_gen_pos_embed"])
    ids, padding = prompt_of(run)
    count = made["max_new_len"]
    settings = Settings(
        "own",
        count,
        nfe=made["num_sampling_steps"],
        shift=made["timesteps_shift"],
        guidance=made["cfg"],
        guidance_image=made["cfg_img"],
        guidance_schedule=made["cfg_schedule"],
        normalise=made["use_norm"],
    )
    noises = jnp.asarray(CASE[f"in.{run}.noise"])
    noises = flow_token.shared_noise(noises, len(ids) // settings.branches)

    @jax.jit
    def run_all(params, ids, padding, noises):
        one = nextstep_own.sampler(host, head, settings, count, params)
        make = lambda e, k: one(e.z[:, -1], k, lambda draw: noises[k, draw])  # noqa: E731
        prompt = ids, padding, None
        return nextstep_plain.decode(host, params["host"], *prompt, count, settings.branches, make)

    tokens, entropy = run_all(params, ids, padding, noises)
    CASE.close(tokens, f"out.{run}.tokens")
    assert (entropy[:, :2] == 0).all() and (entropy[:, 2:] > 0).all()


GRIDS = CASE.parts("out.", ".unpatchified")


@each("run", GRIDS)
@claims("nextstep", "out.{run}.tokens", "out.{run}.unpatchified")
def test_unpatchify(run):
    want = CASE[f"out.{run}.unpatchified"]
    got = unpatchify(jnp.asarray(CASE[f"out.{run}.tokens"]), *want.shape[2:], PATCH)
    CASE.close(channels_first(got), f"out.{run}.unpatchified")


@functools.cache
def losses(project: bool):
    """The whole training loss and its gradients under official names."""
    host, head, params = parts()

    def total(params):
        found = nextstep_own.training_losses(
            host,
            head,
            params,
            jnp.asarray(CASE["in.seq.input_ids"]),
            patches(CASE["in.seq.latents"]),
            jnp.asarray(CASE["in.loss.noise"]),
            jnp.asarray(CASE["in.loss.u"]),
            image_weight=jnp.asarray(CASE["in.loss.latents_mask"]),
            project=project,
            floor=flow_token.MASK_FLOOR if not project else 0.0,
            weights=(MADE_WITH["lm_loss_weight"], MADE_WITH["im_loss_weight"]),
        )
        return found.total, found

    grads, found = jax.jit(jax.grad(total, has_aux=True))(params)
    flat = rules.flatten(unstacked(jax.tree.map(np.asarray, grads)))
    return found, rules.to_official(flat, conversion.RULES)[0]


@named
@claims("nextstep", "in.seq.*", "in.loss.*", "out.loss.*")
def test_training_loss_and_gradients(case):
    """The Aug 2025 loss, which leaves `image_out_projector` out."""
    copies = MADE_WITH["fm_head_batch_mul"]
    assert len(CASE["in.loss.u"]) == copies * CASE["out.seq.patches"][..., 0].size
    losses.cache_clear()
    found, grads = losses(project=False)
    for got, name in ((found.text, "lm"), (found.image, "im"), (found.total, "total")):
        CASE.close(got, f"out.loss.{name}")
    for name in CASE.claimed(["out.loss.grad.*"]):
        CASE.close(grads[name.removeprefix("out.loss.grad.")], name)
    moved = any(np.any(grads[f"image_out_projector.{part}"]) for part in ("weight", "bias"))
    CASE.close(np.int64(moved), "out.loss.image_out_projector_has_gradient")


@named
def test_the_other_published_loss_trains_the_projector(case):
    """The released training code: another loss on the same draws, and the projector learns."""
    found, grads = losses(project=True)
    recorded = float(load(case)["out.loss.im"])
    assert abs(float(found.image) - recorded) > 1e-3
    assert np.any(grads["image_out_projector.weight"])
