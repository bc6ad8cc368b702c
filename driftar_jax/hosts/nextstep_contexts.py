"""The contexts in which NextStep-1 is trained: captions, and its published loss.

Head, prior and decoder read encodings through `image_out_projector`, as they do in sampling.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from driftar_jax.data import captions
from driftar_jax.data.pixels import patchify, to_unit_range
from driftar_jax.hosts import nextstep_encodings, nextstep_own
from driftar_jax.hosts.causal_contexts import CausalContexts
from driftar_jax.hosts.contexts import Rows, by_image
from driftar_jax.types import Encoding

# Weights of text and image in the published loss (released training code of NextStep-1).
LOSS_WEIGHTS = (0.01, 1.0)


@dataclasses.dataclass(frozen=True)
class CaptionContexts(CausalContexts):
    """`Contexts` of NextStep-1.

    Attributes:
      drop: share of the images that lose their caption.
      unknown: share of the words that become `[UNK]`.
      noise: largest standard deviation of the noise on tokens as the backbone reads them.
    """

    drop: float
    unknown: float
    noise: float = 0.0

    @property
    def text(self):
        """Return the ids and lengths of the data."""
        return self.model.images.text

    def conditions(self, key, batch):
        """See `CausalContexts.conditions`: `ids [B, P]` and `padding [B]`."""
        key_drop, key_unknown = jax.random.split(jax.random.fold_in(key, 65))
        padding, ids = batch["text"][:, 0], batch["text"][:, 1:]
        words = jnp.arange(ids.shape[1]) < self.text.length
        words = words[None] & (jnp.arange(ids.shape[1])[None] >= padding[:, None])
        if self.text.source:
            words &= ~self._of_source(ids)
        # Some words are hidden, or `[UNK]` would never be trained and mean nothing to a new prompt.
        hidden = jax.random.bernoulli(key_unknown, jnp.float32(self.unknown), ids.shape)
        ids = jnp.where(words & hidden, self.text.unknown, ids)
        dropped = jax.random.bernoulli(key_drop, jnp.float32(self.drop), padding.shape)
        rows = {"ids": ids, "padding": padding, "dropped": dropped}
        if self.text.source:
            rows = self._without_words(jax.random.fold_in(key_drop, 1), rows)
            pixels = to_unit_range(batch["source"])
            rows["source"] = patchify(pixels, self.model.images.patch_size)
        return self._without_caption(rows)

    def _of_source(self, ids) -> jax.Array:
        """Return which `[B, P]` belong to the source image of a prompt, its size and its marks."""
        first = jnp.argmax(ids == self.text.placeholder, axis=1) - len(self.text.suffix)
        place = jnp.arange(ids.shape[1])[None] - first[:, None]
        return (place >= 0) & (place < len(self.text.source_ids))

    def _without_words(self, key, rows):
        """Return rows of which a share has a source image alone, which guidance asks for."""
        alone = jnp.asarray(captions.source_alone(self.text))
        wordless = jax.random.bernoulli(key, jnp.float32(self.drop), rows["padding"].shape)
        ids = jnp.where(wordless[:, None], alone[None, 1:], rows["ids"])
        return rows | {"ids": ids, "padding": jnp.where(wordless, alone[0], rows["padding"])}

    def _without_caption(self, rows):
        """Return rows whose `dropped [B]` images have no caption."""
        ids, dropped = rows["ids"], rows["dropped"]
        caption = (jnp.arange(ids.shape[1]) < self.text.length)[None] & dropped[:, None]
        # A dropped caption is all padding and not an empty text: the size and the begin-of-image
        # mark stay.
        padding = jnp.where(dropped, self.text.length, rows["padding"])
        return rows | {"ids": jnp.where(caption, self.text.pad, ids), "padding": padding}

    def without_condition(self, rows):
        """See `Contexts.without_condition`."""
        everywhere = jnp.ones_like(rows["dropped"])
        return self._without_caption(rows | {"dropped": everywhere})

    def draw(self, key, tokens, batch):
        """See `Contexts.draw`."""
        return super().draw(key, tokens, batch) | self._shaken(key, tokens)

    def _shaken(self, key, tokens) -> Rows:
        """Return `read`, the tokens `[B, N, C]` as contexts show them; nothing without noise.

        What is to be made stays clean. Sampling reads clean tokens: the strength is drawn for each
        image from 0 on, so that those stay in what the backbone knows.
        """
        if not self.noise:
            return {}
        key_strength, key_noise = jax.random.split(jax.random.fold_in(key, 67))
        strength = jax.random.uniform(
            key_strength, (len(tokens), 1, 1), dtype=jnp.float32, maxval=self.noise
        )
        return {
            "read": tokens
            + strength * jax.random.normal(key_noise, tokens.shape, dtype=jnp.float32)
        }

    def encode(self, params, rows, dropout_key) -> Encoding:
        """See `Contexts.encode`; this host drops nothing out."""
        ids, padding = rows["ids"], rows["padding"]
        tokens = rows.get("read", rows["tokens"])
        source = rows.get("source")
        return nextstep_encodings.encodings(self.model, params, ids, padding, tokens, source)

    def read(self, params, encoding) -> Encoding:
        """Return the encoding through the host's projector."""
        return nextstep_encodings.projected(self.model.host, params["host"], encoding)

    def draw_own(self, key, tokens, batch, copies):
        """See `Contexts.draw_own`."""
        key_chosen, key_noise, key_time = jax.random.split(key, 3)
        rows = self.conditions(key, batch) | {"tokens": tokens} | self._shaken(key, tokens)
        rows["positions"] = self.chosen(key_chosen, *tokens.shape[:2])
        shape = (copies, *rows["positions"].shape)
        flat = (rows["positions"].size * copies, tokens.shape[2])
        noise = jax.random.normal(key_noise, flat, dtype=jnp.float32)
        u = jax.random.normal(key_time, flat[:1], dtype=jnp.float32)
        rows["noise"], rows["u"] = by_image(noise.reshape(*shape, -1)), by_image(u.reshape(shape))
        return rows, {"words": self._words(rows)}

    def _words(self, rows) -> jax.Array:
        """Return how many positions the text loss counts: prompts without their padding.

        All ids but the first follow one of them, and so does the end of the image. Tokens of source
        images are no words.
        """
        count = jnp.sum(rows["ids"].shape[1] - rows["padding"])
        if self.text.source:
            count -= jnp.sum(rows["ids"] == self.text.placeholder)
        return count.astype(jnp.float32)

    def own_terms(self, params, rows, totals, key):
        """See `Contexts.own_terms`: flow matching and a little text loss, as published."""
        ids, tokens = rows["ids"], rows["tokens"]
        held = jnp.full(tokens.shape[:2], self.text.placeholder, ids.dtype)
        # The end of the image is a word that the text loss sees: the model learns that it follows
        # the last token.
        end = jnp.full((len(ids), 1), self.text.end_image, ids.dtype)
        noise, u = by_image(rows["noise"]), by_image(rows["u"])
        read, before = rows.get("read"), None
        if self.text.source:
            edited = (ids == self.text.placeholder).any(axis=1)
            shown = tokens if read is None else read
            read, before = nextstep_encodings.with_sources(edited, rows["source"], shown)
        losses = nextstep_own.training_losses(
            self.model.host,
            self.model.head,
            params,
            jnp.concatenate([ids, held, end], axis=1),
            tokens,
            noise.reshape(-1, noise.shape[-1]),
            u.reshape(-1),
            padding=rows["padding"],
            chosen=rows["positions"],
            read=read,
            before=before,
            weights=LOSS_WEIGHTS,
        )
        # A mean over words of the whole batch, also where these rows are a part of it.
        text = losses.text * (self._words(rows) / totals["words"])
        loss = LOSS_WEIGHTS[0] * text + LOSS_WEIGHTS[1] * losses.image
        return loss, {"text": text, "image": losses.image}


def contexts(config: Any, model: Any) -> CaptionContexts:
    """Return the contexts of a checked config."""
    return CaptionContexts(
        model,
        tokens_per_image=config.mask.tokens_per_image,
        drop=config.host.label_drop,
        unknown=config.text.unknown,
        # Not in configs of older runs; drafts learn of a host that is trained already.
        noise=0.0 if config.task == "draft" else config.host.get("context_noise", 0.0),
    )
