"""What is trained: a host with its own head, Drift-AR on a host, or the feature classifier.

A task is a frozen object with `init`, `loss` and `trainable`; the loop knows nothing else of it.
"""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from driftar_jax import entropy, model
from driftar_jax.data.pixels import to_unit_range
from driftar_jax.drift import fields
from driftar_jax.features import maps
from driftar_jax.features.classifier import SmallClassifier
from driftar_jax.heads import diffusion
from driftar_jax.hosts import masks as mask_laws
from driftar_jax.layers.dense import of_batch
from driftar_jax.training import causal_tasks, drafts, drift_grid, grid_tasks, losses, masked
from driftar_jax.training.drawn import Drawn
from driftar_jax.training.tokens import tokenise
from driftar_jax.types import Encoding

Params = dict[str, Any]

# Share of the images that learn without guidance, so that a scale of 1 stays the data's own.
_UNGUIDED = 0.3


class Task(Protocol):
    """What the loop asks of a task.

    Attributes:
      freeze_step: first step of Phase II, or None where there is one phase.
      tracked: names of metrics whose running means are part of the checkpoint.
    """

    freeze_step: int | None
    tracked: tuple[str, ...]

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters by group, boxed with their logical axes."""

    def loss(
        self, params: Params, batch: dict, key: jax.Array, step: jax.Array, frozen: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Loss (float32 scalar) and metrics of `label [B]` and what `tokenise` reads."""

    def trainable(self, frozen: bool) -> tuple[str, ...]:
        """Names of the parameter groups that learn in this phase."""


@dataclasses.dataclass(frozen=True)
class Contexts:
    """How training contexts are drawn: the mask law, its floor, the label drop."""

    law: str
    ratio_min: float
    tokens_per_image: int
    label_drop: float

    def draw(self, key: jax.Array, label: jax.Array, num_tokens: int):
        """Masks of a batch and its labels, -1 where the label is dropped."""
        key_mask, key_drop = jax.random.split(key)
        batch = label.shape[0]
        masks = mask_laws.draw(key_mask, batch, num_tokens, law=self.law, ratio_min=self.ratio_min)
        dropped = jax.random.bernoulli(key_drop, self.label_drop, (batch,))
        return masks, jnp.where(dropped, -1, label)

    def keep(self, num_tokens: int) -> int | None:
        """Known tokens the encoder has to hold, where the law bounds them; None: all positions."""
        return int((1 - self.ratio_min) * num_tokens) if self.law == "mar" else None

    def chosen(self, masks, num_tokens: int):
        """Positions `[B, M]` whose head is trained, and their weights."""
        return mask_laws.some_unknown(masks, self.tokens_per_image or num_tokens)


def _take(values: jax.Array, positions: jax.Array) -> jax.Array:
    """`values [B, N, ...]` at `positions [B, M]`."""
    index = positions.reshape(positions.shape + (1,) * (values.ndim - 2))
    return jnp.take_along_axis(values, index, axis=1)


def _weighted_mean(values: jax.Array, weight: jax.Array, total: jax.Array) -> jax.Array:
    return jnp.sum(values * weight) / total


def _unknown(masks: mask_laws.Masks) -> jax.Array:
    """`[B, N]` float32, 1 where a token is to be made."""
    return (~masks.known).astype(jnp.float32)


def _encode(task, params: Params, tokens, masks, label, key_dropout) -> Encoding:
    """The backbone call of a training batch; without a key nothing is dropped."""
    return task.parts.host.apply(
        {"params": params["host"]},
        tokens,
        masks.known,
        label,
        keep=task.contexts.keep(task.parts.images.num_tokens),
        deterministic=key_dropout is None,
        rngs=None if key_dropout is None else {"dropout": key_dropout},
    )


@dataclasses.dataclass(frozen=True)
class HostTask(Drawn):
    """A host trained with its own many-step head, as it was published (mar.md section 4.3)."""

    parts: model.Model
    contexts: Contexts
    copies: int
    mirror: bool = False
    freeze_step: None = None
    tracked: tuple[str, ...] = ()

    def init(self, key: jax.Array) -> Params:
        return {"host": _init_host(self.parts, key), "head": _init_head(self.parts, key)}

    def trainable(self, frozen: bool) -> tuple[str, ...]:
        return ("host", "head")

    def draw(self, batch, key, frozen):
        images = self.parts.images
        key_context, _, key_time, key_noise = jax.random.split(key, 4)
        tokens = tokenise(batch, key, patch_size=images.patch_size, mirror=self.mirror)
        masks, label = self.contexts.draw(key_context, batch["label"], images.num_tokens)
        positions, weight = self.contexts.chosen(masks, images.num_tokens)
        # One condition serves all copies of a token; only its time and noise differ.
        shape = (self.copies, *positions.shape)
        t = jax.random.randint(key_time, shape, 0, diffusion.TRAIN_STEPS)
        noise = jax.random.normal(key_noise, (*shape, images.token_dim))
        rows = {
            "tokens": tokens,
            "masks": masks,
            "label": label,
            "positions": positions,
            "weight": weight,
            "t": jnp.moveaxis(t, 1, 0),
            "noise": jnp.moveaxis(noise, 1, 0),
        }
        return rows, {
            "chosen": jnp.sum(jnp.broadcast_to(weight[None], shape)),
            "unknown": jnp.sum(_unknown(masks)),
        }

    def terms(self, params, rows, totals, key, step, frozen):
        head, masks, positions = self.parts.head, rows["masks"], rows["positions"]
        key_dropout = jax.random.split(key, 4)[1]
        encoding = _encode(self, params, rows["tokens"], masks, rows["label"], key_dropout)
        x = _take(rows["tokens"], positions)
        c = head.apply({"params": params["head"]}, _take(encoding.z, positions), method="condition")
        t, noise = jnp.moveaxis(rows["t"], 1, 0), jnp.moveaxis(rows["noise"], 1, 0)

        def denoise(x_t, t):
            x_t, t = of_batch(x_t, 1), of_batch(t, 1)
            return head.apply({"params": params["head"]}, x_t, t, c[None], method="denoise")

        schedule = diffusion.training_schedule()
        target = jnp.broadcast_to(x[None], noise.shape)
        made = diffusion.head_loss(denoise, schedule, target, t, noise)
        weight = jnp.broadcast_to(rows["weight"][None], made.shape)
        loss = _weighted_mean(made, weight, totals["chosen"])
        entropy_mean = _weighted_mean(encoding.entropy, _unknown(masks), totals["unknown"])
        return loss, {"entropy_mean": entropy_mean}


@dataclasses.dataclass(frozen=True)
class DriftTask(Drawn):
    """Drift-AR on a host: prior, one-step decoder, draft head, two phases (Eq. 3-10)."""

    parts: model.Model
    contexts: Contexts
    draws: int
    entropy_loss: str
    alpha_start: float
    freeze_at: float
    steps: int
    ar_steps: int
    guidance_max: float = 1.0
    entropy_gradient: bool = True
    mirror: bool = False
    tracked: tuple[str, ...] = ("entropy_mean", "entropy_square")

    @property
    def freeze_step(self) -> int:
        return losses.freeze_step(self.steps, self.freeze_at)

    def init(self, key: jax.Array) -> Params:
        return {
            "host": _init_host(self.parts, key),
            "prior": _init_prior(self.parts, key),
            "decoder": _init_decoder(self.parts, key),
            "draft": _init_draft(self.parts, key),
        }

    def trainable(self, frozen: bool) -> tuple[str, ...]:
        return ("decoder",) if frozen else ("host", "prior", "decoder", "draft")

    def draw(self, batch, key, frozen):
        images = self.parts.images
        key_context, _, key_eps, key_shuffle = jax.random.split(key, 4)
        tokens = tokenise(batch, key, patch_size=images.patch_size, mirror=self.mirror)
        masks, label = self.contexts.draw(key_context, batch["label"], images.num_tokens)
        positions, weight = self.contexts.chosen(masks, images.num_tokens)
        shape = (*positions.shape, self.draws, images.token_dim)
        rows = {
            "tokens": tokens,
            "masks": masks,
            "label": label,
            "positions": positions,
            "weight": weight,
            "eps": jax.random.normal(key_eps, shape),
            "prior_keys": jax.random.split(key_shuffle, len(label)),
        }
        if self.parts.decoder.guidance:
            key_scale, key_free = jax.random.split(jax.random.fold_in(key, 4))
            key_prior, key_eps = jax.random.split(key_free)
            rows["scale"] = self._scales(key_scale, label)
            rows["free_keys"] = jax.random.split(key_prior, len(label))
            rows["free_eps"] = jax.random.normal(key_eps, shape)
        return rows, {
            "chosen": jnp.sum(weight),
            "unknown": jnp.sum(_unknown(masks)),
            "advanced": losses.at_least_one(self._advanced(masks)[1]),
        }

    def terms(self, params, rows, totals, key, step, frozen):
        tokens, masks, label = rows["tokens"], rows["masks"], rows["label"]
        key_dropout = None if frozen else jax.random.split(key, 4)[1]
        encoding = _encode(self, params, tokens, masks, label, key_dropout)
        if not self.entropy_gradient:
            # The drift still reads the entropy, and no longer shapes it.
            encoding = encoding.replace(entropy=jax.lax.stop_gradient(encoding.entropy))
        mu, std = self._prior(params, encoding, rows["prior_keys"])
        positions = rows["positions"]
        y = _take(tokens, positions)
        if self.parts.decoder.guidance:
            scale = jnp.broadcast_to(rows["scale"][:, None], positions.shape)
            x = self._draws(params, encoding, mu, std, positions, rows["eps"], scale)
            free = self._unconditional(params, rows)
            field = fields.guided_energy(x, y[:, :, None], free, scale)
        else:
            x = self._draws(params, encoding, mu, std, positions, rows["eps"])
            field = fields.energy(x, y[:, :, None])

        def over_chosen(values):
            return _weighted_mean(values, rows["weight"], totals["chosen"])

        def over_unknown(values):
            return _weighted_mean(values, _unknown(masks), totals["unknown"])

        l_drift = over_chosen(fields.drift_loss(x, field).mean(axis=-1))
        metrics = {
            "drift": l_drift,
            "energy_score": over_chosen(fields.energy_score(x, y)),
            "sigma_mean": over_unknown(std),
            "entropy_mean": over_unknown(encoding.entropy),
            "entropy_square": over_unknown(jnp.square(encoding.entropy)),
        }
        if frozen:
            return l_drift, metrics
        l_mu = over_unknown(jnp.sum(jnp.square(mu - tokens), axis=-1))
        draft_terms = self._draft_terms(params, encoding, rows, totals["advanced"])
        a = losses.alpha(step, self.steps, start=self.alpha_start, freeze_at=self.freeze_at)
        loss = a * sum(draft_terms.values()) + (1 - a) * (l_drift + l_mu)  # Eq. 9
        return loss, metrics | draft_terms | {"mu": l_mu, "alpha": a}

    def _prior(self, params, encoding, keys):
        return self.parts.prior.apply(
            {"params": params["prior"]}, encoding.z, encoding.entropy, keys
        )

    def _scales(self, key, label):
        """Guidance scale of each image: 1 for three in ten and where the label is dropped."""
        key_scale, key_none = jax.random.split(key)
        scale = jax.random.uniform(key_scale, label.shape, minval=1.0, maxval=self.guidance_max)
        none = jax.random.bernoulli(key_none, _UNGUIDED, label.shape)
        return jnp.where(none | (label < 0), 1.0, scale)

    def _unconditional(self, params, rows):
        """The decoder's own draws for the same contexts without a label; nothing learns here."""
        params = jax.lax.stop_gradient(params)
        none = jnp.full_like(rows["label"], -1)
        encoding = _encode(self, params, rows["tokens"], rows["masks"], none, None)
        mu, std = self._prior(params, encoding, rows["free_keys"])
        plain = jnp.ones(rows["positions"].shape)
        eps = rows["free_eps"]
        return self._draws(params, encoding, mu, std, rows["positions"], eps, plain)

    def _draws(self, params, encoding, mu, std, positions, eps, scale=None):
        """G decoded draws `[B, M, G, C]` of every chosen token (Eq. 7, then the decoder)."""
        mu, std = _take(mu, positions), _take(std, positions)
        x0 = entropy.prior_draw(mu[:, :, None], std[:, :, None], eps)
        return self.parts.decoder.apply(
            {"params": params["decoder"]},
            x0,
            mu,
            std,
            _take(encoding.z, positions),
            _take(encoding.entropy, positions),
            scale,
        )

    def _advanced(self, masks):
        """Contexts one AR step later, and `[B]` float32, 1 where there is one."""
        later = mask_laws.advance(masks, self.ar_steps)
        return later, (later.num_unknown < masks.num_unknown).astype(jnp.float32)

    def _draft_terms(self, params, encoding, rows, total):
        """Eq. 3 and the draft's entropy term, one AR step ahead of the batch's contexts."""
        later, weight = self._advanced(rows["masks"])
        tokens = rows["tokens"]
        target = self.parts.host.apply(
            {"params": params["host"]}, tokens, later.known, rows["label"]
        )
        last = jax.lax.stop_gradient(encoding)
        draft = self.parts.draft.apply({"params": params["draft"]}, last, tokens, later.known)
        kind = self.entropy_loss
        return {
            "draft_reg": losses.draft_regression(draft, target, weight, total),
            "draft_entropy": losses.draft_entropy(draft, target, weight, kind, total),
        }


@dataclasses.dataclass(frozen=True)
class ClassifierTask:
    """The small feature network, trained on the images themselves."""

    module: SmallClassifier
    images: model.ImageSpec
    freeze_step: None = None
    tracked: tuple[str, ...] = ()

    def init(self, key: jax.Array) -> Params:
        image = jnp.zeros((1, *self.images.image_shape))
        return {"classifier": self.module.init(key, image)["params"]}

    def trainable(self, frozen: bool) -> tuple[str, ...]:
        return ("classifier",)

    def loss(self, params, batch, key, step, frozen):
        image = to_unit_range(batch["image"])
        # Noise keeps the features smooth, so that faint speckle does not dominate a distance.
        image += 0.1 * jax.random.normal(key, image.shape)
        _, logits = self.module.apply({"params": params["classifier"]}, image)
        rows = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        correct = (logits.argmax(axis=-1) == batch["label"]).astype(jnp.float32)
        return rows.mean(), {"accuracy": correct.mean()}


def build(
    config: Any,
    images: model.ImageSpec,
    space: tuple[maps.Features, Any] | None = None,
) -> Task:
    """The task of a checked config; `space` is phi and its parameters, to train whole grids."""
    if config.task == "classifier":
        module = SmallClassifier(num_classes=images.num_classes, width=config.classifier.width)
        return ClassifierTask(module, images)
    if config.task == "mae":
        return masked.build(config, images)
    parts = model.build(config, images)
    if config.host.name == "transdiff" and config.task == "drift":
        return drift_grid.build(config, parts, space)
    if config.host.name == "transdiff":
        return grid_tasks.build(config, parts)
    if config.host.name == "nextstep":
        return causal_tasks.build(config, parts)
    contexts = Contexts(
        law=config.mask.law,
        ratio_min=config.mask.ratio_min,
        tokens_per_image=config.mask.tokens_per_image,
        label_drop=config.host.label_drop,
    )
    if config.task == "host":
        return HostTask(parts, contexts, copies=config.head.copies, mirror=config.data.flip)
    drift = DriftTask(
        parts,
        contexts,
        draws=config.drift.draws,
        entropy_loss=config.loss.entropy_loss,
        alpha_start=config.loss.alpha_start,
        freeze_at=config.loss.freeze_at,
        steps=config.train.steps,
        ar_steps=config.sample.ar_steps,
        guidance_max=config.drift.get("guidance_max", 1.0),
        entropy_gradient=config.drift.get("entropy_gradient", True),
        mirror=config.data.flip,
    )
    if config.task == "draft":
        return drafts.DraftTask(drift, unroll=config.teacher.unroll, prior=config.teacher.prior)
    return drift


def _init_host(parts: model.Model, key: jax.Array):
    n, c = parts.images.num_tokens, parts.images.token_dim
    tokens, known = jnp.zeros((1, n, c)), jnp.zeros((1, n), bool)
    return parts.host.init(key, tokens, known, jnp.zeros((1,), jnp.int32))["params"]


def _shapes(parts: model.Model):
    """One token's arrays: z, a token, an entropy."""
    n, c = parts.images.num_tokens, parts.images.token_dim
    return jnp.zeros((1, n, parts.host.width)), jnp.zeros((1, n, c)), jnp.zeros((1, n))


def _init_head(parts: model.Model, key: jax.Array):
    z, x, _ = _shapes(parts)
    return parts.head.init(jax.random.fold_in(key, 1), x, jnp.zeros((1, 1), jnp.int32), z)["params"]


def _init_prior(parts: model.Model, key: jax.Array):
    z, _, e = _shapes(parts)
    keys = jax.random.split(key, 1)
    return parts.prior.init(jax.random.fold_in(key, 2), z, e, keys)["params"]


def _init_decoder(parts: model.Model, key: jax.Array):
    z, x, e = _shapes(parts)
    scale = jnp.ones_like(e) if parts.decoder.guidance else None
    keys = jax.random.fold_in(key, 3)
    return parts.decoder.init(keys, x[:, :, None], x, e, z, e, scale)["params"]


def _init_draft(parts: model.Model, key: jax.Array):
    z, x, e = _shapes(parts)
    last = Encoding(z=z, entropy=e)
    return parts.draft.init(jax.random.fold_in(key, 4), last, x, e.astype(bool))["params"]
