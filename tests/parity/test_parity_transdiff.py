"""TransDiff against recorded arrays of the official programs: 256 px, 512 px and MRAR."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import channels_first, channels_last, claims, load, uncovered

from driftar_jax.conversion import rules
from driftar_jax.conversion import transdiff as conversion
from driftar_jax.data.pixels import patchify, unpatchify
from driftar_jax.hosts import transdiff_flow

ONE_STEP = ["transdiff", "transdiff_512"]
MRAR = ["transdiff_mrar"]
every = functools.partial(pytest.mark.parametrize, "case")


@functools.cache
def converted(case: str):
    """Backbone, head and their parameters, from the recorded weights."""
    recorded = load(case)
    c = recorded.config["constructor"]
    assert c["encoder_embed_dim"] == c["decoder_embed_dim"]
    assert c["encoder_num_heads"] == c["decoder_num_heads"]
    shapes = {name: array.shape for name, array in recorded.weights.items()}
    fields = conversion.sizes(shapes, num_heads=c["encoder_num_heads"])
    made = dict(
        num_classes=c["class_num"],
        width=c["encoder_embed_dim"],
        depth=2 * c["encoder_depth"],
        head_depth=c["decoder_depth"],
        num_heads=c["encoder_num_heads"],
        buffer_size=c["buffer_size"],
        mlp_ratio=c["mlp_ratio"],
        token_dim=c["vae_embed_dim"],
        num_tokens=(c["img_size"] // 16) ** 2,
        reference_dim=c["vae_embed_dim"] * c["patch_size"] ** 2,
    )
    assert {name: fields[name] for name in made} == made
    host, net = conversion.modules(fields)
    wanted = rules.shapes_of(conversion.abstract_params(host, net))
    report = rules.plan(shapes, conversion.RULES, wanted)
    report.check()
    return host, net, rules.unflatten(rules.to_ours(recorded.weights, report, wanted))


def tokens_of(latents: np.ndarray) -> jax.Array:
    """`[B, C, h, w]` -> `[B, h w, C]`."""
    return patchify(jnp.asarray(channels_last(latents)), 1)


def latents_of(tokens: jax.Array, like: np.ndarray) -> np.ndarray:
    return channels_first(unpatchify(tokens, *like.shape[2:], 1))


def grid_of(case: str) -> tuple[int, int]:
    (first, *_) = load(case).claimed(["in.train.latents*"])
    return load(case)[first].shape[2:]


@functools.cache
def encode(case: str, **kwargs):
    host, _, params = converted(case)
    call = jax.jit(functools.partial(host.apply, **kwargs))
    return functools.partial(call, {"params": params["host"]})


def references(case: str) -> jax.Array:
    """All images but the last one, `[B, groups - 1, rows, features]`."""
    host, _, _ = converted(case)
    images = [load(case)[f"in.train.latents{g}"] for g in range(host.groups - 1)]
    grids = jnp.stack([tokens_of(image) for image in images], axis=1)
    return transdiff_flow.reference_rows(grids, grid_of(case), host.group_rows)


@every(ONE_STEP + MRAR)
def test_every_array_is_covered(case):
    assert uncovered(load(case), sys.modules[__name__]) == []


@every(ONE_STEP + MRAR)
def test_weights_come_back_bit_by_bit(case):
    _, _, params = converted(case)
    official, report = rules.to_official(rules.flatten(params), conversion.RULES)
    assert not report.unused
    assert official.keys() == load(case).weights.keys()
    for name, array in load(case).weights.items():
        np.testing.assert_array_equal(official[name], array, err_msg=name)


@every(ONE_STEP)
@claims("{case}", "in.labels", "out.encoder.*")
def test_one_step_encoder(case):
    recorded = load(case)
    label = jnp.asarray(recorded["in.labels"])
    both = jnp.append(label, -1)
    z = encode(case)(both).z
    recorded.close(z[:-1], "out.encoder.z")
    recorded.close(z[-1:], "out.encoder.z_uncond")
    bare = encode(case, method="rows")(label)[0].z
    unit = bare / jnp.linalg.norm(bare, axis=-1, keepdims=True)
    recorded.close(jnp.mean(jnp.einsum("bnd,bmd->bnm", unit, unit)), "out.encoder.diversity")


@every(MRAR)
@claims("{case}", "in.labels", "out.mask_allowed", "out.encoder.*", "out.train.tokens0")
def test_encoder_of_several_images(case):
    """The whole sequence, a prefix of it, and the same rows out of the cache."""
    recorded = load(case)
    host, _, params = converted(case)
    recorded.close(host.allowed, "out.mask_allowed")
    label, rows = jnp.asarray(recorded["in.labels"]), references(case)
    recorded.close(rows[:, 0], "out.train.tokens0")
    recorded.close(encode(case, method="rows")(label, rows)[0].z, "out.encoder.z_full")
    for name in recorded.claimed(["out.encoder.z_prefix*"]):
        images = recorded[name].shape[1] // host.group_rows - 1
        z = encode(case, method="rows")(label, rows[:, :images])[0].z
        recorded.close(z, name)

    encoding, cache = encode(case, method="begin")(label)
    z = [encoding.z]
    for g in range(host.groups - 1):
        encoding, cache = encode(case, method="extend")(rows[:, g : g + 1], cache)
        z.append(encoding.z)
    positions = params["host"]["diffusion_pos_embed"]
    recorded.close(jnp.concatenate(z, axis=1) - positions[None], "out.encoder.z_full")


@every(ONE_STEP + MRAR)
@claims("{case}", "in.net.*", "out.net.*")
def test_velocity_network(case):
    recorded = load(case)
    _, net, params = converted(case)
    x, t, c = (jnp.asarray(recorded[f"in.net.{name}"]) for name in "xtc")
    variables = {"params": params["head"]}
    recorded.close(jax.jit(net.apply)(variables, x, t, c), "out.net.v")
    rounded = net.clone(rounded_time=True)
    recorded.close(jax.jit(rounded.apply)(variables, x, t, c), "out.net.v.bf16_cast")
    time = jax.jit(functools.partial(net.apply, method="embed_time"))(variables, t)
    recorded.close(time.embedding, "out.net.temb")
    recorded.close(time.modulation.reshape(len(t), -1), "out.net.timestep_proj")


@every(ONE_STEP + MRAR)
@claims("{case}", "in.labels", "in.train.*", "out.train.*")
def test_training_loss_and_gradients(case):
    recorded = load(case)
    host, net, params = converted(case)
    images = recorded.claimed(["in.train.latents*"])
    grids = jnp.stack([tokens_of(recorded[name]) for name in images], axis=1)
    if host.groups == 1:
        recorded.close(grids[:, 0], "out.train.tokens")
    else:
        recorded.close(references(case)[:, 0], "out.train.tokens0")
    u = jnp.stack([recorded[f"in.train.u{g}"] for g in range(host.groups)])
    noise = jnp.asarray(recorded["in.train.noise"]).reshape(*u.shape, *grids.shape[2:])
    assert u.shape[1] == recorded.config["constructor"]["diffusion_batch_mul"] * len(grids)

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        label = jnp.asarray(recorded["in.labels"])
        terms, _ = transdiff_flow.flow_terms(
            host, net, params, label, grids, u, noise, shape=grid_of(case)
        )
        return jnp.mean(terms)

    value, grads = loss(params)
    recorded.close(value, "out.train.loss")
    official, _ = rules.to_official(rules.flatten(grads), conversion.RULES)
    for name in recorded.claimed(["out.train.grad.*"]):
        recorded.close(official[name.removeprefix("out.train.grad.")], name)


@every(ONE_STEP + MRAR)
@claims("{case}", "in.labels", "in.sample_*", "out.sample_*")
def test_sampling(case):
    """Complete generations with the recorded noises, every grid compared."""
    recorded = load(case)
    host, net, params = converted(case)
    for run, call in recorded.config["calls"].items():
        assert call["sampler"] == "maruyama"
        cfg = call["cfg"] if isinstance(call["cfg"], list) else [call["cfg"]] * host.groups
        start = jnp.asarray(recorded[f"in.{run}.noise_init"])
        noises = jnp.asarray(recorded[f"in.{run}.noise_steps"])
        noises = noises.reshape(host.groups, -1, *start.shape)

        @jax.jit
        def generate(params, label, start, noises, call=call, cfg=cfg):
            return transdiff_flow.generate(
                host,
                net,
                params,
                label,
                start,
                lambda g, step: noises[g, step],
                shape=grid_of(case),
                steps=[call["num_sampling_steps"]] * host.groups,
                guidance=cfg,
                scale_drift=call["scale_0"],
                scale_noise=call["scale_1"],
            )

        grids = generate(params, jnp.asarray(recorded[call["labels"]]), start, noises)
        if f"out.{run}.grids" in recorded.names:
            recorded.close(grids, f"out.{run}.grids")
        like = recorded[f"out.{run}.latents"]
        recorded.close(latents_of(grids[-1], like), f"out.{run}.latents")
