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
from driftar_jax.training.tokens import tokenise

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class DraftTask:
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
    tracked: tuple[str, ...] = ()

    @property
    def parts(self):
        return self.teacher.parts

    def init(self, key: jax.Array) -> Params:
        return self.teacher.init(key)

    def trainable(self, frozen: bool) -> tuple[str, ...]:
        return ("draft",)

    def loss(self, params, batch, key, step, frozen):
        images, parts = self.parts.images, self.parts
        key_drop, key_order, key_step, key_prior = jax.random.split(key, 4)
        tokens = tokenise(batch, key, patch_size=images.patch_size, mirror=self.teacher.mirror)
        size, label = tokens.shape[0], batch["label"]
        dropped = jax.random.bernoulli(key_drop, self.teacher.contexts.label_drop, (size,))
        label = jnp.where(dropped, -1, label)
        contexts = self._contexts(key_order, key_step, size)
        targets = self._targets(params, tokens, contexts, label)
        terms = {"draft_reg": 0.0, "draft_entropy": 0.0, "draft_prior": 0.0}
        last = targets[0]
        prior_keys = jax.random.split(key_prior, size)
        for now, before, target in zip(contexts[1:], contexts, targets[1:], strict=False):
            last = parts.draft.apply({"params": params["draft"]}, last, tokens, now.known)
            weight = (now.num_unknown < before.num_unknown).astype(jnp.float32)
            kind = self.teacher.entropy_loss
            terms["draft_reg"] += losses.draft_regression(last, target, weight)
            terms["draft_entropy"] += losses.draft_entropy(last, target, weight, kind)
            priors = [
                parts.prior.apply({"params": params["prior"]}, e.z, e.entropy, prior_keys)
                for e in (last, target)
            ]
            unknown = weight[:, None] * (~now.known)
            terms["draft_prior"] += losses.prior_divergence(*priors, unknown)
        terms = {name: value / self.unroll for name, value in terms.items()}
        loss = terms["draft_reg"] + terms["draft_entropy"] + self.prior * terms["draft_prior"]
        return loss, terms

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
