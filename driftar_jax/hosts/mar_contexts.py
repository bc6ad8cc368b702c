"""The contexts in which MAR is trained: some tokens are known, in any order, and a class."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from driftar_jax.heads import diffusion
from driftar_jax.hosts import masks as mask_laws
from driftar_jax.hosts.contexts import Params, Rows, Totals, by_image, take, weighted_mean
from driftar_jax.hosts.mar import RATIO_MIN
from driftar_jax.hosts.masks import Masks
from driftar_jax.hosts.schedules import cosine_counts
from driftar_jax.layers.dense import of_batch
from driftar_jax.types import Encoding

# Times of the process, as shares of it, at which draws are compared (DMD, arXiv 2311.18828): hardly
# any noise, and nothing but noise, would tell little of them.
_MATCHED = (0.02, 0.98)


@dataclasses.dataclass(frozen=True)
class MaskedContexts:
    """`Contexts` (`contexts.py`) of a host whose tokens come in any order, under a class.

    Attributes:
      model: modules of the run.
      law: of `mar.LAWS`.
      tokens_per_image: M, unknown tokens per image whose head is trained; 0: all of them.
      label_drop: share of the images that learn without a label.
      ar_steps: of sampling; how far apart two contexts of a round are.
    """

    model: Any
    law: str
    tokens_per_image: int
    label_drop: float
    ar_steps: int

    @property
    def _kept(self) -> int | None:
        """Known tokens the encoder has to hold where the law bounds them; None: all positions."""
        return int((1 - RATIO_MIN) * self.model.images.num_tokens) if self.law == "mar" else None

    def keys(self, key):
        """See `Contexts.keys`."""
        # The order in which keys are split decides every draw of a run: stored runs resume on it.
        _, dropout, eps, prior = jax.random.split(key, 4)
        scale, free = jax.random.split(jax.random.fold_in(key, 4))
        free_prior, free_eps = jax.random.split(free)
        return {
            "dropout": dropout,
            "eps": eps,
            "prior": prior,
            "scale": scale,
            "free_prior": free_prior,
            "free_eps": free_eps,
        }

    def draw(self, key, tokens, batch) -> Rows:
        """See `Contexts.draw`: masks by the law, labels of which some are dropped."""
        key_mask, key_drop = jax.random.split(jax.random.split(key, 4)[0])
        size, num_tokens = tokens.shape[:2]
        masks = mask_laws.draw(key_mask, size, num_tokens, law=self.law, ratio_min=RATIO_MIN)
        # The head is dear and its tokens many: a few of them stand for all, weighted without bias.
        positions, weight = mask_laws.some_unknown(masks, self.tokens_per_image or num_tokens)
        return {
            "tokens": tokens,
            "masks": masks,
            "label": self._labels(key_drop, batch["label"]),
            "positions": positions,
            "weight": weight,
            "rounds": [masks, mask_laws.advance(masks, self.ar_steps)],
        }

    def _labels(self, key, label):
        """Return labels `[B]`, -1 where they are dropped."""
        dropped = jax.random.bernoulli(key, jnp.float32(self.label_drop), label.shape)
        return jnp.where(dropped, -1, label)

    def counted(self, rows):
        """See `Contexts.counted`: unknown tokens."""
        return (~rows["masks"].known).astype(jnp.float32)

    def unguided(self, rows):
        """See `Contexts.unguided`."""
        return rows["label"] < 0

    def without_condition(self, rows):
        """See `Contexts.without_condition`."""
        return rows | {"label": jnp.full_like(rows["label"], -1)}

    def encode(self, params, rows, dropout_key) -> Encoding:
        """See `Contexts.encode`."""
        return self.model.host.apply(
            {"params": params["host"]},
            rows["tokens"],
            rows["masks"].known,
            rows["label"],
            keep=self._kept,
            deterministic=dropout_key is None,
            rngs=None if dropout_key is None else {"dropout": dropout_key},
        )

    def read(self, params, encoding):
        """Return the encoding as it is."""
        return encoding

    def draw_rounds(self, key, tokens, batch, steps) -> Rows:
        """See `Contexts.draw_rounds`: one generation order per image, AR steps one apart."""
        key_drop, key_order, key_step, _ = jax.random.split(key, 4)
        rounds = self.rounds(key_order, key_step, len(tokens), steps)
        label = self._labels(key_drop, batch["label"])
        return {"tokens": tokens, "label": label, "rounds": rounds}

    def rounds(self, key_order, key_step, size: int, steps: int) -> list[Masks]:
        """Draw `steps + 1` contexts per image, AR steps apart; the last one may be repeated."""
        num_tokens = self.model.images.num_tokens
        known = jnp.cumsum(jnp.asarray((0, *cosine_counts(num_tokens, self.ar_steps))))
        order = jax.vmap(lambda k: jax.random.permutation(k, num_tokens))(
            jax.random.split(key_order, size)
        )
        rank = jnp.argsort(order, axis=-1)
        # Each AR step is equally likely to begin a round; only the last has none after it.
        first = jax.random.randint(key_step, (size,), 0, max(self.ar_steps - 1, 1), dtype=jnp.int32)
        last = self.ar_steps - 1
        return [
            Masks(order, rank, num_tokens - known[jnp.minimum(first + ahead, last)])
            for ahead in range(steps + 1)
        ]

    def targets(self, params: Params, rows: Rows, steps: int, first: Encoding | None = None):
        """See `Contexts.targets`: all contexts that are not encoded yet, from one call."""
        rounds = rows["rounds"][: steps + 1] if first is None else rows["rounds"][1 : steps + 1]
        times = len(rounds)
        encoding = self.model.host.apply(
            {"params": params["host"]},
            # All contexts in one call, stacked on the batch: attention is bidirectional, none
            # contains another.
            jnp.concatenate([rows["tokens"]] * times),
            jnp.concatenate([masks.known for masks in rounds]),
            jnp.concatenate([rows["label"]] * times),
        )
        stacked = jax.tree.map(lambda a: a.reshape(times, -1, *a.shape[1:]), encoding)
        encodings = [jax.tree.map(lambda a, i=i: a[i], stacked) for i in range(times)]
        return jax.lax.stop_gradient(encodings if first is None else [first, *encodings])

    def predict(self, params, last, rows, ahead) -> Encoding:
        """See `Contexts.predict`: the head sees all tokens of the context it guesses."""
        # The context to be guessed, not the one that `last` saw: its new tokens are what the head
        # goes by.
        known = rows["rounds"][ahead].known
        return self.model.draft.apply({"params": params["draft"]}, last, rows["tokens"], known)

    def weights(self, rows, ahead):
        """See `Contexts.weights`: rounds whose context is another than the one before."""
        before, now = rows["rounds"][ahead - 1], rows["rounds"][ahead]
        weight = (now.num_unknown < before.num_unknown).astype(jnp.float32)
        return weight, weight[:, None] * (~now.known)

    def draw_own(self, key, tokens, batch, copies) -> tuple[Rows, Totals]:
        """See `Contexts.draw_own`."""
        rows = self.draw(key, tokens, batch)
        del rows["rounds"]
        more, totals = self.draw_head(key, rows, copies)
        return rows | more, totals

    def draw_head(self, key, rows, copies) -> tuple[Rows, Totals]:
        """See `Contexts.draw_head`."""
        _, _, key_time, key_noise = jax.random.split(key, 4)
        channels = rows["tokens"].shape[2]
        # One condition serves all copies of a token; only its time and noise differ.
        shape = (copies, *rows["positions"].shape)
        t = jax.random.randint(key_time, shape, 0, diffusion.TRAIN_STEPS, dtype=jnp.int32)
        noise = jax.random.normal(key_noise, (*shape, channels), dtype=jnp.float32)
        return {"t": by_image(t), "noise": by_image(noise)}, {
            "chosen": jnp.sum(jnp.broadcast_to(rows["weight"][None], shape)),
            "unknown": jnp.sum(self.counted(rows)),
        }

    def own_terms(self, params, rows, totals, key, encoding=None):
        """See `Contexts.own_terms`: the diffusion head's loss (mar.md section 4.3)."""
        head, positions = self.model.head, rows["positions"]
        if encoding is None:
            encoding = self.encode(params, rows, self.keys(key)["dropout"])
        x = take(rows["tokens"], positions)
        # Once per token: the copies differ in time and noise and share it by an axis of size 1.
        c = head.apply({"params": params["head"]}, take(encoding.z, positions), method="condition")
        t, noise = by_image(rows["t"]), by_image(rows["noise"])

        def denoise(x_t, t):
            x_t, t = of_batch(x_t, 1), of_batch(t, 1)
            return head.apply({"params": params["head"]}, x_t, t, c[None], method="denoise")

        schedule = diffusion.training_schedule()
        target = jnp.broadcast_to(x[None], noise.shape)
        losses = diffusion.head_loss(denoise, schedule, target, t, noise)
        weight = jnp.broadcast_to(rows["weight"][None], losses.shape)
        entropy_mean = weighted_mean(encoding.entropy, self.counted(rows), totals["unknown"])
        loss = weighted_mean(losses, weight, totals["chosen"])
        return loss, {"entropy_mean": entropy_mean}

    def draw_matched(self, key, rows, draws) -> Rows:
        """See `Contexts.draw_matched`: one time for all draws of a token that are compared."""
        key_time, key_noise, key_fake, key_more = jax.random.split(key, 4)
        places, channels = rows["positions"].shape, rows["tokens"].shape[2]
        shape, steps = (*places, draws), diffusion.TRAIN_STEPS
        low, high = (round(share * steps) for share in _MATCHED)
        return {
            "matched_t": jax.random.randint(key_time, places, low, high + 1, dtype=jnp.int32),
            "matched_noise": jax.random.normal(key_noise, (*shape, channels), dtype=jnp.float32),
            "fake_t": jax.random.randint(key_fake, shape, 0, steps, dtype=jnp.int32),
            "fake_noise": jax.random.normal(key_more, (*shape, channels), dtype=jnp.float32),
        }

    def clean_pair(self, params, rows, encoding, x):
        """See `Contexts.clean_pair`."""
        schedule, t = diffusion.training_schedule(), rows["matched_t"][..., None]
        x_t = diffusion.add_noise(schedule, x, t, rows["matched_noise"])

        def clean(group):
            denoise = self._denoiser(params[group], encoding, rows["positions"])
            return diffusion.predict(schedule, t, x_t, *denoise(x_t, t)).clean

        return clean("head"), clean("fake")

    def fake_losses(self, params, rows, encoding, x):
        """See `Contexts.fake_losses`: of one time and noise for each draw."""
        denoise = self._denoiser(params["fake"], encoding, rows["positions"])
        schedule = diffusion.training_schedule()
        losses = diffusion.head_loss(denoise, schedule, x, rows["fake_t"], rows["fake_noise"])
        return losses.mean(axis=-1)

    def _denoiser(self, params, encoding, positions) -> diffusion.Denoiser:
        """Return `(x_t [B, M, G, C], t) -> (eps, v)` for the chosen tokens."""
        head, variables = self.model.head, {"params": params}
        c = head.apply(variables, take(encoding.z, positions), method="condition")[:, :, None]
        return lambda x_t, t: head.apply(variables, x_t, t, c, method="denoise")


def contexts(config: Any, model: Any) -> MaskedContexts:
    """Return the contexts of a checked config."""
    return MaskedContexts(
        model,
        law=config.mask.law,
        tokens_per_image=config.mask.tokens_per_image,
        label_drop=config.host.label_drop,
        ar_steps=config.sample.ar_steps,
    )
