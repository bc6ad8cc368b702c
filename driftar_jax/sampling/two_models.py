"""CSpD (arXiv 2411.11925): a second model drafts AR steps for a MAR model, which checks them.

The test is the released one (`published/cspd.py`); the loop is the host's (`Family.paired`). Both
models share the noise of every token and reverse step, so that drafts lie near the target's own
tokens ("trajectory alignment"). What differs from the released program stands in docs/rivals.md.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from driftar_jax.config import wrong
from driftar_jax.data import is_latents
from driftar_jax.heads import randomness
from driftar_jax.heads.diffusion import LastStep
from driftar_jax.hosts.base import ImageSpec, Model
from driftar_jax.hosts.schedules import checked_steps, cosine_counts
from driftar_jax.published import cspd
from driftar_jax.sampling import plain
from driftar_jax.sampling.settings import Settings
from driftar_jax.types import Counts

# Most proposals for a token that failed, as released.
ROUNDS = 100
FIELD = "draft_workdir"


def paired(target: Any, draft: Any) -> Any:
    """Return the `Generator` of the target, for which that of `draft` drafts.

    Raises:
      ValueError: one of both cannot do it, or they make other tokens; `draft_workdir` is the field.
    """
    family = target.model.family
    if family.order != "any":
        raise wrong(FIELD, draft.model.family.name, f"none: {family.name} has no test of drafts")
    if draft.model.family.name != family.name:
        raise wrong(FIELD, draft.model.family.name, f"a checkpoint of {family.name}")
    for field, generator in (("workdir", target), (FIELD, draft)):
        if generator.model.head is None:
            allowed = "with a draft model: one that has its own diffusion head (task host)"
            raise wrong(field, generator.config.task, allowed)
    tokens, others = _tokens(target), _tokens(draft)
    if tokens != others:
        raise wrong(FIELD, others, f"one of the same tokens and classes: {tokens}")
    model = dataclasses.replace(target.model, drafter=draft.model)
    params = {**target.params, "drafter": dict(draft.params)}
    return dataclasses.replace(target, model=model, params=params)


def _tokens(generator: Any) -> str:
    """Say in a line what the tokens of a checkpoint are: equal lines may draft for each other."""
    images: ImageSpec = generator.model.images
    kind = "pixels"
    if is_latents(generator.config.data.name):
        # Latents of two autoencoders have one shape and nothing else in common.
        kind = f"latents {generator.manifest.get('vae_fingerprint') or ''}".strip()
    shape = "x".join(map(str, images.image_shape))
    names = ", ".join(images.class_names[:3]) + (", ..." if images.num_classes > 3 else "")
    return (
        f"{images.num_tokens} tokens of {images.token_dim} numbers of {shape} {kind}, "
        f"{images.num_classes} classes ({names})"
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def generate(
    model: Model,
    settings: Settings,
    params: Mapping[str, Any],
    condition: Any,
    index: jax.Array,
    seed: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Generate a batch of images by two models, in one program; arguments as `plain.generate`.

    Returns:
      float32 grid `[B, H, W, C]`, and how many drafts of each AR step passed, `[B, T]` int32.
    """
    keys = randomness.image_keys(seed, index)
    verdict = functools.partial(judge, tau=settings.draft_tau)
    tokens, passed = model.family.paired(model, settings, params, condition, keys, verdict)
    return plain.grid_of(model, tokens), passed


def judge(
    x: jax.Array,
    draft: LastStep,
    target: LastStep,
    keys: jax.Array,
    real: jax.Array,
    *,
    tau: float,
) -> tuple[jax.Array, jax.Array]:
    """Test drafts, and replace those that fail; each token by itself.

    Args:
      x: `[..., C]` drafts; of a diffusion head they are `draft.mean`.
      draft, target: what both reverse processes end in, `[..., C]`.
      keys: `[...]`, of the tokens.
      real: of the last axis of `keys`, or of its shape; no other token is asked for.
      tau: of the test.

    Returns:
      Which drafts pass, `[...]` bool, and tokens `[..., C]`. A token that fails is the first
      residual proposal that passes; where none of `ROUNDS` does, the target's own.

    Source: mar.md section 9.1. The released program goes on proposing for all tokens of a batch
    while one of them waits, and leaves 0 where none passes.
    """
    keys = randomness.verdict_keys(keys)
    passed = cspd.probability(x, draft, target, tau) > randomness.chances(keys, 0)
    channels = x.shape[-1]

    def waits(state):
        number, _, waiting = state
        return (number < ROUNDS) & waiting.any()

    def propose(state):
        number, tokens, waiting = state
        # Two draws a round, of each token alone: an image is the same in any batch.
        y = target.mean + target.std * randomness.normal(keys, 2 * number + 1, channels)
        chance = randomness.chances(keys, 2 * number + 2)
        taken = waiting & (chance < cspd.residual_ratio(y, draft, target))
        return number + 1, jnp.where(taken[..., None], y, tokens), waiting & ~taken

    start = jnp.int32(0), target.mean, ~passed & jnp.broadcast_to(real, passed.shape)
    _, tokens, _ = jax.lax.while_loop(waits, propose, start)
    return passed, jnp.where(passed[..., None], x, tokens)


def counts(settings: Settings) -> Counts:
    """Return what an image costs, whatever passes: calls and rows of the model that checks."""
    first, ends = checked_steps(settings.ar_steps, settings.draft_steps, settings.draft_prefill)
    calls, drafts = first + len(ends), settings.ar_steps - first
    return Counts(
        backbone_calls=calls,
        head_evaluations=settings.nfe * (calls + drafts),
        draft_calls=drafts,
        backbone_rows=calls * settings.branches,
    )


def joined(parts: Sequence[Any], number: int) -> np.ndarray:
    """Join what passed in several batches: `[number, T]`; the last batch is padded."""
    return np.concatenate([np.asarray(part) for part in parts])[:number]


def summary(model: Model, settings: Settings, passed: np.ndarray) -> dict[str, Any]:
    """Return exact counts as plain numbers, for `counts.json`.

    Args:
      model: both models.
      settings: of the images.
      passed: `[n, T]`, drafts that passed in each AR step.

    Returns:
      Calls, backbone rows and head evaluations of both models for an image; `checks`; and tokens:
      `drafted`, `accepted` (mean, least, most of an image), their share, and `by_step`: of each
      drafted AR step its number, the drafted tokens and the mean number of accepted ones.
    """
    cost, nfe = counts(settings), settings.nfe
    first, ends = checked_steps(settings.ar_steps, settings.draft_steps, settings.draft_prefill)
    sizes = np.array(cosine_counts(model.images.num_tokens, settings.ar_steps))
    drafted, accepted = int(sizes[first:].sum()), passed.sum(axis=1)
    return {
        "target_calls": cost.backbone_calls,
        "draft_calls": cost.draft_calls,
        "checks": len(ends),
        "target_rows": cost.backbone_rows,
        "draft_rows": cost.draft_calls * settings.branches,
        "target_head_evaluations": nfe * cost.backbone_calls,
        "draft_head_evaluations": nfe * cost.draft_calls,
        "drafted": drafted,
        "accepted": [float(accepted.mean()), int(accepted.min()), int(accepted.max())],
        "accepted_share": float(accepted.mean() / drafted),
        "by_step": [
            {"step": k, "drafted": int(sizes[k]), "accepted": float(passed[:, k].mean())}
            for k in range(first, settings.ar_steps)
        ],
    }
