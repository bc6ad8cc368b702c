"""The contexts in which a host that makes one token after another is trained.

They need no masks: one causal call over an image holds the context of every token. The encoding of
token k is the hidden state of the position before it, and only the draft head reads it as it is.
"""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from driftar_jax.heads import draft
from driftar_jax.hosts.contexts import Params, Rows, take
from driftar_jax.types import Encoding


@dataclasses.dataclass(frozen=True)
class CausalContexts(abc.ABC):
    """`Contexts` (`contexts.py`) of a causal host, whatever its condition.

    A round is a token: its encoding predicts that of the next one, and so on along the image.

    Attributes:
      model: modules of the run.
      tokens_per_image: K, image tokens per image whose head is trained; 0: all.
    """

    model: Any
    tokens_per_image: int

    @abc.abstractmethod
    def conditions(self, key: jax.Array, batch: dict) -> Rows:
        """Draw what the images are made from; `dropped [B]` says which of them lost it."""

    @abc.abstractmethod
    def without_condition(self, rows: Rows) -> Rows:
        """See `Contexts.without_condition`."""

    @abc.abstractmethod
    def encode(self, params: Params, rows: Rows, dropout_key: jax.Array | None) -> Encoding:
        """See `Contexts.encode`: `z [B, N, D]`, the hidden states before the tokens."""

    @abc.abstractmethod
    def read(self, params: Params, encoding: Encoding) -> Encoding:
        """See `Contexts.read`."""

    def keys(self, key):
        """See `Contexts.keys`."""
        # Parts 0 and 4 choose tokens, in `draw`.
        _, eps, scale, free, _ = jax.random.split(key, 5)
        # One token has one context: nothing is shuffled, and no prior draws.
        return {
            "dropout": jax.random.fold_in(key, 66),
            "eps": eps,
            "prior": eps,
            "scale": scale,
            "free_eps": free,
            "free_prior": free,
        }

    def draw(self, key, tokens, batch) -> Rows:
        """See `Contexts.draw`."""
        key_chosen, _, _, _, key_rounds = jax.random.split(key, 5)
        rows = self.conditions(key, batch) | {"tokens": tokens}
        positions = self.chosen(key_chosen, *tokens.shape[:2])
        return rows | {
            "positions": positions,
            "weight": jnp.ones(positions.shape, jnp.float32),
            "rounds": self._starts(key_rounds, *tokens.shape[:2]),
        }

    def draw_rounds(self, key, tokens, batch, steps) -> Rows:
        """See `Contexts.draw_rounds`: from random tokens on."""
        key_rounds = jax.random.split(key, 5)[4]
        rows = self.conditions(key, batch) | {"tokens": tokens}
        return rows | {"rounds": self._starts(key_rounds, *tokens.shape[:2])}

    def chosen(self, key: jax.Array, batch: int, num_tokens: int) -> jax.Array:
        """Draw, for each image, numbers `[B, K]` of different tokens."""
        order = jax.vmap(lambda k: jax.random.permutation(k, num_tokens))(
            jax.random.split(key, batch)
        )
        # The front of a random permutation: different tokens, each equally likely.
        return order[:, : self.tokens_per_image or num_tokens]

    def _starts(self, key, batch: int, num_tokens: int) -> jax.Array:
        """Draw `[B, K]` tokens that rounds begin with: any but the last, which has none after."""
        return self.chosen(key, batch, num_tokens - 1)

    def counted(self, rows):
        """See `Contexts.counted`: every token has its context."""
        return jnp.ones(rows["tokens"].shape[:2], jnp.float32)

    def unguided(self, rows):
        """See `Contexts.unguided`."""
        return rows["dropped"]

    def targets(self, params, rows, steps, first=None) -> list[Encoding]:
        """See `Contexts.targets`; one call has them all."""
        encoding = self.encode(params, rows, None) if first is None else first
        encoding = jax.lax.stop_gradient(encoding)
        # No further calls: under causal attention the encoding of every later token is in the same
        # one.
        places = [self._at(rows, ahead) for ahead in range(steps + 1)]
        return [jax.tree.map(lambda a, at=at: _in_rows(take(a, at)), encoding) for at in places]

    def _at(self, rows, ahead: int) -> jax.Array:
        """Return tokens `[B, K]` so many after the first; the last one where there are none."""
        return jnp.minimum(rows["rounds"] + ahead, rows["tokens"].shape[1] - 1)

    def predict(self, params, last, rows, ahead) -> Encoding:
        """See `Contexts.predict`: the head sees the tokens of a window that ends before."""
        tokens, known = draft.window(self.model, rows["tokens"], self._at(rows, ahead))
        return draft.after_window(
            self.model, params["draft"], last, _in_rows(tokens), _in_rows(known)
        )

    def weights(self, rows, ahead):
        """See `Contexts.weights`: the image may have ended."""
        there = rows["rounds"] + ahead < rows["tokens"].shape[1]
        weight = there.astype(jnp.float32).reshape(-1)
        return weight, weight[:, None]


def _in_rows(a: jax.Array) -> jax.Array:
    """`[B, K, ...]` -> `[B * K, 1, ...]`: every token is a row of its own."""
    return a.reshape(-1, 1, *a.shape[2:])
