"""The draft head alone, taught by a trained Drift-AR checkpoint that does not move.

Contexts are those that sampling meets: one image's generation order, AR steps one apart. The head
sees the teacher's encoding once and then its own predictions, as it does in a round of drafts.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from driftar_jax.hosts.masks import Masks
from driftar_jax.hosts.schedules import cosine_counts
from driftar_jax.training import losses
from driftar_jax.training.drawn import Drawn
from driftar_jax.training.tokens import tokenise

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class DraftTask(Drawn):
    """Task `draft`: only the draft head learns.

    Attributes:
      teacher: the Drift-AR task whose groups are trained; read for `init`, `parts`, `contexts`,
        `ar_steps`, `entropy_loss` and `mirror`.
      unroll: AR steps ahead that the head predicts, each from its last prediction.
      prior: weight of the divergence between the target's and the drafted prior, per channel.
    """

    teacher: Any
    unroll: int
    prior: float
    freeze_step: None = None
    tracked: tuple[str, ...] = ("entropy_mean", "entropy_square")

    @property
    def parts(self):
        return self.teacher.parts

    def init(self, key: jax.Array) -> Params:
        return self.teacher.init(key)

    def trainable(self, frozen: bool) -> tuple[str, ...]:
        return ("draft",)

    def draw(self, batch, key, frozen):
        key_drop, key_order, key_step, key_prior = jax.random.split(key, 4)
        label, patch_size = batch["label"], self.parts.images.patch_size
        tokens = tokenise(batch, key, patch_size=patch_size, mirror=self.teacher.mirror)
        size = tokens.shape[0]
        dropped = jax.random.bernoulli(key_drop, self.teacher.contexts.label_drop, (size,))
        contexts = self._contexts(key_order, key_step, size)
        rows = {
            "tokens": tokens,
            "label": jnp.where(dropped, -1, label),
            "contexts": contexts,
            "prior_keys": jax.random.split(key_prior, size),
        }
        weights = [_weights(*pair) for pair in zip(contexts, contexts[1:], strict=False)]
        return rows, {
            "images": [losses.at_least_one(images) for images, _ in weights],
            "tokens": [losses.at_least_one(tokens) for _, tokens in weights],
        }

    def terms(self, params, rows, totals, key, step, frozen):
        parts, tokens, contexts = self.parts, rows["tokens"], rows["contexts"]
        targets = self._targets(params, tokens, contexts, rows["label"])
        terms = {"draft_reg": 0.0, "draft_entropy": 0.0, "draft_prior": 0.0}
        last, kind = targets[0], self.teacher.entropy_loss
        for ahead, target in enumerate(targets[1:]):
            now = contexts[ahead + 1]
            last = parts.draft.apply({"params": params["draft"]}, last, tokens, now.known)
            weight, unknown = _weights(contexts[ahead], now)
            images = totals["images"][ahead]
            terms["draft_reg"] += losses.draft_regression(last, target, weight, images)
            terms["draft_entropy"] += losses.draft_entropy(last, target, weight, kind, images)
            priors = [
                parts.prior.apply({"params": params["prior"]}, e.z, e.entropy, rows["prior_keys"])
                for e in (last, target)
            ]
            total = totals["tokens"][ahead]
            terms["draft_prior"] += losses.prior_divergence(*priors, unknown, total)
        terms = {name: value / self.unroll for name, value in terms.items()}
        loss = terms["draft_reg"] + terms["draft_entropy"] + self.prior * terms["draft_prior"]
        # Of the target in all positions: what the early stop of sampling is held against.
        entropy = jnp.stack([target.entropy for target in targets])
        tracked = {"entropy_mean": entropy.mean(), "entropy_square": jnp.square(entropy).mean()}
        return loss, terms | tracked

    def _contexts(self, key_order, key_step, size: int) -> list[Masks]:
        """`unroll + 1` contexts per image, AR steps apart; the last one may be repeated."""
        num_tokens, ar_steps = self.parts.images.num_tokens, self.teacher.ar_steps
        known = jnp.cumsum(jnp.asarray((0, *cosine_counts(num_tokens, ar_steps))))
        order = jax.vmap(lambda k: jax.random.permutation(k, num_tokens))(
            jax.random.split(key_order, size)
        )
        rank = jnp.argsort(order, axis=-1)
        first = jax.random.randint(key_step, (size,), 0, max(ar_steps - 1, 1))
        return [
            Masks(order, rank, num_tokens - known[jnp.minimum(first + ahead, ar_steps - 1)])
            for ahead in range(self.unroll + 1)
        ]

    def _targets(self, params, tokens, contexts: list[Masks], label):
        """Encodings of all contexts, from one backbone call."""
        times = len(contexts)
        known = jnp.concatenate([c.known for c in contexts])
        made = self.parts.host.apply(
            {"params": params["host"]},
            jnp.concatenate([tokens] * times),
            known,
            jnp.concatenate([label] * times),
        )
        made = jax.lax.stop_gradient(made)
        by_context = jax.tree.map(lambda a: a.reshape(times, -1, *a.shape[1:]), made)
        return [jax.tree.map(lambda a, i=i: a[i], by_context) for i in range(times)]


def _weights(before: Masks, now: Masks) -> tuple[jax.Array, jax.Array]:
    """`[B]` float32, 1 where the next context is another, and `[B, N]` on its unknown tokens."""
    weight = (now.num_unknown < before.num_unknown).astype(jnp.float32)
    return weight, weight[:, None] * (~now.known)
