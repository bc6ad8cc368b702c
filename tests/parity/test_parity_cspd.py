"""CSpD against recorded arrays of the official program: every array of the case `cspd`."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import channels_first, claims, load, uncovered

from driftar_jax.conversion import mar as conversion
from driftar_jax.conversion import rules
from driftar_jax.data.pixels import unpatchify
from driftar_jax.heads import diffusion
from driftar_jax.hosts import schedules
from driftar_jax.published import cspd

CASE = load("cspd")
MADE_WITH = CASE.config["constructor"]
CALLS = CASE.config["calls"]
MODELS = ("target", "draft")


def each(name: str, values: list[str]):
    """Parametrises over recordings; the case's name stands in the test id."""
    return pytest.mark.parametrize(name, values, ids=[f"cspd-{v}" for v in values])


def close_probability(got, name: str) -> None:
    """Probabilities are exponentials of large numbers: 1e-2 of the largest, as the record says."""
    want = CASE[name]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-2 * np.abs(want).max(), err_msg=name)


def last_step(rule: str, model: str) -> cspd.LastStep:
    """The recorded statistics `q` (draft) or `p` (target)."""
    return cspd.LastStep(
        *(jnp.asarray(CASE[f"in.{rule}.{model}_{name}"]) for name in ("mean", "std", "logvar"))
    )


@pytest.mark.parametrize("case", ["cspd"])
def test_every_array_is_covered(case):
    assert uncovered(load(case), sys.modules[__name__]) == []


@each("rule", CASE.parts("in.", ".q_mean"))
@claims("cspd", "in.{rule}.*", "out.{rule}.*")
def test_rule(rule):
    call = CALLS[rule]
    draft, target = last_step(rule, "q"), last_step(rule, "p")
    x = jnp.asarray(CASE[f"in.{rule}.x"])
    assert x.shape[1] == call["dim"]
    u, noise, noise_u = (
        jnp.asarray(CASE[f"in.{rule}.{name}"]) for name in ("u", "proposal_noise", "proposal_u")
    )
    CASE.close(cspd.factor(draft, target), f"out.{rule}.fixed_term")
    found = cspd.probability(x, draft, target, call["inner_temperature"])
    close_probability(found, f"out.{rule}.accept_probability")
    CASE.close(cspd.density(x, draft.mean, draft.std), f"out.{rule}.q_pdf")
    CASE.close(cspd.density(x, target.mean, target.std), f"out.{rule}.p_pdf")
    CASE.close(cspd.residual_ratio(x, draft, target), f"out.{rule}.residual_ratio")
    accepted, result = cspd.correct(x, draft, target, u, noise, noise_u, call["inner_temperature"])
    CASE.close(accepted, f"out.{rule}.accepted")
    CASE.close(result, f"out.{rule}.result")


@functools.cache
def converted(model: str):
    """Backbone, head and parameters of one of the two models."""
    c, prefix = MADE_WITH, f"{model}."
    weights = {n.removeprefix(prefix): a for n, a in CASE.weights.items() if n.startswith(prefix)}
    shapes = {name: array.shape for name, array in weights.items()}
    fields = conversion.sizes(shapes, num_heads=c["encoder_num_heads"])
    assert fields["decoder_depth"] == c["decoder_depth"]
    host, head = conversion.modules(fields)
    wanted = rules.shapes_of(conversion.abstract_params(host, head))
    report = rules.plan(shapes, conversion.RULES, wanted)
    report.check()
    return host, head, rules.unflatten(rules.to_ours(weights, report, wanted))


@functools.cache
def programs():
    """`encode(params, tokens, known, label)` and `reverse(params, z, noise, steps, scale)`.

    Both models have one shape, so that one compiled program serves both.
    """
    host, head, _ = converted("target")
    schedule = diffusion.respaced_schedule(MADE_WITH["num_sampling_steps"])

    @jax.jit
    def encode(params, tokens, known, label):
        return host.apply({"params": params["host"]}, tokens, known, label).z

    @jax.jit
    def reverse(params, z, noise, step_noise, scale, temperature):
        """The reverse process with what CSpD keeps of it; `z [2, M, D]`, or `[1, M, D]`."""
        x, half = noise, jnp.zeros_like(noise)
        for index in reversed(range(schedule.num_steps)):
            t = jnp.full(z.shape[:2], schedule.timestep_map[index])
            both = jnp.broadcast_to(x[None], (*z.shape[:1], *x.shape))
            eps, v = head.apply({"params": params["head"]}, both, t, z)
            eps = eps[-1] + scale * (eps[0] - eps[-1])
            step = diffusion.predict(schedule, jnp.int32(index), x, eps, v[0])
            if index:
                half += 0.5 * step.log_variance
                x = step.mean + jnp.exp(0.5 * step.log_variance) * temperature * step_noise[index]
        std = jnp.exp(0.5 * step.log_variance) * temperature
        return cspd.LastStep(step.mean, std, half)

    return encode, reverse


class Replay:
    """One complete run of the released program, with its recorded random numbers."""

    def __init__(self, run: str):
        self.call = CALLS[run]
        self.orders = CASE[f"in.{run}.orders"]
        batch, num_tokens = self.orders.shape
        assert batch == self.call["bsz"]
        self.rank = np.argsort(self.orders, axis=1)
        self.label = CASE[self.call["labels"]]
        self.noise, self.inter = CASE[f"in.{run}.noise"], CASE[f"in.{run}.inter_noise"]
        ar_steps = self.call["num_iter"]
        self.counts = schedules.cosine_counts(num_tokens, ar_steps)
        self.scales = schedules.guidance_at(
            self.call["cfg"], num_tokens, ar_steps, self.call["cfg_schedule"]
        )

    def look(self, model: str, tokens, unknown: int, predict, step: int) -> cspd.LastStep:
        """One model's tokens at `predict [B, L]`, in the context of `unknown` masked tokens."""
        _, _, params = converted(model)
        encode, reverse = programs()
        known, labels = self.rank >= unknown, [self.label]
        if self.call["cfg"] != 1.0:
            labels.append(np.full_like(self.label, -1))
        z = np.stack([encode(params, tokens, known, label)[predict] for label in labels])
        steps = np.moveaxis(self.inter[predict], 1, 0)
        scale, temperature = self.scales[step], self.call["temperature"]
        return reverse(params, z, self.noise[predict], steps, scale, temperature)


@each("run", CASE.parts("in.", ".orders"))
@claims("cspd", "in.run.labels", "in.{run}.*", "out.{run}.*")
def test_complete_run(run):
    """Target, then drafts and checks by turns: every grid, probability and corrected token."""
    replay, call = Replay(run), CALLS[run]
    batch, num_tokens = replay.orders.shape
    dim = MADE_WITH["vae_embed_dim"]
    tokens = np.zeros((batch, num_tokens, dim), np.float32)
    unknown, begun = num_tokens, num_tokens
    masks, grids, calls, drafted, checks = [], [], [], [], 0
    for step, count in enumerate(replay.counts):
        last = step == len(replay.counts) - 1
        model = "target" if step <= call["num_iter"] * call["ratio"] else "draft"
        left = unknown - count
        predict = (replay.rank < unknown) & (replay.rank >= left)
        made = replay.look(model, tokens, unknown, predict, step)
        tokens[predict] = made.mean
        unknown = left
        calls.append(f"{model}.sample_tokens_step")
        masks.append(replay.rank < max(unknown, 1))  # the last call reports one token as masked
        grids.append(tokens.copy())
        if model == "target":
            begun = unknown
            continue
        drafted.append((predict, made))
        if step % call["num_draft"] and not last:
            continue
        group = (replay.rank < begun) & (replay.rank >= unknown)
        target = replay.look("target", tokens, begun, group, step)
        proposed = tokens.copy()
        proposed[group] = target.mean
        calls.append("target.sample_tokens_step_with_mask")
        masks.append(replay.rank < max(unknown, 1))
        grids.append(proposed)
        tokens[group] = _checked(run, checks, tokens[group], group, drafted, target)
        checks, begun, drafted = checks + 1, unknown, []
    assert calls == CASE.config["call_order"][run]
    CASE.close(np.stack(masks), f"out.{run}.masks")
    CASE.close(np.stack(grids), f"out.{run}.grids")
    side = int(num_tokens**0.5)
    latents = unpatchify(jnp.asarray(tokens), side, side, MADE_WITH["patch_size"])
    CASE.close(channels_first(latents), f"out.{run}.latents")


def _checked(run, number, x, group, drafted, target):
    """Tokens after verification `number`, compared with the recorded ones."""
    name, tau = f"{run}.verify{number}", CALLS[run]["inner_temperature"]
    draft = []
    for values in zip(*(made for _, made in drafted), strict=True):
        whole = np.zeros((*group.shape, x.shape[1]), np.float32)
        for (predict, _), value in zip(drafted, values, strict=True):
            whole[predict] = value
        draft.append(whole[group])
    draft = cspd.LastStep(*draft)
    CASE.close(x, f"out.{name}.draft")
    close_probability(cspd.probability(x, draft, target, tau), f"out.{name}.probability")
    noise, noise_u = np.zeros((0, *x.shape), np.float32), np.zeros((0, len(x)), np.float32)
    if f"in.{name}.proposal_noise" in CASE.names:
        noise, noise_u = CASE[f"in.{name}.proposal_noise"], CASE[f"in.{name}.proposal_u"]
    u = CASE[f"in.{name}.u"]
    _, result = cspd.correct(x, draft, target, u, noise, noise_u, tau)
    CASE.close(result, f"out.{name}.result")
    return result
