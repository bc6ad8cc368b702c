"""MAR against recorded arrays of the official program: every array of the case `mar`."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import channels_first, channels_last, claims, load, uncovered

from driftar_jax.conversion import mar as conversion
from driftar_jax.conversion import rules
from driftar_jax.data.pixels import patchify, unpatchify
from driftar_jax.heads import diffusion
from driftar_jax.hosts import schedules

CASE = load("mar")
MADE_WITH = CASE.config["constructor"]
CALLS = CASE.config["calls"]


def each(name: str, values: list[str]):
    """Parametrises over recordings; the case's name stands in the test id."""
    return pytest.mark.parametrize(name, values, ids=[f"mar-{v}" for v in values])


def named(case: str):
    """Puts the case's name into the id of a test without parameters."""
    return pytest.mark.parametrize("case", [case])


@functools.cache
def converted():
    """Backbone, head and their parameters, from the recorded weights."""
    c = MADE_WITH
    assert c["encoder_embed_dim"] == c["decoder_embed_dim"]
    assert c["encoder_num_heads"] == c["decoder_num_heads"]
    shapes = {name: array.shape for name, array in CASE.weights.items()}
    fields = conversion.sizes(shapes, num_heads=c["encoder_num_heads"])
    grid = c["img_size"] // c["vae_stride"] // c["patch_size"]
    made = dict(
        num_tokens=grid**2,
        token_dim=c["vae_embed_dim"] * c["patch_size"] ** 2,
        num_classes=c["class_num"],
        width=c["encoder_embed_dim"],
        encoder_depth=c["encoder_depth"],
        decoder_depth=c["decoder_depth"],
        num_heads=c["encoder_num_heads"],
        buffer_size=c["buffer_size"],
        mlp_ratio=c["mlp_ratio"],
        head_depth=c["diffloss_d"],
        head_width=c["diffloss_w"],
    )
    assert fields == made
    host, head = conversion.modules(fields)
    wanted = rules.shapes_of(conversion.abstract_params(host, head))
    report = rules.plan(shapes, conversion.RULES, wanted)
    report.check()
    return host, head, rules.unflatten(rules.to_ours(CASE.weights, report, wanted))


@functools.cache
def backbone(keep=None):
    """`(params, tokens, known, label) -> encoder rows, encoding`, jitted once per batch size."""
    host, _, _ = converted()

    @jax.jit
    def run(params, tokens, known, label):
        variables = {"params": params}
        rows = host.apply(variables, tokens, known, label, keep=keep, method="encode_known")
        return rows, host.apply(variables, rows, known, keep=keep, method="decode")

    return run


def schedule_of(process: str) -> diffusion.Schedule:
    """`sec` is the constructor's process; others are evenly spaced, as many steps as recorded."""
    name = process.removeprefix("sched.")
    if name == "sec":
        return diffusion.respaced_schedule(MADE_WITH["num_sampling_steps"])
    return diffusion.respaced_schedule(len(CASE[f"out.sched.{name}.timestep_map"]))


def known_of(mask: np.ndarray) -> np.ndarray:
    return mask == 0


def grid_of(latents: np.ndarray) -> tuple[int, int, int]:
    return latents.shape[2], latents.shape[3], MADE_WITH["patch_size"]


@named("mar")
def test_every_array_is_covered(case):
    assert uncovered(load(case), sys.modules[__name__]) == []


@named("mar")
def test_weights_come_back_bit_by_bit(case):
    _, _, params = converted()
    official, report = rules.to_official(rules.flatten(params), conversion.RULES)
    assert not report.unused
    assert official.keys() == load(case).weights.keys()
    for name, array in load(case).weights.items():
        np.testing.assert_array_equal(official[name], array, err_msg=name)


@named("mar")
@claims("mar", "in.patchify.*", "out.patchify.*", "out.unpatchify.*")
def test_patchify(case):
    latents = CASE["in.patchify.latents"]
    tokens = patchify(jnp.asarray(channels_last(latents)), MADE_WITH["patch_size"])
    CASE.close(tokens, "out.patchify.tokens")
    back = unpatchify(jnp.asarray(CASE["out.patchify.tokens"]), *grid_of(latents))
    CASE.close(channels_first(back), "out.unpatchify.latents")


@named("mar")
@claims("mar", "in.labels", "out.class_embedding")
def test_class_embedding(case):
    _, _, params = converted()
    CASE.close(params["host"]["class_emb"][CASE["in.labels"]], "out.class_embedding")


MASKS = CASE.parts("in.encdec.", ".mask")


@named("mar")
@claims("mar", "in.encdec.orders")
def test_masks_are_prefixes_of_the_orders(case):
    orders = CASE["in.encdec.orders"]
    rank = np.argsort(orders, axis=1)
    for name in MASKS:
        mask = CASE[f"in.encdec.{name}.mask"]
        np.testing.assert_array_equal(mask, rank < mask.sum(axis=1, keepdims=True))


@each("k", MASKS)
@claims("mar", "in.encdec.{k}.mask", "out.encdec.{k}.encoder", "out.encdec.{k}.decoder")
def test_encoder_and_decoder(k):
    """Over all rows with unknown keys masked, and over the known rows alone."""
    host, _, params = converted()
    tokens, label = CASE["out.patchify.tokens"], CASE["in.labels"]
    known = known_of(CASE[f"in.encdec.{k}.mask"])
    rows, encoding = backbone()(params["host"], tokens, known, label)
    always = np.ones((len(label), host.buffer_size), bool)
    seen = np.concatenate([always, known], axis=1)
    kept = np.stack([row[see] for row, see in zip(np.asarray(rows), seen, strict=True)])
    CASE.close(kept, f"out.encdec.{k}.encoder")
    CASE.close(encoding.z, f"out.encdec.{k}.decoder")

    keep = int(known[0].sum())
    rows, dropped = backbone(keep=keep)(params["host"], tokens, known, label)
    CASE.close(rows, f"out.encdec.{k}.encoder")
    CASE.close(dropped.z, f"out.encdec.{k}.decoder")
    np.testing.assert_allclose(dropped.entropy, encoding.entropy, atol=2e-6)


@named("mar")
@claims("mar", "in.uncond.mask", "out.uncond.decoder")
def test_unconditional_branch(case):
    _, _, params = converted()
    known = known_of(CASE["in.uncond.mask"])
    label = np.full(len(known), -1)
    _, encoding = backbone()(params["host"], CASE["out.patchify.tokens"], known, label)
    CASE.close(encoding.z, "out.uncond.decoder")


def denoise(x, t, c):
    _, head, params = converted()
    return head.apply({"params": params["head"]}, jnp.asarray(x), jnp.asarray(t), jnp.asarray(c))


def denoise_guided(x, t, c, scale):
    """Both guidance halves: the first half of `x` for both, noise guided, `v` of each half."""
    half = len(x) // 2
    eps, v = denoise(jnp.concatenate([x[:half], x[:half]]), t, c)
    guided = eps[half:] + scale * (eps[:half] - eps[half:])
    return jnp.concatenate([guided, guided]), v


@named("mar")
@claims("mar", "in.net.*", "out.net.*")
def test_head_network(case):
    x, t, c = (CASE[f"in.net.{name}"] for name in "xtc")
    CASE.close(jnp.concatenate(denoise(x, t, c), axis=-1), "out.net.out")
    guided = denoise_guided(x, t, c, CALLS["net.out_cfg"]["cfg_scale"])
    CASE.close(jnp.concatenate(guided, axis=-1), "out.net.out_cfg")


@named("mar")
@claims("mar", "out.sched.train_alphas_cumprod")
def test_training_schedule(case):
    CASE.close(diffusion.training_schedule().alphas_cumprod, "out.sched.train_alphas_cumprod")


PROCESSES = CASE.parts("out.sched.", ".timestep_map")


@each("process", PROCESSES)
@claims("mar", "out.sched.{process}.*")
def test_respaced_schedule(process):
    schedule = schedule_of(process)
    for name in CASE.claimed([f"out.sched.{process}.*"]):
        CASE.close(getattr(schedule, name.rsplit(".", 1)[1]), name)


@named("mar")
@claims("mar", "in.loss.*", "out.loss.*")
def test_loss_terms(case):
    x0, noise, t = (jnp.asarray(CASE[n]) for n in ("in.loss.x0", "in.loss.noise", "in.net.t"))
    training = diffusion.training_schedule()
    CASE.close(diffusion.add_noise(training, x0, t, noise), "out.loss.x_t")
    look = functools.partial(denoise, c=CASE["in.net.c"])
    terms = diffusion.head_loss_terms(look, training, x0, t, noise)
    CASE.close(terms.mse, "out.loss.mse")
    CASE.close(terms.vb, "out.loss.vb")
    CASE.close(diffusion.head_loss(look, training, x0, t, noise), "out.loss.total")


@named("mar")
@claims("mar", "in.floss.*", "out.floss.*")
def test_whole_loss_and_gradients(case):
    host, head, params = converted()
    tokens, mask = jnp.asarray(CASE["out.patchify.tokens"]), jnp.asarray(CASE["in.floss.mask"])
    t, noise = jnp.asarray(CASE["in.floss.t"]), jnp.asarray(CASE["in.floss.noise"])
    copies = MADE_WITH["diffusion_batch_mul"]

    def loss(params):
        z = host.apply({"params": params["host"]}, tokens, mask == 0, CASE["in.labels"]).z
        z = jnp.tile(z.reshape(-1, host.width), (copies, 1))
        x0 = jnp.tile(tokens.reshape(-1, host.token_dim), (copies, 1))
        weight = jnp.tile(mask.reshape(-1), copies)
        look = lambda x, t: head.apply({"params": params["head"]}, x, t, z)  # noqa: E731
        rows = diffusion.head_loss(look, diffusion.training_schedule(), x0, t, noise)
        return jnp.sum(rows * weight) / jnp.sum(weight)

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    CASE.close(value, "out.floss.loss")
    official, _ = rules.to_official(rules.flatten(grads), conversion.RULES)
    for name in CASE.claimed(["out.floss.grad.*"]):
        CASE.close(official[name.removeprefix("out.floss.grad.")], name)


@each("process", CASE.parts("in.step.", ".x"))
@claims("mar", "in.step.{process}.*", "out.step.{process}.*")
def test_single_reverse_steps(process):
    call = CALLS[f"step.{process}"]
    assert call["clip_denoised"] is False
    schedule = schedule_of(call["process"])
    x, noise = (jnp.asarray(CASE[f"in.step.{process}.{n}"]) for n in ("x", "noise"))
    c = jnp.asarray(CASE[call["c"]])

    @jax.jit
    def step(index, x, noise):
        t = jnp.asarray(schedule.timestep_map)[index]
        eps, v = denoise_guided(x, t, c, call["cfg_scale"])
        predicted = diffusion.predict(schedule, index, x, eps, v)
        sample = diffusion.reverse_step(schedule, index, x, eps, v, noise, call["temperature"])
        return sample, predicted

    steps = [step(jnp.int32(i), x[i], noise[i]) for i in range(schedule.num_steps)]
    out = f"out.step.{process}"
    CASE.close(np.stack([s for s, _ in steps]), f"{out}.sample")
    CASE.close(np.stack([p.clean for _, p in steps]), f"{out}.pred_xstart")
    CASE.close(np.stack([p.mean for _, p in steps]), f"{out}.mean")
    CASE.close(np.stack([p.log_variance for _, p in steps]), f"{out}.log_variance")


def sample_with(z, prefix, call, scale):
    """`head_sample` with the recorded noises; conditional rows first when guided."""
    _, head, params = converted()
    schedule = schedule_of(call["process"])
    init = jnp.asarray(CASE[f"{prefix}.noise_init"])
    steps = jnp.asarray(CASE[f"{prefix}.noise_steps"])[::-1, : len(init)]
    noises = jnp.concatenate([steps, init[None]])
    guided = call["cfg"] != 1.0
    return diffusion.head_sample(
        head,
        params["head"],
        jnp.asarray(z[: len(init)]),
        lambda step: noises[step],
        schedule=schedule,
        guidance=scale if guided else None,
        z_uncond=jnp.asarray(z[len(init) :]) if guided else None,
        temperature=call["temperature"],
    )


LOOPS = CASE.parts("in.", ".noise_init")


@each("loop", LOOPS)
@claims("mar", "in.{loop}.noise_init", "in.{loop}.noise_steps", "out.{loop}.sample")
def test_head_sample(loop):
    """The rows that are kept; the unconditional half is followed in the next test."""
    kept = len(CASE[f"in.{loop}.noise_init"])
    got = sample_with(CASE["in.net.c"], f"in.{loop}", CALLS[loop], CALLS[loop]["cfg"])
    CASE.close(got, f"out.{loop}.sample", rows=slice(kept))


@each("loop", LOOPS)
@claims("mar", "out.{loop}.trajectory", "out.{loop}.sample")
def test_trajectory_of_both_halves(loop):
    call = CALLS[loop]
    schedule = schedule_of(call["process"])
    c, guided = jnp.asarray(CASE["in.net.c"]), call["cfg"] != 1.0
    noise = jnp.asarray(CASE[f"in.{loop}.noise_steps"])

    @jax.jit
    def step(index, x, noise):
        t = jnp.asarray(schedule.timestep_map)[index]
        look = functools.partial(denoise_guided, scale=call["cfg"]) if guided else denoise
        eps, v = look(x, jnp.broadcast_to(t, len(x)), c)
        return diffusion.reverse_step(schedule, index, x, eps, v, noise, call["temperature"])

    init = jnp.asarray(CASE[f"in.{loop}.noise_init"])
    x = jnp.concatenate([init, init]) if guided else init
    trajectory = []
    for k in range(schedule.num_steps):
        x = step(jnp.int32(schedule.num_steps - 1 - k), x, noise[k])
        trajectory.append(np.asarray(x))
    CASE.close(np.stack(trajectory), f"out.{loop}.trajectory")
    CASE.close(trajectory[-1], f"out.{loop}.sample")


RUNS = CASE.parts("in.", ".orders")
RUNS = [name for name in RUNS if f"out.{name}.grids" in CASE.names]


@each("run", RUNS)
@claims("mar", "in.{run}.*", "out.{run}.*")
def test_masked_generation(run):
    """A complete generation with the recorded orders and noises, every grid compared."""
    host, _, params = converted()
    call = CALLS[run]
    orders, num_tokens, ar_steps = CASE[f"in.{run}.orders"], host.num_tokens, call["num_iter"]
    batch, guided = call["bsz"], call["cfg"] != 1.0
    label = np.full(batch, -1) if call["labels"] is None else CASE[call["labels"]]
    counts = schedules.cosine_counts(num_tokens, ar_steps)
    scales = schedules.guidance_at(call["cfg"], num_tokens, ar_steps, call["cfg_schedule"])
    CASE.close(scales, f"out.{run}.cfg_per_iter")
    rank = np.argsort(orders, axis=1)

    tokens = np.zeros((batch, num_tokens, host.token_dim), np.float32)
    unknown, masks, grids = num_tokens, [], []
    for k, count in enumerate(counts):
        known = rank >= unknown
        masks.append(~known)
        unknown -= count
        predict = (rank >= unknown) & ~known
        twice = 2 if guided else 1
        labels = np.concatenate([label, np.full(batch, -1)]) if guided else label
        _, encoding = backbone()(
            params["host"], np.tile(tokens, (twice, 1, 1)), np.tile(known, (twice, 1)), labels
        )
        z = np.asarray(encoding.z)[np.tile(predict, (twice, 1))]
        CASE.close(z, f"out.{run}.it{k:02d}.z")
        sampled = sample_with(z, f"in.{run}.it{k:02d}", call, float(scales[k]))
        CASE.close(sampled, f"out.{run}.it{k:02d}.sampled")
        tokens[predict] = sampled
        grids.append(tokens.copy())
    CASE.close(np.stack(masks), f"out.{run}.masks")
    CASE.close(np.stack(grids), f"out.{run}.grids")
    latents = unpatchify(jnp.asarray(tokens), *grid_of(CASE[f"out.{run}.latents"]))
    CASE.close(channels_first(latents), f"out.{run}.latents")
