"""The draft head alone, taught by a trained Drift-AR checkpoint that does not move.

Contexts are those that sampling meets, one AR step after the other. The head sees the teacher's
encoding once and then its own predictions, as it does in a round of drafts.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from driftar_jax import model
from driftar_jax.hosts.contexts import Contexts
from driftar_jax.training import losses
from driftar_jax.training.drawn import Drawn
from driftar_jax.training.tokens import tokenise

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class DraftTask(Drawn):
    """Task `draft`: only the draft head learns.

    Attributes:
      contexts: how the host meets images.
      unroll: AR steps ahead that the head predicts, each from its last prediction.
      prior: weight of the divergence between the target's and the drafted prior, per channel.
      entropy_loss: of `losses.draft_entropy`.
      mirror: of latents; pixels were mirrored when they were read.
    """

    contexts: Contexts
    unroll: int
    prior: float
    entropy_loss: str
    mirror: bool = False
    freeze_step: None = None
    tracked: tuple[str, ...] = ("entropy_mean", "entropy_square")

    @property
    def parts(self):
        """Return the modules of the run."""
        return self.contexts.model

    def init(self, key: jax.Array) -> Params:
        """See `Task.init`."""
        return model.init(self.parts, key)

    def trainable(self, frozen: bool) -> tuple[str, ...]:
        """See `Task.trainable`: the draft head alone."""
        return ("draft",)

    def draw(self, batch, key, frozen):
        """See `Drawn.draw`: a context for every round of drafts, and what they are weighed by."""
        patch_size = self.parts.images.patch_size
        tokens = tokenise(batch, key, patch_size=patch_size, mirror=self.mirror)
        rows = self.contexts.draw_rounds(key, tokens, batch, self.unroll)
        # MAR's contexts take the other parts of this split.
        rows["prior_keys"] = jax.random.split(jax.random.split(key, 4)[3], len(tokens))
        weights = [self.contexts.weights(rows, ahead) for ahead in self._ahead]
        return rows, {
            "rounds": [losses.at_least_one(rounds) for rounds, _ in weights],
            "tokens": [losses.at_least_one(tokens) for _, tokens in weights],
        }

    @property
    def _ahead(self) -> range:
        return range(1, self.unroll + 1)

    def terms(self, params, rows, totals, key, step, frozen):
        """See `Drawn.terms`: errors of features and entropy, and the prior's, over the rounds."""
        contexts = self.contexts
        targets = contexts.targets(params, rows, self.unroll)
        terms = {"draft_reg": 0.0, "draft_entropy": 0.0, "draft_prior": 0.0}
        last, kind = targets[0], self.entropy_loss
        for ahead in self._ahead:
            target = targets[ahead]
            # From its own last prediction, as in a round of drafts, where errors add up.
            last = contexts.predict(params, last, rows, ahead)
            weight, unknown = contexts.weights(rows, ahead)
            rounds, tokens = totals["rounds"][ahead - 1], totals["tokens"][ahead - 1]
            terms["draft_reg"] += losses.draft_regression(last, target, weight, rounds)
            terms["draft_entropy"] += losses.draft_entropy(last, target, weight, kind, rounds)
            # Drafts are judged by their priors: what these do not read may differ.
            priors = [self._prior(params, e, rows["prior_keys"]) for e in (last, target)]
            terms["draft_prior"] += losses.prior_divergence(*priors, unknown, tokens)
        terms = {name: value / self.unroll for name, value in terms.items()}
        loss = terms["draft_reg"] + terms["draft_entropy"] + self.prior * terms["draft_prior"]
        # Of the target in all positions: what the early stop of sampling is held against.
        entropy = jnp.stack([target.entropy for target in targets])
        tracked = {"entropy_mean": entropy.mean(), "entropy_square": jnp.square(entropy).mean()}
        return loss, terms | tracked

    def _prior(self, params, encoding, keys):
        encoding = self.contexts.read(params, encoding)
        return self.parts.prior.apply(
            {"params": params["prior"]}, encoding.z, encoding.entropy, keys
        )


def build(config: Any, contexts: Contexts) -> DraftTask:
    """Return the task of a checked config of task `draft`."""
    return DraftTask(
        contexts,
        unroll=config.teacher.unroll,
        prior=config.teacher.prior,
        entropy_loss=config.loss.entropy_loss,
        mirror=config.data.flip,
    )
