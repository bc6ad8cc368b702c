"""Generation: `(params, labels, image numbers, seed) -> grid, Counts`, one jitted function.

The same function serves `sample`, `evaluate` and the training grids, for a host's own head and for
Drift-AR, so that what is timed is what is judged. A grid is what the tokens are patches of: the
image itself, or latents that an autoencoder turns into one.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from driftar_jax.data.patches import unpatchify
from driftar_jax.data.pixels import to_uint8
from driftar_jax.drift.head import DriftHead
from driftar_jax.heads import diffusion, randomness
from driftar_jax.hosts import mar_plan
from driftar_jax.hosts.nextstep import NextStep
from driftar_jax.hosts.transdiff import TransDiff
from driftar_jax.model import Parts
from driftar_jax.sampling import grid_sampler, speculate, text_sampler
from driftar_jax.sampling.settings import TRIMMED_LAST, Settings
from driftar_jax.types import Counts, Encoding, Given, Speculation

# For grids that are images already.
as_pixels = jax.jit(to_uint8)


@functools.partial(jax.jit, static_argnums=(0, 1))
def generate(
    parts: Parts,
    settings: Settings,
    params: dict[str, Any],
    label: jax.Array,
    index: jax.Array,
    seed: jax.Array,
    given: Given | None = None,
) -> tuple[jax.Array, Counts]:
    """All AR steps and the head; the tokens are put back in their places.

    Args:
      parts: modules of a run.
      settings: checked against `parts`.
      params: parameter groups of the run.
      label: `[B]` int32 class, -1 for none; or `[B, 1 + P]` rows of `data.captions`.
      index: `[B]` int32 number of each image in the whole request; with `seed` it decides all of
        an image's randomness, so an image does not depend on its batch.
      seed: uint32 scalar.
      given: tokens that stand; a host that reveals tokens in any order (MAR) fills in the others.

    Returns:
      float32 grid `[B, H, W, C]` of `parts.images.image_shape`, and `Counts` per image.
    """
    images = parts.images
    keys = randomness.image_keys(seed, index)
    counts = Counts(
        backbone_calls=jnp.int32(settings.ar_steps),
        head_evaluations=jnp.int32(sum(settings.head_steps)),
        draft_calls=jnp.int32(0),
        backbone_rows=jnp.int32(settings.ar_steps * (2 if settings.guided else 1)),
    )
    if isinstance(parts.host, TransDiff):
        tokens = _whole_grids(parts, settings, params, label, keys)
        return unpatchify(tokens, *images.image_shape[:2], images.patch_size), counts
    if isinstance(parts.host, NextStep):
        tokens = text_sampler.tokens(parts, settings, params, label, keys)
        return unpatchify(tokens, *images.image_shape[:2], images.patch_size), counts
    shape = (label.shape[0], images.num_tokens, images.token_dim)
    order, tokens = randomness.orders(keys, images.num_tokens), jnp.zeros(shape, jnp.float32)
    if given is not None:
        order = randomness.unknown_first(order, given.known)
        tokens = jnp.where(given.known[None, :, None], given.tokens[None], tokens)
    rank = jnp.argsort(order, axis=-1)

    def ar_step(steps, tokens, step):
        known = rank >= step["now"]
        seen = backbone(parts, settings, steps, params, tokens, known, label, step["keep"])
        return reveal(parts, settings, steps, params, tokens, seen, order, keys, step), None

    for steps in plans_of(parts, settings, given and given.unknown):
        tokens, _ = jax.lax.scan(functools.partial(ar_step, steps), tokens, steps.columns())
    return unpatchify(tokens, *images.image_shape[:2], images.patch_size), counts


def _whole_grids(parts, settings, params, label, keys) -> jax.Array:
    """Tokens `[B, N, C]` of a host whose AR steps are whole grids."""
    if settings.method != "own":
        head = drift_head(parts, settings, params)
        return grid_sampler.drift(parts, head, params, label, keys, settings.guidance)
    scales = grid_sampler.guidance_at(
        settings.guidance, settings.ar_steps, settings.guidance_schedule
    )
    return grid_sampler.own(
        parts,
        params,
        label,
        keys,
        steps=settings.head_steps,
        guidance=scales,
        drift_scale=settings.drift_scale,
        noise_scale=settings.temperature,
    )


def plans_of(
    parts: Parts, settings: Settings, unknown: int | None = None
) -> tuple[mar_plan.Plan, ...]:
    """The AR steps of checked settings, in order; each plan is a program of its own."""
    steps = mar_plan.make(
        parts.images.num_tokens,
        settings.ar_steps,
        guidance=settings.guidance,
        guidance_schedule=settings.guidance_schedule,
        head_steps=settings.head_steps,
        unknown=unknown,
    )
    return steps.first_apart() if settings.guided else (steps,)


def backbone(
    parts: Parts,
    settings: Settings,
    steps: mar_plan.Plan,
    params: dict[str, Any],
    tokens: jax.Array,
    known: jax.Array,
    label: jax.Array,
    keep: jax.Array,
) -> Encoding:
    """One backbone call of the AR loop, up to where the tokens that are wanted are known.

    `keep` is the step's index into `steps.keeps`: the encoder runs on about as many tokens as are
    known, not on all. Without a known token the unconditional rows are all alike: one is run.

    Returns:
      `Encoding` for `reveal`, `[B, ...]`, or `[2B, ...]` with the unconditional rows.
    """
    batch = label.shape[0]
    others = 0 if not settings.guided else 1 if steps.empty else batch
    if others:
        tokens, known = (jnp.concatenate([a, a[:others]]) for a in (tokens, known))
        label = jnp.concatenate([label, jnp.full_like(label[:others], -1)])
    variables = {"params": params["host"]}

    def place(size):
        size = None if size == parts.images.num_tokens else size
        return parts.host.apply(variables, tokens, known, label, keep=size, method="place")

    canvas = jax.lax.switch(keep, [functools.partial(place, size) for size in steps.keeps])
    seen = parts.host.apply(variables, canvas, method="look")
    if others < batch and settings.guided:
        repeat = lambda a: jnp.concatenate([a[:batch], jnp.repeat(a[batch:], batch, axis=0)])  # noqa: E731
        seen = jax.tree.map(repeat, seen)
    return seen


def reveal(
    parts: Parts,
    settings: Settings,
    steps: mar_plan.Plan,
    params: dict[str, Any],
    tokens: jax.Array,
    seen: Encoding,
    order: jax.Array,
    keys: jax.Array,
    step: dict[str, jax.Array],
) -> jax.Array:
    """The head's part of an AR step: `tokens [B, N, C]` with the step's group filled in.

    Args:
      parts, settings, params: as for `generate`; `steps` of `plans_of`.
      tokens: so far.
      seen: of `backbone`.
      order: `[B, N]` int32; `keys [B]`, one per image.
      step: the step's entries of `steps.columns()`.
    """
    batch, num_tokens, _ = tokens.shape
    head, shown = None, ()
    if settings.method != "own":
        head = drift_head(parts, settings, params)
        shown = head.shown(seen.entropy, randomness.prior_keys(keys))
    token_keys = randomness.token_keys(keys, num_tokens)

    def fill(size):
        # The slots from `next` on are revealed; padding past `now` writes nowhere.
        slots = step["next"] + jnp.arange(size)
        positions = jnp.take(order, jnp.minimum(slots, num_tokens - 1), axis=1)
        rows = jnp.concatenate([positions] * (seen.z.shape[0] // batch))
        variables = {"params": params["host"]}
        encoding = Encoding(
            z=parts.host.apply(variables, seen.z, rows, method="features"),
            entropy=_take(seen.entropy, rows),
        )
        prior = () if head is None else head.starts_of(encoding.z, _take(shown, rows))
        chosen_keys = _take(token_keys, positions)
        new = _predict(parts, settings, steps, params, encoding, prior, chosen_keys, step)
        target = jnp.where(slots < step["now"], positions, num_tokens)
        return jax.vmap(lambda t, p, x: t.at[p].set(x, mode="drop"))(tokens, target, new)

    return jax.lax.switch(step["size"], [functools.partial(fill, size) for size in steps.sizes])


def _take(values: jax.Array, positions: jax.Array) -> jax.Array:
    """`values [R, N, ...]` at `positions [R, M]`."""
    return jax.vmap(lambda v, p: v[p])(values, positions)


def drift_head(parts: Parts, settings: Settings, params: dict[str, Any]) -> DriftHead:
    """Prior and decoder as checked settings want them; `mean` has no decoder."""
    decoder = parts.decoder if settings.method == "drift" else None
    trained = settings.guidance_form == "trained"
    return DriftHead(parts.prior, decoder, params, settings.guided, settings.temperature, trained)


def _predict(parts, settings, steps, params, encoding, prior, token_keys, step) -> jax.Array:
    """New tokens `[B, M, C]`; `encoding` and `prior` hold `[B or 2B, M, ...]`."""
    guided, scale = settings.guided, step["scale"]
    batch, count = token_keys.shape
    channels = parts.images.token_dim
    if settings.method != "own":
        eps = randomness.normal(token_keys, 0, channels)
        return drift_head(parts, settings, params).tokens(encoding, *prior, eps, scale)
    z = encoding.z.reshape(-1, encoding.z.shape[-1])
    rows = batch * count
    schedules = [head_schedule(settings, length) for length in steps.lengths]
    schedule, num_steps = schedules[0], None
    if len(schedules) > 1:
        schedule, num_steps = diffusion.chosen(schedules, step["length"])
    new = diffusion.head_sample(
        parts.head,
        params["head"],
        z[:rows],
        lambda draw: randomness.normal(token_keys.reshape(-1), draw, channels),
        schedule=schedule,
        num_steps=num_steps,
        guidance=scale if guided else None,
        z_uncond=z[rows:] if guided else None,
        temperature=settings.temperature,
    )
    return new.reshape(batch, count, channels)


def head_schedule(settings: Settings, num_steps: int) -> diffusion.Schedule:
    """Of the diffusion head's `num_steps` steps."""
    if settings.spacing == "trimmed" or num_steps == 1:
        return diffusion.trimmed_schedule(num_steps, TRIMMED_LAST)
    return diffusion.respaced_schedule(num_steps)


def sample_images(
    parts: Parts,
    settings: Settings,
    params: dict[str, Any],
    labels: np.ndarray,
    seed: int,
    *,
    batch_size: int = 256,
    to_pixels: Callable[[jax.Array], jax.Array] = as_pixels,
    given: Given | None = None,
) -> tuple[np.ndarray, Counts]:
    """Any number of images, in batches of one compiled shape.

    Args:
      parts, settings, params: as for `generate`.
      labels: `[n]` integer classes, -1 for none; `[n, 1 + P]` rows of captions for hosts of text.
      seed: root of the randomness, 0..2**31-1.
      batch_size: images per call; the last call is padded.
      to_pixels: a batch of grids to uint8 images; by default the grid is the image, in [-1, 1].
      given: as for `generate`; not with drafts.

    Returns:
      uint8 images `[n, ...]`, and `Counts` per image; means where images differ.

    Raises:
      ValueError: a label or the settings are out of range; nothing has been compiled.
    """
    if settings.drafts:
        arguments = parts, settings, params, labels, seed
        made, found = sample_drafted(*arguments, batch_size=batch_size, to_pixels=to_pixels)
        return made, speculate.counts(found)

    _check(parts, settings, labels)
    params = grid_sampler.with_table(parts, params, len(labels) * (2 if settings.guided else 1))

    def make(label, index):
        return generate(parts, settings, params, label, index, np.uint32(seed), given)

    made, found = _in_batches(make, labels, batch_size, to_pixels)
    counts = jax.tree.map(int, found[0])
    if "table" in params:
        calls = (parts.images.num_classes + 1) / len(labels)
        counts = dataclasses.replace(counts, backbone_calls=calls, backbone_rows=calls)
    return made, counts


def sample_drafted(
    parts: Parts,
    settings: Settings,
    params: dict[str, Any],
    labels: np.ndarray,
    seed: int,
    *,
    batch_size: int = 256,
    to_pixels: Callable[[jax.Array], jax.Array] = as_pixels,
) -> tuple[np.ndarray, Speculation]:
    """`sample_images` by speculative decoding, with all that is counted on the way.

    Returns:
      uint8 images `[n, ...]`, and `Speculation` whose fields are `[n, ...]` for the images and
      `[batches]` for the batches.

    Raises:
      ValueError: as `sample_images`; or gamma is still to be chosen.
    """
    _check(parts, settings, labels)
    if settings.gamma < 0:
        raise ValueError(f"gamma: got {settings.gamma}, allowed a number from 0 (choose it first)")
    rule = settings.draft_rule(settings.drafts)
    plain = settings.changed(gamma=0)  # as `gamma.py` asks: one compilation serves both

    def make(label, index):
        return speculate.generate(parts, rule, plain, params, label, index, np.uint32(seed))

    made, found = _in_batches(make, labels, batch_size, to_pixels)
    return made, speculate.joined(found, len(labels))


def _check(parts: Parts, settings: Settings, labels) -> None:
    settings.check(parts)
    labels = np.asarray(labels, np.int32)
    if isinstance(parts.host, NextStep):
        text_sampler.check_rows(parts, labels)
        return
    bad = labels[(labels < -1) | (labels >= parts.images.num_classes)]
    if labels.ndim != 1 or len(labels) == 0:
        raise ValueError(f"labels: got shape {labels.shape}, allowed at least one in one row")
    if len(bad):
        allowed = f"0 to {parts.images.num_classes - 1}, or -1 for none"
        raise ValueError(f"labels: got {int(bad[0])}, allowed {allowed}")


def _in_batches(make, labels, batch_size: int, to_pixels) -> tuple[np.ndarray, list]:
    """All images of `make(label [B], index [B])`, and what else it returned for each batch."""
    labels = np.asarray(labels, np.int32)
    batch_size = min(batch_size, len(labels))
    images, rest = [], []
    for first in range(0, len(labels), batch_size):
        index = np.arange(first, first + batch_size, dtype=np.int32)
        grids, other = make(labels[np.minimum(index, len(labels) - 1)], index)
        images.append(np.asarray(to_pixels(grids))[: len(labels) - first])
        rest.append(other)
    return np.concatenate(images), rest
