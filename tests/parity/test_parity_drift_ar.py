"""Published Drift-AR against recorded arrays of the official program: the case `drift_ar`."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import channels_first, channels_last, claims, load, uncovered
from flax import linen as nn

from driftar_jax import entropy
from driftar_jax.conversion import drift_ar as conversion
from driftar_jax.conversion import rules
from driftar_jax.data.pixels import patchify, unpatchify
from driftar_jax.heads import early_stop
from driftar_jax.layers.attention import attention_with_entropy
from driftar_jax.layers.blocks import TransformerBlock
from driftar_jax.published import losses, model, sampling, stored
from driftar_jax.published.merge import start, update

CASE = load("drift_ar")
MADE_WITH = CASE.config["constructor"]
CALLS = CASE.config["calls"]
SIDE = MADE_WITH["img_size"] // 16
WIDTHS = tuple(MADE_WITH["R_list"])


def each(name: str, values: list[str]):
    """Parametrises over recordings; the case's name stands in the test id."""
    return pytest.mark.parametrize(name, values, ids=[f"drift_ar-{v}" for v in values])


def named(case: str):
    """Puts the case's name into the id of a test without parameters."""
    return pytest.mark.parametrize("case", [case])


@functools.cache
def converted():
    """The model, and its parameters from the recorded weights (there is no phi among them)."""
    c = MADE_WITH
    assert c["encoder_embed_dim"] == c["decoder_embed_dim"]
    assert c["encoder_num_heads"] == c["decoder_num_heads"]
    shapes = {name: array.shape for name, array in CASE.weights.items()}
    fields = conversion.sizes(shapes, num_heads=c["encoder_num_heads"])
    assert fields == dict(
        num_tokens=(SIDE // c["patch_size"]) ** 2,
        token_dim=c["vae_embed_dim"] * c["patch_size"] ** 2,
        num_classes=c["class_num"],
        width=c["encoder_embed_dim"],
        depth=2 * c["encoder_depth"],
        num_heads=c["encoder_num_heads"],
        buffer_size=c["buffer_size"],
        decoder_depth=c["decoder_depth"],
        draft_depth=c["draft_depth"],
        mlp_ratio=c["mlp_ratio"],
        phi=False,
    )
    made = conversion.module(fields, sigma_max=c["sigma_max"], tau=c["tau_sigma"])
    wanted = rules.shapes_of(stored.abstract(made, fields["phi"]))
    report = rules.plan(shapes, conversion.RULES, wanted)
    report.check()
    return made, rules.unflatten(rules.to_ours(CASE.weights, report, wanted))


@functools.cache
def apply(method):
    """`(params, *arguments)` of a method of the model, or of a function of it, jitted."""
    made, _ = converted()
    return jax.jit(lambda params, *args: made.apply({"params": params}, *args, method=method))


@functools.cache
def encoded():
    _, params = converted()
    return apply("encode")(params, CASE["in.labels"])


def latents(tokens) -> np.ndarray:
    """Tokens as the official program returns them, `[B, C, h, w]`."""
    images = unpatchify(jnp.asarray(tokens), SIDE, SIDE, MADE_WITH["patch_size"])
    return channels_first(images)


@named("drift_ar")
def test_every_array_is_covered(case):
    assert uncovered(load(case), sys.modules[__name__]) == []


@named("drift_ar")
def test_weights_come_back_bit_by_bit(case):
    _, params = converted()
    official, report = rules.to_official(rules.flatten(params), conversion.RULES)
    assert not report.unused
    assert official.keys() == load(case).weights.keys()
    for name, array in load(case).weights.items():
        np.testing.assert_array_equal(official[name], array, err_msg=name)


def units(batch: int, rows: int, heads: int):
    """Values `[B, N, H, N]` that make an attention layer return its own weights."""
    return jnp.broadcast_to(jnp.eye(rows)[None, :, None], (batch, rows, heads, rows))


@named("drift_ar")
@claims("drift_ar", "in.entropy.*", "out.entropy.*")
def test_entropy_of_given_logits(case):
    """Attention by the layer itself: queries are the logits, keys and values unit vectors."""
    logits = jnp.asarray(CASE["in.entropy.logits"])
    batch, heads, rows, _ = logits.shape
    q, unit = rows**0.5 * jnp.moveaxis(logits, 1, 2), units(batch, rows, heads)
    mask = jnp.tril(jnp.ones((rows, rows), bool))[None]
    floor = model.ENTROPY_FLOOR
    attention, found = attention_with_entropy(q, unit, unit, mask, floor=floor)
    CASE.close(jnp.moveaxis(attention, 2, 1), "out.entropy.attn")
    CASE.close(found, "out.entropy.E")
    averaged = jnp.asarray(CASE["out.entropy.attn"]).mean(axis=1)
    alone = entropy.row_entropy(averaged, 1 + jnp.arange(rows), floor=floor)
    CASE.close(alone, "out.entropy.E")
    CASE.close(losses.entropy_loss(jnp.asarray(CASE["out.entropy.E"])), "out.entropy.loss")


CURVES = [n.removeprefix("out.sigma.") for n in CASE.names if n.startswith("out.sigma.")]


@each("curve", CURVES)
@claims("drift_ar", "in.sigma.E", "out.sigma.{curve}")
def test_sigma(curve):
    sigma_max, tau = (float(part.strip("maxtu")) for part in curve.split("_"))
    found = entropy.sigma(jnp.asarray(CASE["in.sigma.E"]), sigma_max=sigma_max, tau=tau)
    CASE.close(found, f"out.sigma.{curve}")


@named("drift_ar")
@claims("drift_ar", "out.block_mask_allowed")
def test_block_mask(case):
    allowed = CASE["out.block_mask_allowed"]
    buffer_size = int(allowed[0].sum())  # its rows see each other and nothing else
    mask = model.block_mask(buffer_size, len(allowed) - buffer_size)
    CASE.close(mask, "out.block_mask_allowed")


@named("drift_ar")
@claims("drift_ar", "in.labels", "out.encoder.z", "out.encoder.entropy*")
def test_encoder(case):
    CASE.close(encoded().z, "out.encoder.z")
    CASE.close(encoded().entropy, "out.encoder.entropy")
    CASE.close(losses.entropy_loss(encoded().entropy), "out.encoder.entropy_loss")


def entering(params, label):
    """The hidden state in front of the encoder's last block but one."""
    made, _ = converted()
    seen = []

    def watch(call, args, kwargs, context):
        if context.method_name == "with_entropy":
            seen.append(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        made.apply({"params": params}, label, method="encode")
    return seen[0]


@named("drift_ar")
@claims("drift_ar", "out.encoder.penultimate_*")
def test_penultimate_block(case):
    """Its attention is read from the layer itself, through unit vectors as values."""
    made, params = converted()
    rows = jax.jit(entering)(params, CASE["in.labels"])
    CASE.close(rows, "out.encoder.penultimate_input")
    block = TransformerBlock(made.width, made.num_heads, made.mlp_ratio)
    variables = {"params": params["host"][f"encoder_blocks_{made.depth - 2}"]}
    images = len(CASE["out.encoder.penultimate_attn"])
    q, k, _ = block.apply(variables, rows[:images], method="heads")
    mask = model.block_mask(made.buffer_size, made.num_tokens)[None]
    attention, _ = attention_with_entropy(q, k, units(*q.shape[:3]), mask)
    CASE.close(jnp.moveaxis(attention, 2, 1), "out.encoder.penultimate_attn")


@named("drift_ar")
@claims("drift_ar", "in.generate.*", "out.generate.*")
def test_one_step_generation(case):
    _, params = converted()
    prior = apply(lambda made, z, entropy: made.prior(z, entropy))
    mu, std = prior(params, encoded().z, encoded().entropy)
    CASE.close(mu, "out.generate.mu")
    CASE.close(std, "out.generate.sigma")
    found = apply("generate")(params, encoded(), CASE["in.generate.noise"])
    CASE.close(found, "out.generate.x")


@each("variant", CASE.parts("out.decoder."))
@claims("drift_ar", "in.decoder.*", "out.decoder.{variant}")
def test_decoder(variant):
    _, params = converted()
    x0, z, given = (jnp.asarray(CASE[f"in.decoder.{n}"]) for n in ("x0", "z", "entropy"))
    given = given if variant == "with_entropy" else None
    mu, std = jnp.full_like(x0, jnp.nan), jnp.full_like(x0[..., 0], jnp.nan)  # not read
    decode = apply(lambda made, x0, *others: made.decoder(x0[:, :, None], *others)[:, :, 0])
    CASE.close(decode(params, x0, mu, std, z, given), f"out.decoder.{variant}")


@named("drift_ar")
@claims("drift_ar", "out.draft.*")
def test_draft_model(case):
    _, params = converted()
    z = jnp.asarray(CASE["out.encoder.z"])
    found = apply("propose")(params, z)
    CASE.close(found.z, "out.draft.pred")
    CASE.close(found.entropy, "out.draft.entropy")
    CASE.close(losses.regression_loss(found.z, z), "out.draft.reg_loss")


@named("drift_ar")
@claims("drift_ar", "in.phi.*", "out.phi.*")
def test_features(case):
    _, params = converted()
    images = jnp.asarray(channels_last(CASE["in.phi.latents"]))
    tokens = patchify(images, MADE_WITH["patch_size"])
    CASE.close(tokens, "out.phi.tokens")
    np.testing.assert_array_equal(latents(tokens), CASE["in.phi.latents"])
    found = apply("features")(model.with_features(params), tokens)
    CASE.close(found, "out.phi.features")


SAMPLED = [name for name in CASE.parts("out.") if name.startswith("samples_")]


@each("run", SAMPLED)
@claims("drift_ar", "in.{run}.*", "out.{run}.*")
def test_samples(run):
    made, params = converted()
    call, noise = CALLS[run], jnp.asarray(CASE[f"in.{run}.noise"])
    sample = jax.jit(functools.partial(sampling.samples, made, guidance=call["cfg"]))
    found = sample(params, CASE[call["labels"]], noise)
    CASE.close(latents(found), f"out.{run}.latents")


SPECULATED = [name for name in CASE.parts("out.") if name.startswith("spec_")]


@each("run", SPECULATED)
@claims("drift_ar", "in.{run}.*", "out.{run}.*", "in.spec.threshold", "out.spec.*")
def test_speculative_merge(run):
    made, params = converted()
    call, noise = CALLS[run], jnp.asarray(CASE[f"in.{run}.noise"])
    settings = dict(
        guidance=call["cfg"],
        threshold=float(CASE[call["acceptance_threshold"]][0]),
        gamma=call["gamma"],
    )
    speculate = jax.jit(functools.partial(sampling.speculate, made, **settings))
    found = speculate(params, CASE[call["labels"]], noise, start())
    CASE.close(found.merged.distance, "out.spec.distance")
    CASE.close(found.merged.accepted, "out.spec.accepted_mask")
    CASE.close(found.merged.prefix, f"out.{run}.accepted_lengths")
    CASE.close(latents(found.tokens), f"out.{run}.latents")
    local = early_stop.context_threshold(found.tracker, gamma=call["gamma"])
    stats = (found.draft_entropy, local, early_stop.global_threshold(found.tracker), found.stopped)
    CASE.close(np.float32(stats), f"out.{run}.stats")


@named("drift_ar")
@claims("drift_ar", "in.tracker.values", "out.tracker.state")
def test_entropy_tracker(case):
    tracker, states = start(), []
    for values in CASE["in.tracker.values"]:
        tracker = update(tracker, jnp.asarray(values))
        thresholds = early_stop.global_threshold(tracker), early_stop.context_threshold(tracker)
        states.append(np.float32([tracker.mean, tracker.variance, tracker.ema, *thresholds]))
    CASE.close(np.stack(states), "out.tracker.state")


@named("drift_ar")
@claims("drift_ar", "out.alpha.*")
def test_phases(case):
    call = CALLS["alpha"]
    epochs, freeze_at = call["total_epochs"], call["T_freeze_frac"]
    epoch = np.arange(epochs + 1)
    weight = losses.alpha(epoch, epochs, start=call["alpha_0"], freeze_at=freeze_at)
    CASE.close(weight, "out.alpha.value")
    CASE.close(losses.in_phase_two(epoch, epochs, freeze_at=freeze_at), "out.alpha.phase_two")


PHASES = CASE.parts("in.train_", ".noise")


@each("phase", PHASES)
@claims("drift_ar", "in.train.*", "in.train_{phase}.*", "out.train_{phase}.*")
def test_training_step(phase):
    """Losses, outputs and gradients of the sum of the three losses."""
    made, params = converted()
    label, eps = CASE["in.labels"], jnp.asarray(CASE[f"in.train_{phase}.noise"])
    real, generated = (jnp.asarray(CASE[f"in.train.{n}_features"]) for n in ("pos", "neg"))
    params = model.with_features(params)

    @jax.jit
    def run(params):
        def loss(params):
            parts = losses.terms(
                made,
                params,
                label,
                eps,
                real,
                generated,
                phase_two=phase == "phase2",
                widths=WIDTHS,
            )
            return parts.drift + parts.regression + parts.entropy, parts

        return jax.grad(loss, has_aux=True)(params)

    grads, parts = run(params)
    out = f"out.train_{phase}"
    CASE.close(parts.drift, f"{out}.loss_drift")
    CASE.close(parts.regression, f"{out}.loss_reg")
    CASE.close(parts.entropy, f"{out}.loss_entropy")
    CASE.close(latents(parts.tokens), f"{out}.gen_latents")
    official, _ = rules.to_official(rules.flatten(grads), conversion.RULES)
    for name in CASE.claimed([f"{out}.grad.*"]):
        CASE.close(official[name.removeprefix(f"{out}.grad.")], name)
    for name, value in official.items():
        if name.startswith(("feature_encoder.", "z_proj.")):
            assert not value.any(), name
