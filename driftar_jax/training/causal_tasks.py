"""What is trained on a host that reads text and makes one token after another: NextStep-1.

Contexts need no masks: one causal call over prompt and image holds the context of every token. The
encoding of token k is the hidden state of the position before it; head, prior and decoder read it
through `image_out_projector`, as they do in sampling, and the draft head reads it as it is.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from driftar_jax import entropy, model
from driftar_jax.drift import fields
from driftar_jax.heads import window
from driftar_jax.hosts import nextstep, nextstep_host
from driftar_jax.layers.dense import of_batch
from driftar_jax.training import losses
from driftar_jax.training.tokens import tokenise
from driftar_jax.types import Encoding

Params = dict[str, Any]

# Share of the images that learn without guidance, so that a scale of 1 stays the data's own.
_UNGUIDED = 0.3


@dataclasses.dataclass(frozen=True)
class Prompts:
    """How the rows of a batch become prompts.

    Attributes:
      text: ids and lengths of the data.
      drop: share of the images that lose their caption.
      unknown: share of the words that become `[UNK]`.
      tokens_per_image: K, image tokens per image whose head is trained; 0: all.
      mirror: of `tokenise`.
    """

    text: Any
    drop: float
    unknown: float
    tokens_per_image: int
    mirror: bool

    def read(self, batch: dict, key: jax.Array, patch_size: int):
        """Clean tokens `[B, N, C]`, `ids [B, P]`, `padding [B]` and which lost their caption.

        The last is bool `[B]`.
        """
        key_drop, key_unknown = jax.random.split(jax.random.fold_in(key, 65))
        tokens = tokenise(batch, key, patch_size=patch_size, mirror=self.mirror)
        padding, ids = batch["text"][:, 0], batch["text"][:, 1:]
        words = jnp.arange(ids.shape[1]) < self.text.length
        words = words[None] & (jnp.arange(ids.shape[1])[None] >= padding[:, None])
        hidden = jax.random.bernoulli(key_unknown, self.unknown, ids.shape)
        ids = jnp.where(words & hidden, self.text.unknown, ids)
        dropped = jax.random.bernoulli(key_drop, self.drop, padding.shape)
        return tokens, *without_caption(self.text, ids, padding, dropped), dropped

    def chosen(self, key: jax.Array, batch: int, num_tokens: int) -> jax.Array:
        """Numbers `[B, K]` of the tokens whose head is trained, drawn for each image."""
        count = self.tokens_per_image or num_tokens
        order = jax.vmap(lambda k: jax.random.permutation(k, num_tokens))(
            jax.random.split(key, batch)
        )
        return order[:, :count]


def without_caption(text, ids: jax.Array, padding: jax.Array, dropped: jax.Array):
    """`ids [B, T]` and `padding [B]` where the images `dropped [B]` have no caption."""
    caption = (jnp.arange(ids.shape[1]) < text.length)[None] & dropped[:, None]
    return jnp.where(caption, text.pad, ids), jnp.where(dropped, text.length, padding)


def _take(values: jax.Array, positions: jax.Array) -> jax.Array:
    """`values [B, N, ...]` at `positions [B, K]`."""
    index = positions.reshape(positions.shape + (1,) * (values.ndim - 2))
    return jnp.take_along_axis(values, index, axis=1)


def _init_host(parts: model.Model, key: jax.Array):
    ids = jnp.zeros((1, 2), jnp.int32)
    tokens = jnp.zeros((1, 1, parts.images.token_dim))
    return parts.host.init(key, ids, tokens, method="everything")["params"]


@dataclasses.dataclass(frozen=True)
class CausalTask:
    """NextStep-1 with its own flow head, as published: flow matching and a little text loss."""

    parts: model.Model
    prompts: Prompts
    copies: int
    text_loss: float
    freeze_step: None = None
    tracked: tuple[str, ...] = ()

    def init(self, key: jax.Array) -> Params:
        x = jnp.zeros((1, self.parts.images.token_dim))
        given = x, jnp.zeros(1), jnp.zeros((1, self.parts.host.width))
        head = self.parts.head.init(jax.random.fold_in(key, 1), *given)["params"]
        return {"host": _init_host(self.parts, key), "head": head}

    def trainable(self, frozen: bool) -> tuple[str, ...]:
        return ("host", "head")

    def loss(self, params, batch, key, step, frozen):
        images = self.parts.images
        key_chosen, key_noise, key_time = jax.random.split(key, 3)
        tokens, ids, padding, _ = self.prompts.read(batch, key, images.patch_size)
        chosen = self.prompts.chosen(key_chosen, tokens.shape[0], images.num_tokens)
        held = jnp.full(tokens.shape[:2], self.prompts.text.placeholder, ids.dtype)
        end = jnp.full((tokens.shape[0], 1), self.prompts.text.end_image, ids.dtype)
        rows = self.copies * chosen.size
        found = nextstep.training_losses(
            self.parts.host,
            self.parts.head,
            params,
            jnp.concatenate([ids, held, end], axis=1),
            tokens,
            jax.random.normal(key_noise, (rows, images.token_dim)),
            jax.random.normal(key_time, (rows,)),
            padding=padding,
            chosen=chosen,
            weights=(self.text_loss, 1.0),
        )
        return found.total, {"text": found.text, "image": found.image}


@dataclasses.dataclass(frozen=True)
class CausalDriftTask:
    """Drift-AR on NextStep-1: prior, one-step decoder, draft head, two phases (Eq. 3-10).

    The prior is bound to the encodings of single tokens, the field is `energy`: every context has
    one real continuation. E of the first two tokens is 0, so they are their prior's mean, decoded.
    """

    parts: model.Model
    prompts: Prompts
    draws: int
    entropy_loss: str
    alpha_start: float
    freeze_at: float
    steps: int
    guidance_max: float
    tracked: tuple[str, ...] = ("entropy_mean", "entropy_square")

    @property
    def freeze_step(self) -> int:
        return losses.freeze_step(self.steps, self.freeze_at)

    def init(self, key: jax.Array) -> Params:
        parts, (n, c) = self.parts, (1, self.parts.images.token_dim)
        z, x, e = jnp.zeros((1, n, parts.host.width)), jnp.zeros((1, n, c)), jnp.zeros((1, n))
        keys = [jax.random.fold_in(key, i) for i in (2, 3, 4)]
        scale = jnp.ones_like(e) if parts.decoder.guidance else None
        given = x[:, :, None], x, e, z, e, scale
        seen = window.zeros(parts)
        return {
            "host": _init_host(parts, key),
            "prior": parts.prior.init(keys[0], z, e)["params"],
            "decoder": parts.decoder.init(keys[1], *given)["params"],
            "draft": parts.draft.init(keys[2], *seen)["params"],
        }

    def trainable(self, frozen: bool) -> tuple[str, ...]:
        return ("decoder",) if frozen else ("host", "prior", "decoder", "draft")

    def loss(self, params, batch, key, step, frozen):
        images = self.parts.images
        key_chosen, key_eps, key_scale, key_free, key_draft = jax.random.split(key, 5)
        tokens, ids, padding, dropped = self.prompts.read(batch, key, images.patch_size)
        hidden = nextstep_host.encodings(self.parts, params, ids, padding, tokens)
        encoding = nextstep_host.projected(self.parts.host, params["host"], hidden)
        mu, std = self.prior(params, encoding)
        chosen = self.prompts.chosen(key_chosen, tokens.shape[0], images.num_tokens)
        y = _take(tokens, chosen)
        scale = None
        if self.parts.decoder.guidance:
            scale = jnp.broadcast_to(self._scales(key_scale, dropped)[:, None], chosen.shape)
        x = self._draws(params, encoding, mu, std, chosen, key_eps, scale)
        if scale is None:
            field = fields.energy(x, y[:, :, None])
        else:
            free = self._unconditional(params, ids, tokens, padding, chosen, key_free)
            field = fields.guided_energy(x, y[:, :, None], free, scale)
        l_drift = fields.drift_loss(x, field).mean()
        metrics = {
            "drift": l_drift,
            "energy_score": fields.energy_score(x, y).mean(),
            "sigma_mean": std.mean(),
            "entropy_mean": encoding.entropy.mean(),
            "entropy_square": jnp.square(encoding.entropy).mean(),
        }
        if frozen:
            return l_drift, metrics
        l_mu = jnp.sum(jnp.square(mu - tokens), axis=-1).mean()
        draft_terms = self.draft_terms(params, hidden, tokens, key_draft)
        a = losses.alpha(step, self.steps, start=self.alpha_start, freeze_at=self.freeze_at)
        loss = a * sum(draft_terms.values()) + (1 - a) * (l_drift + l_mu)  # Eq. 9
        return loss, metrics | draft_terms | {"mu": l_mu, "alpha": a}

    def prior(self, params: Params, encoding: Encoding):
        """mu `[..., C]` and sigma `[...]` of a projected encoding."""
        return self.parts.prior.apply({"params": params["prior"]}, encoding.z, encoding.entropy)

    def _scales(self, key, dropped):
        """Guidance scale of each image: 1 for three in ten and where the caption is dropped."""
        key_scale, key_none = jax.random.split(key)
        scale = jax.random.uniform(key_scale, dropped.shape, minval=1.0, maxval=self.guidance_max)
        none = jax.random.bernoulli(key_none, _UNGUIDED, dropped.shape)
        return jnp.where(none | dropped, 1.0, scale)

    def _unconditional(self, params, ids, tokens, padding, chosen, key):
        """The decoder's own draws for the same contexts without a caption; nothing learns here."""
        params = jax.lax.stop_gradient(params)
        everywhere = jnp.ones(padding.shape, bool)
        ids, padding = without_caption(self.prompts.text, ids, padding, everywhere)
        encoding = nextstep_host.encodings(self.parts, params, ids, padding, tokens)
        encoding = nextstep_host.projected(self.parts.host, params["host"], encoding)
        mu, std = self.prior(params, encoding)
        return self._draws(params, encoding, mu, std, chosen, key, jnp.ones(chosen.shape))

    def _draws(self, params, encoding, mu, std, chosen, key, scale):
        """G decoded draws `[B, K, G, C]` of every chosen token (Eq. 7, then the decoder)."""
        mu, std = _take(mu, chosen), _take(std, chosen)
        shape = (*mu.shape[:2], self.draws, mu.shape[2])
        eps = of_batch(jax.random.normal(key, shape))
        x0 = entropy.prior_draw(mu[:, :, None], std[:, :, None], eps)
        z, e = _take(encoding.z, chosen), _take(encoding.entropy, chosen)
        return self.parts.decoder.apply({"params": params["decoder"]}, x0, mu, std, z, e, scale)

    def draft_terms(self, params, hidden: Encoding, tokens, key) -> dict[str, jax.Array]:
        """Eq. 3 and the draft's entropy term: token k's encoding from that of token k - 1."""
        batch, num_tokens = tokens.shape[:2]
        count = min(self.prompts.tokens_per_image or num_tokens, num_tokens - 1)
        last = self.prompts.chosen(key, batch, num_tokens - 1)[:, :count]
        hidden = jax.lax.stop_gradient(hidden)
        rows = lambda a: a.reshape(-1, 1, *a.shape[2:])  # noqa: E731
        given = jax.tree.map(lambda a: rows(_take(a, last)), hidden)
        target = jax.tree.map(lambda a: rows(_take(a, last + 1)), hidden)
        seen = window.around(self.parts, tokens, last + 1)
        draft = window.predict(self.parts, params["draft"], given, *map(rows, seen))
        weight = jnp.ones(target.entropy.shape[0], jnp.float32)
        return {
            "draft_reg": losses.draft_regression(draft, target, weight),
            "draft_entropy": losses.draft_entropy(draft, target, weight, self.entropy_loss),
        }


def build(config: Any, parts: model.Model):
    """The task of a checked config whose host is NextStep-1."""
    prompts = Prompts(
        text=parts.images.text,
        drop=config.host.label_drop,
        unknown=config.text.unknown,
        tokens_per_image=config.mask.tokens_per_image,
        mirror=config.data.flip,
    )
    if config.task == "host":
        return CausalTask(parts, prompts, copies=config.head.copies, text_loss=config.text.loss)
    return CausalDriftTask(
        parts,
        prompts,
        draws=config.drift.draws,
        entropy_loss=config.loss.entropy_loss,
        alpha_start=config.loss.alpha_start,
        freeze_at=config.loss.freeze_at,
        steps=config.train.steps,
        guidance_max=config.drift.guidance_max,
    )
