"""Drift-AR on a host that makes single tokens: prior, one-step decoder, draft head (Eq. 3-10).

The prior is bound to the encodings of single tokens, and the field is `energy`: every context has
one real continuation. Or it is `matched`, of a rival: the decoder learns from the own head alone.
How the host meets an image is its own affair (`hosts/contexts.py`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from driftar_jax import entropy, model
from driftar_jax.drift import fields
from driftar_jax.heads import randomness
from driftar_jax.hosts.contexts import Contexts, take, weighted_mean
from driftar_jax.training import losses
from driftar_jax.training.drawn import Drawn
from driftar_jax.training.tokens import tokenise

Params = dict[str, Any]

# Share of the images that learn without guidance, so that a scale of 1 stays the data's own.
_UNGUIDED = 0.3
# A copy of the own head that learns what the decoder draws, and what it begins as.
_FAKE = {"fake": "head"}
# The groups that learn in the first phase, by `drift.backbone`.
_LEARN = {
    "joint": ("host", "prior", "decoder", "draft"),
    "frozen": ("prior", "decoder", "draft"),
    "own_loss": ("host", "head", "prior", "decoder", "draft"),
}


@dataclasses.dataclass(frozen=True)
class OwnHead:
    """What the host's own head gives to Drift-AR, where it stays beside it.

    Attributes:
      copies: times and noises of each token in its loss.
      weight: of its loss; 0: none, and it does not learn.
      positives: P, draws for each chosen token that attract beside the real one.
      share: of the attraction that comes from them, in (0, 1].
      nfe: evaluations of a draw.
      spacing: of the diffusion head's steps.
      temperature: of a draw.
      matched: whether the decoder learns from it by distribution matching, in place of Eq. 8.
      fake_rate: how much larger the fake head's learning rate is than the decoder's.
    """

    copies: int
    weight: float = 0.0
    positives: int = 0
    share: float = 1.0
    nfe: int = 25
    spacing: str = "trimmed"
    temperature: float = 1.0
    matched: bool = False
    fake_rate: float = 1.0


@dataclasses.dataclass(frozen=True)
class DriftTask(Drawn):
    """Task `drift` of hosts that make single tokens, in two phases.

    Attributes:
      contexts: how the host meets images.
      draws: G, of the decoder for each token.
      entropy_loss: of `losses.draft_entropy`.
      alpha_start: alpha of Eq. 9 at step 0.
      freeze_at: share of the run after which the decoder alone learns.
      steps: length of the run.
      guidance_max: largest scale that the decoder learns; 1: none.
      entropy_gradient: whether the drift shapes the entropy that it reads.
      backbone: of `fields.BACKBONES`: whether the host learns, and from what.
      repulsion: weight of the repulsive part of the field at step 0.
      repulsion_schedule: of `losses.repulsion`.
      own: the own head beside the one-step head; None: there is none.
      mirror: of latents; pixels were mirrored when they were read.
    """

    contexts: Contexts
    draws: int
    entropy_loss: str
    alpha_start: float
    freeze_at: float
    steps: int
    guidance_max: float = 1.0
    entropy_gradient: bool = True
    backbone: str = "joint"
    repulsion: float = 1.0
    repulsion_schedule: str = "constant"
    own: OwnHead | None = None
    mirror: bool = False
    tracked: tuple[str, ...] = ("entropy_mean", "entropy_square")

    @property
    def parts(self):
        """Return the modules of the run."""
        return self.contexts.model

    @property
    def freeze_step(self) -> int:
        """Return the first step of Phase II."""
        return losses.freeze_step(self.steps, self.freeze_at)

    def init(self, key: jax.Array) -> Params:
        """See `Task.init`."""
        made = model.init(self.parts, key)
        return made | {name: made[source] for name, source in self.aside.items()}

    @property
    def matched(self) -> bool:
        """Say whether the field is that of distribution matching."""
        return self.own is not None and self.own.matched

    @property
    def aside(self) -> dict[str, str]:
        """Return the groups that training alone needs, and which group each begins as."""
        return _FAKE if self.matched else {}

    @property
    def rates(self) -> dict[str, float]:
        """Return the groups whose learning rate is so many times the run's."""
        return dict.fromkeys(self.aside, self.own.fake_rate) if self.aside else {}

    @property
    def stays(self) -> tuple[str, ...]:
        """Return the groups of a checkpoint that never learn: they have no moments."""
        kept = ("host",) if self.parts.head is None else ("host", "head")
        return tuple(name for name in kept if name not in _LEARN[self.backbone])

    def trainable(self, frozen: bool) -> tuple[str, ...]:
        """See `Task.trainable`: all that learns of the backbone's kind, then the decoder alone.

        What it is compared by follows it in both phases.
        """
        return (*(("decoder",) if frozen else _LEARN[self.backbone]), *self.aside)

    def draw(self, batch, key, frozen):
        """See `Drawn.draw`: contexts, and the noise of every draw of their tokens."""
        images, keys = self.parts.images, self.contexts.keys(key)
        tokens = tokenise(batch, key, patch_size=images.patch_size, mirror=self.mirror)
        rows = self.contexts.draw(key, tokens, batch)
        shape = (*rows["positions"].shape, self.draws, images.token_dim)
        # Drawn here for the whole batch and not in `terms`: micro-batches then see the noise that
        # the whole batch would have seen.
        rows["eps"] = jax.random.normal(keys["eps"], shape, dtype=jnp.float32)
        rows["prior_keys"] = jax.random.split(keys["prior"], len(tokens))
        if self.parts.decoder.guidance:
            rows["scale"] = self._scales(keys["scale"], self.contexts.unguided(rows))
            # Noise of their own: `u` stands for independent samples, and made from the draws' noise
            # it would be tied to them.
            rows["free_keys"] = jax.random.split(keys["free_prior"], len(tokens))
            rows["free_eps"] = jax.random.normal(keys["free_eps"], shape, dtype=jnp.float32)
        totals = {
            "chosen": jnp.sum(rows["weight"]),
            "counted": jnp.sum(self.contexts.counted(rows)),
            "rounds": losses.at_least_one(self.contexts.weights(rows, 1)[0]),
        }
        if self.own and self.own.positives:
            rows["own_keys"] = jax.random.split(jax.random.fold_in(key, 6), len(tokens))
        if self.matched:
            rows |= self.contexts.draw_matched(jax.random.fold_in(key, 7), rows, self.draws)
        if self.own and self.own.weight and not frozen:
            # Folded: the keys of the step itself have made the draws above.
            key_own = jax.random.fold_in(key, 5)
            more, totals["own"] = self.contexts.draw_head(key_own, rows, self.own.copies)
            rows |= more
        return rows, totals

    def terms(self, params, rows, totals, key, step, frozen):
        """See `Drawn.terms`: the drift loss of the contexts' tokens, and the losses beside it."""
        contexts, tokens, positions = self.contexts, rows["tokens"], rows["positions"]
        # A backbone that stays is read as in sampling: without dropout.
        stays = frozen or self.backbone == "frozen"
        dropout_key = None if stays else contexts.keys(key)["dropout"]
        # Two names of one call: `own` may lose its entropy's gradient below, and the own head's
        # loss reads `first`, which keeps it.
        own = first = contexts.encode(params, rows, dropout_key)
        if not self.entropy_gradient:
            # The drift still reads the entropy, and no longer shapes it.
            own = own.replace(entropy=jax.lax.stop_gradient(own.entropy))
        encoding = contexts.read(params, own)
        # Of all tokens, for `l_mu` and the statistics run over more of them than the head is
        # trained on.
        mu, std = self._prior(params, encoding, rows["prior_keys"])
        y, scale = take(tokens, positions), None
        if self.parts.decoder.guidance:
            scale = jnp.broadcast_to(rows["scale"][:, None], positions.shape)
        x = self._draws(params, encoding, mu, std, positions, rows["eps"], scale)
        field = self._field(params, rows, encoding, x, y, scale, step)

        def over_chosen(values):
            return weighted_mean(values, rows["weight"], totals["chosen"])

        def over_counted(values):
            return weighted_mean(values, contexts.counted(rows), totals["counted"])

        l_drift = over_chosen(fields.drift_loss(x, field).mean(axis=-1))
        metrics = {
            "drift": l_drift,
            "energy_score": over_chosen(fields.energy_score(x, y)),
            "sigma_mean": over_counted(std),
            "entropy_mean": over_counted(encoding.entropy),
            "entropy_square": over_counted(jnp.square(encoding.entropy)),
        }
        beside = 0.0
        if self.matched:
            # The decoder is no part of it: the draws are its data.
            data = jax.lax.stop_gradient((encoding, x))
            beside = over_chosen(contexts.fake_losses(params, rows, *data))
            metrics["fake"] = beside
        if frozen:
            return l_drift + beside, metrics
        # The mean alone has to point at the token: the drift only sees where draws end up.
        l_mu = over_counted(jnp.sum(jnp.square(mu - tokens), axis=-1))
        draft_terms = self._draft_terms(params, own, rows, totals["rounds"])
        # A traced step, so that the falling weight needs no new compilation.
        a = losses.alpha(step, self.steps, start=self.alpha_start, freeze_at=self.freeze_at)
        loss = a * sum(draft_terms.values()) + (1 - a) * (l_drift + l_mu)  # Eq. 9
        loss += beside
        metrics |= draft_terms | {"mu": l_mu, "alpha": a}
        if self.own and self.own.weight:
            # Outside of Eq. 9: alpha falls to 0, and what the host learns from its own head does
            # not.
            l_own, _ = contexts.own_terms(params, rows, totals["own"], key, encoding=first)
            return loss + self.own.weight * l_own, metrics | {"own": l_own}
        return loss, metrics

    def _field(self, params, rows, encoding, x, y, scale, step):
        """Return the field at draws `x [B, M, G, C]` of tokens `y [B, M, C]` (Eq. 8)."""
        if self.matched:
            fixed, encoding, x = jax.lax.stop_gradient((params, encoding, x))
            return fields.matched(x, *self.contexts.clean_pair(fixed, rows, encoding, x))
        rho = losses.repulsion(
            step, self.steps, start=self.repulsion, schedule=self.repulsion_schedule
        )

        def of_real():
            # Each token has G draws and one real value: the field pulls to it and pushes them
            # apart.
            if scale is None:
                return fields.energy(x, y[:, :, None], repulsion=rho)
            free = self._unconditional(params, rows)
            return fields.guided_energy(x, y[:, :, None], free, scale, repulsion=rho)

        if not (self.own and self.own.positives):
            return of_real()
        drawn = self._own_draws(params, rows, encoding, scale)
        field, share = fields.energy(x, drawn, repulsion=rho), self.own.share
        # Linear in the data: a mixture of targets has the mixture of their fields.
        return field if share == 1 else share * field + (1 - share) * of_real()

    def _own_draws(self, params, rows, encoding, scale):
        """Return P draws of the own head `[B, M, P, C]` for the chosen tokens; nothing learns."""
        # They stand on the data's side of the field, where real tokens have no gradient either.
        params, encoding = jax.lax.stop_gradient((params, encoding))
        positions, parts = rows["positions"], self.parts
        count = self.own.positives

        def features(encoding):
            z = take(encoding.z, positions)[:, :, None]
            return jnp.broadcast_to(z, (*z.shape[:2], count, z.shape[-1])).reshape(-1, z.shape[-1])

        guided = {}
        if scale is not None:
            free = self.contexts.encode(params, self.contexts.without_condition(rows), None)
            each = jnp.broadcast_to(scale[:, :, None], (*positions.shape, count))
            guided = {"guidance": each.reshape(-1, 1), "z_uncond": features(free)}
        # A key for each draw of an image, from the image's own: parts of a batch then see the noise
        # that all of it would have seen.
        number = positions.shape[1] * count
        keys = jax.vmap(lambda k: jax.random.split(k, number))(rows["own_keys"]).reshape(-1)
        channels = parts.images.token_dim
        x = parts.family.own_draws(
            parts,
            self.own,
            params,
            features(encoding),
            lambda draw: randomness.normal(keys, draw, channels),
            **guided,
        )
        return x.reshape(*positions.shape, count, channels)

    def _prior(self, params, encoding, keys):
        return self.parts.prior.apply(
            {"params": params["prior"]}, encoding.z, encoding.entropy, keys
        )

    def _scales(self, key, unguided):
        """Draw the guidance scale of each image: 1 for three in ten and without a condition."""
        key_scale, key_none = jax.random.split(key)
        shape, most = unguided.shape, self.guidance_max
        scale = jax.random.uniform(key_scale, shape, minval=1.0, maxval=most, dtype=jnp.float32)
        # An image that lost its condition has nothing to be pushed away from: its scale is 1 as
        # well.
        none = jax.random.bernoulli(key_none, jnp.float32(_UNGUIDED), shape)
        return jnp.where(none | unguided, 1.0, scale)

    def _unconditional(self, params, rows):
        """Return the decoder's own draws without a condition; nothing learns here."""
        # Samples of the field, which has no gradient: stopped here, they cost no backward pass.
        params, contexts = jax.lax.stop_gradient(params), self.contexts
        encoding = contexts.encode(params, contexts.without_condition(rows), None)
        encoding = contexts.read(params, encoding)
        mu, std = self._prior(params, encoding, rows["free_keys"])
        positions, plain = rows["positions"], jnp.ones(rows["positions"].shape)
        return self._draws(params, encoding, mu, std, positions, rows["free_eps"], plain)

    def _draws(self, params, encoding, mu, std, positions, eps, scale):
        """Return G decoded draws `[B, M, G, C]` of every chosen token (Eq. 7, then the decoder)."""
        mu, std = take(mu, positions), take(std, positions)
        x0 = entropy.prior_draw(mu[:, :, None], std[:, :, None], eps)
        z, e = take(encoding.z, positions), take(encoding.entropy, positions)
        return self.parts.decoder.apply({"params": params["decoder"]}, x0, mu, std, z, e, scale)

    def _draft_terms(self, params, own, rows, total):
        """Return Eq. 3 and the draft's entropy term, one AR step ahead of the batch's contexts."""
        # The batch's own encoding is the first target: one more backbone call encodes the next
        # context.
        last, target = self.contexts.targets(params, rows, 1, first=own)
        draft = self.contexts.predict(params, last, rows, 1)
        weight = self.contexts.weights(rows, 1)[0]
        kind = self.entropy_loss
        return {
            "draft_reg": losses.draft_regression(draft, target, weight, total),
            "draft_entropy": losses.draft_entropy(draft, target, weight, kind, total),
        }


def build(config: Any, contexts: Contexts) -> DriftTask:
    """Return the task of a checked config of task `drift` or `draft`."""
    return DriftTask(
        contexts,
        draws=config.drift.draws,
        entropy_loss=config.loss.entropy_loss,
        alpha_start=config.loss.alpha_start,
        freeze_at=config.loss.freeze_at,
        steps=config.train.steps,
        # Not in configs of older runs.
        guidance_max=config.drift.get("guidance_max", 1.0),
        entropy_gradient=config.drift.get("entropy_gradient", True),
        backbone=config.drift.get("backbone", "joint"),
        repulsion=config.drift.get("repulsion", 1.0),
        repulsion_schedule=config.drift.get("repulsion_schedule", "constant"),
        own=_own_head(config, contexts),
        mirror=config.data.flip,
    )


def _own_head(config: Any, contexts: Contexts) -> OwnHead | None:
    """Return what the own head gives, where the run has it."""
    if contexts.model.head is None:
        return None
    drift = config.drift
    return OwnHead(
        copies=config.head.copies,
        weight=drift.get("own_weight", 1.0) if drift.backbone == "own_loss" else 0.0,
        positives=drift.get("own_positives", 0),
        share=drift.get("own_share", 1.0),
        nfe=drift.get("own_steps", 25),
        spacing=config.sample.spacing,
        matched=drift.field == "dmd",
        fake_rate=drift.get("fake_rate", 1.0),
    )
