"""What training asks of a host: the contexts in which it meets known images.

A task of training draws rows for a whole batch first and computes its terms from some of the rows,
so that micro-batches are parts of one step. Rows are dictionaries of trees whose leaves have the
images in front; those that every host has are

  tokens      `[B, N, C]` float32, clean
  positions   `[B, M]` int32, tokens whose one-step head is trained
  weight      `[B, M]` float32, how many tokens each of them stands for
  rounds      what `targets`, `predict` and `weights` read: contexts that follow one another
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from driftar_jax.types import Encoding

Params = dict[str, Any]
Rows = dict[str, Any]
# Of weighted means: sums over the whole batch.
Totals = dict[str, Any]


class Contexts(Protocol):
    """How a host meets known images; one static object for a run.

    An encoding of `encode`, `targets` and `predict` is the host's own; `read` makes of it what
    head, prior and decoder see.

    Attributes:
      model: modules of the run.
    """

    model: Any

    def keys(self, key: jax.Array) -> dict[str, jax.Array]:
        """Split the key of a step.

        Returns:
          Keys by name: `eps`, `prior` and `scale` of the draws of the one-step head, `free_eps` and
          `free_prior` of those without a condition, `dropout` of the backbone.
        """

    def draw(self, key: jax.Array, tokens: jax.Array, batch: dict) -> Rows:
        """Draw the contexts of a training batch.

        Args:
          key: of the step.
          tokens: `[B, N, C]`, clean.
          batch: as the data gives it.
        """

    def counted(self, rows: Rows) -> jax.Array:
        """Return `[B, N]` float32, 1 for tokens that are to be made in their context."""

    def unguided(self, rows: Rows) -> jax.Array:
        """Return `[B]` bool, the images that lost their condition."""

    def without_condition(self, rows: Rows) -> Rows:
        """Return the same contexts without class or caption."""

    def encode(self, params: Params, rows: Rows, dropout_key: jax.Array | None) -> Encoding:
        """Call the backbone on the contexts; without a key nothing is dropped."""

    def read(self, params: Params, encoding: Encoding) -> Encoding:
        """Return what head, prior and decoder see of an encoding."""

    def draw_rounds(self, key: jax.Array, tokens: jax.Array, batch: dict, steps: int) -> Rows:
        """Draw contexts that sampling meets, and `steps` of its steps after each.

        Returns:
          Rows with `tokens`, `rounds` and the condition; no `positions`.
        """

    def targets(
        self, params: Params, rows: Rows, steps: int, first: Encoding | None = None
    ) -> list[Encoding]:
        """Encode `steps + 1` contexts that follow one another; no gradient goes through them.

        Args:
          params: parameters by group.
          rows: with `rounds`.
          steps: of the rounds.
          first: encoding of the rows themselves, where it has been computed.

        Returns:
          Encodings with leading axis R, the rounds.
        """

    def predict(self, params: Params, last: Encoding, rows: Rows, ahead: int) -> Encoding:
        """Let the draft head guess the target `ahead` (from 1) from the encoding before it."""

    def weights(self, rows: Rows, ahead: int) -> tuple[jax.Array, jax.Array]:
        """Return what counts of the target `ahead`: rounds `[R]` and their tokens `[R, n]`.

        Both are float32, 0 where the images have ended before.
        """

    def draw_own(
        self, key: jax.Array, tokens: jax.Array, batch: dict, copies: int
    ) -> tuple[Rows, Totals]:
        """Draw contexts, times and noise for the host's own head.

        Args:
          key: of the step.
          tokens: `[B, N, C]`, clean.
          batch: as the data gives it.
          copies: times and noises of each token; they share its encoding.
        """

    def draw_head(self, key: jax.Array, rows: Rows, copies: int) -> tuple[Rows, Totals]:
        """Draw times and noise for the own head in contexts that `draw` drew.

        Asked of hosts whose own head may stay beside the one-step head.

        Returns:
          What `own_terms` reads beside `rows`, and its totals.
        """

    def own_terms(
        self,
        params: Params,
        rows: Rows,
        totals: Totals,
        key: jax.Array,
        encoding: Encoding | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return loss (float32 scalar) and metrics of the host's own head.

        `encoding` is of `encode` on these rows, where it has been computed; asked of hosts whose
        own head may stay beside the one-step head.
        """

    def draw_matched(self, key: jax.Array, rows: Rows, draws: int) -> Rows:
        """Draw times and noises for `clean_pair` and `fake_losses`, for so many draws of a token.

        These three are asked of hosts whose own head may stay beside the one-step head.
        """

    def clean_pair(
        self, params: Params, rows: Rows, encoding: Encoding, x: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return the clean tokens that the own head and the fake one see in noised draws.

        Args:
          params: with the group `fake`, another own head.
          rows: with those of `draw_matched`.
          encoding: of the contexts, as the own head reads it.
          x: `[B, M, G, C]` draws for the chosen tokens.

        Returns:
          Twice `[B, M, G, C]` float32.
        """

    def fake_losses(self, params: Params, rows: Rows, encoding: Encoding, x: jax.Array):
        """Return the own head's loss of the group `fake` on draws `x [B, M, G, C]`: `[B, M]`."""


def take(values: jax.Array, positions: jax.Array) -> jax.Array:
    """Return `values [B, N, ...]` at `positions [B, M]`, `[B, M, ...]`."""
    index = positions.reshape(positions.shape + (1,) * (values.ndim - 2))
    return jnp.take_along_axis(values, index, axis=1)


def weighted_mean(values: jax.Array, weight: jax.Array, total: jax.Array) -> jax.Array:
    """Return the weighted sum of `values` over `total`, a float32 scalar."""
    return jnp.sum(values * weight) / total


def by_image(a: jax.Array) -> jax.Array:
    """Return `[copies, B, ...]` with the images in front, as rows are; also the way back."""
    return jnp.moveaxis(a, 1, 0)
