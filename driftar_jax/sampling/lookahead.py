"""Lookahead decoding: a window of guesses is made again, at once, until its front stops moving.

Every token has one noise, so plain decoding is a deterministic causal map `x_k = g(eps_k, x_<k)`. A
round is ONE backbone call on the pending group and the guesses behind it; every group of the window
is made again with its own noise. The first is settled, for its context is. The next ones are
settled as long as every guess before them moved by no more than its bound; the rest are the next
round's guesses. The next call reads the guesses that stood once more, as they were made again, so
that the cache holds what is settled. There is no draft head and nothing to train. Rows of a batch
move at their own pace; all of it is one `lax.while_loop` with fixed shapes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from driftar_jax.heads import randomness
from driftar_jax.hosts.base import Head, Walk
from driftar_jax.sampling import speculative
from driftar_jax.sampling.settings import Window
from driftar_jax.types import Encoding, Speculation, Trace

# A guess that moved by no more than this share of its image's root mean square has not moved: the
# rows of a matrix product round differently where they stand in another place of the window. In
# float32 that is some 1e-7, and what stands on it differs by as little.
SAME = 5e-6


@flax.struct.dataclass
class State:
    """Between rounds.

    Attributes:
      step: `[B]` int32, groups that are settled.
      base: `[B]` int32, at most `step`: the first context of the next call.
      frontier: `[B]` int32, groups that were made at least once.
      tokens: `[B, N, C]` float32; behind the settled ones, guesses.
      weight: `[B, N]` float32, what the bound of a token is proportional to; -1 where none was
        made yet.
      entropy: `[B, N]` float32 of the encodings that the tokens were made from.
      memory: the walk's.
      speculation: what is reported.
    """

    step: jax.Array
    base: jax.Array
    frontier: jax.Array
    tokens: jax.Array
    weight: jax.Array
    entropy: jax.Array
    memory: Any
    speculation: Speculation


@dataclasses.dataclass(frozen=True)
class Lookahead:
    """Everything a batch needs; `run` generates it.

    Guarantee: a settled token is what the host makes of its own noise and of a context whose tokens
    each moved by at most their bound when they were made again. So `delta = 0` is plain decoding of
    the seed, up to rounding, in at most T calls, whatever the guesses were. With a larger `delta`
    the movement of a token is bounded, not its distance from plain decoding.

    Attributes:
      walk: the host bound to the batch; one whose groups have an order (`base.py`).
      make: `(encoding [R, ...], step [B]) -> (x [B, K, C], weight [B, K])`, the tokens of a group
        from their own noise, and what their bounds are proportional to.
      window: how far, and when.
      batch: B.
      evaluations: of the head, for one group.
      above: see `Walk.above`.
    """

    walk: Walk
    make: Callable[[Encoding, jax.Array], tuple[jax.Array, jax.Array]]
    window: Window
    batch: int
    evaluations: int = 1
    above: int = 1

    def run(self) -> tuple[jax.Array, Speculation]:
        """Generate all groups of all images.

        Returns:
          tokens `[B, N, C]` float32, and `Speculation`: `lengths [B, size]` are rounds by
          the number of guesses that stood; there are no drafts.
        """
        state = jax.lax.while_loop(self.goes_on, self.round, self.start())
        return state.tokens, state.speculation

    def traced(self) -> tuple[Trace, Speculation]:
        """Do as `run`, and remember in which call each token was settled."""

        def round(carry):
            state, turn = carry
            after = self.round(state)
            # `known` is of a context, and the last group is in none.
            ended = (after.step >= self.walk.num_steps)[:, None]
            settled = (self.walk.known(after.step) | ended) & (turn < 0)
            return after, jnp.where(settled, state.speculation.batch_calls, turn)

        start = self.start()
        carry = start, jnp.full(start.entropy.shape, -1, jnp.int32)
        state, turn = jax.lax.while_loop(lambda carry: self.goes_on(carry[0]), round, carry)
        return Trace(state.tokens, turn, state.entropy[:, None]), state.speculation

    @property
    def size(self) -> int:
        """Count the groups made in one call; an image has no more than T."""
        return min(self.window.size, self.walk.num_steps)

    @property
    def contexts(self) -> int:
        """Count the contexts of one call; an image has no more than T."""
        return min(self.window.contexts, self.walk.num_steps)

    def goes_on(self, state: State) -> jax.Array:
        """Say whether an image of the batch is not finished; bool scalar."""
        return (state.step < self.walk.num_steps).any()

    def start(self) -> State:
        """Return the state before the first round."""
        shape, zero = (self.batch, self.walk.num_tokens), jnp.zeros(self.batch, jnp.int32)
        return State(
            step=zero,
            base=zero,
            frontier=zero,
            tokens=jnp.zeros((*shape, self.walk.token_dim), jnp.float32),
            weight=jnp.full(shape, -1.0, jnp.float32),
            entropy=jnp.zeros(shape, jnp.float32),
            memory=self.walk.memory(),
            speculation=speculative.nothing(self.batch, self.size - 1),
        )

    def round(self, state: State) -> State:
        """Make one backbone call, and settle what follows from it."""
        walk, size = self.walk, self.size
        # `[W, B]`: row w is the group w places behind the first that is not settled.
        steps = state.step[None] + jnp.arange(size)[:, None]
        state = state.replace(tokens=self._guessed(state, steps))
        encodings, memory = walk.encode(state.memory, state.tokens, state.base, self.contexts)
        encodings = self._window(encodings, state.step - state.base)
        # Each group is made again with its own noise: were the noise drawn anew, a guess would move
        # for ever.
        x, weight = jax.vmap(self.make)(encodings, steps)
        entropy = jax.vmap(lambda e, s: walk.take(e.entropy, s))(encodings, steps)[:, : self.batch]
        positions, real = jax.vmap(walk.group)(steps)
        # The window reaches past the end of an image near its last groups. `group` repeats the last
        # one there, and writing it again from the wrong context would spoil it.
        real &= (steps < walk.num_steps)[..., None]

        # Read before the new tokens are written: the verdict is about the movement in this round.
        before = _read(state.tokens, positions)
        put = lambda old, new: _write(old, new, positions, real)  # noqa: E731
        state = state.replace(
            tokens=put(state.tokens, x),
            weight=put(state.weight, weight),
            entropy=put(state.entropy, entropy),
        )
        near = _rms(x - before) <= self._bounds(state, weight)
        # A group without real tokens (behind the end) stands, so that it never ends an accepted
        # run.
        stands = (near | ~real).all(axis=-1)
        # A guess is judged where all before it stand, and where another group stands on it.
        judged = jnp.concatenate([jnp.ones_like(stands[:1]), stands[:-1]]).cumprod(axis=0)
        # The last guess of the window has no group behind it in this call, so its verdict settles
        # nothing.
        judged = judged.astype(bool)[: size - 1] & (steps[1:] < walk.num_steps)
        # Group 0 is settled for certain, its context being settled. Group j + 1 is settled too
        # where the guesses 0..j, on which it was made, did not move.
        accepted = (judged & stands[: size - 1]).sum(axis=0, dtype=jnp.int32)
        live = state.step < walk.num_steps
        step = jnp.where(live, state.step + 1 + accepted, state.step)
        # Verdicts behind the first failure were never used and would bias the acceptance per
        # entropy bin.
        heard = judged[..., None] & real[:-1]
        # Contexts up to `state.step` were read with settled tokens. Those behind them were read
        # with the guesses and not with what these became; the next call reads as many of them once
        # more as its spare contexts allow.
        base = jnp.maximum(state.step + 1, step - (self.contexts - size))
        base = jnp.where(live, base, state.base)
        return state.replace(
            step=step,
            base=base,
            frontier=jnp.maximum(state.frontier, steps[-1] + 1),
            memory=walk.roll_back(memory, base),
            speculation=self._counted(
                state.speculation, live, accepted, heard, near[:-1], entropy[:-1]
            ),
        )

    def _guessed(self, state: State, steps: jax.Array) -> jax.Array:
        """The tokens, with first guesses for the groups `steps [W, B]` that were never made."""
        # A first guess is the group above, in the first row the one before: neighbours are alike.
        # Only what was made already can be copied.
        source = jnp.where(steps < self.above, steps - 1, steps - self.above)
        source = jnp.clip(source, 0, jnp.maximum(state.frontier - 1, 0)[None])
        guess = _read(state.tokens, jax.vmap(self.walk.group)(source)[0])
        positions, real = jax.vmap(self.walk.group)(steps)
        real &= ((steps >= state.frontier[None]) & (steps < self.walk.num_steps))[..., None]
        return _write(state.tokens, guess, positions, real)

    def _window(self, encodings: Any, first: jax.Array) -> Any:
        """`[S, R, ...]` -> `[W, R, ...]`: for each image the contexts from `first [B]` on."""
        index = jnp.tile(first, self.walk.branches)[None] + jnp.arange(self.size)[:, None]
        return jax.tree.map(lambda a: jax.vmap(lambda v, i: v[i], (1, 1), 1)(a, index), encodings)

    def _bounds(self, state: State, weight: jax.Array) -> jax.Array:
        """How far each guess of the window may move, root mean square; `weight [W, B, K]`."""
        # Tokens that no round has made yet hold zeros; they would pull the spread and the mean
        # weight down.
        exists = state.weight >= 0
        count = exists.sum(axis=1)
        mean = lambda a: jnp.where(exists, a, 0).sum(axis=1) / count  # noqa: E731
        square = mean(jnp.square(state.tokens).mean(axis=-1))
        # Of each image, so that a result does not depend on what else is in the batch.
        spread = jnp.sqrt(self._variance(state.tokens, exists, count))
        # Divided by the mean so that all kinds of bound move the same on average and `delta` can be
        # compared between them. The guard is for an image whose entropies are all 0.
        scale = self.window.delta * spread / jnp.maximum(mean(state.weight), 1e-6)
        # The floor keeps `delta = 0` from waiting for rounding errors that never vanish.
        return jnp.maximum(scale[None, :, None] * weight, SAME * jnp.sqrt(square)[None, :, None])

    def _variance(self, tokens, exists, count) -> jax.Array:
        """`[B]`, of the seen tokens of each image about their mean in each channel."""
        # Two passes, mean first: the one-pass form E[x^2] - E[x]^2 cancels in float32.
        tokens = jnp.where(exists[..., None], tokens, 0)
        mean = tokens.sum(axis=1) / count[:, None]
        about = jnp.where(exists[..., None], tokens - mean[:, None], 0)
        return jnp.square(about).mean(axis=-1).sum(axis=1) / count

    def _counted(self, total: Speculation, live, accepted, judged, near, entropy) -> Speculation:
        """What was found, with this round's numbers added for the images still `live`."""
        size, one = self.size, live.astype(jnp.int32)
        bins = jnp.clip((entropy * speculative.BINS).astype(jnp.int32), 0, speculative.BINS - 1)
        hot = jax.nn.one_hot(bins, speculative.BINS, dtype=jnp.int32) * judged[..., None]
        lengths = jax.nn.one_hot(accepted, size, dtype=jnp.int32)
        return total.replace(
            backbone_calls=total.backbone_calls + one,
            head_evaluations=total.head_evaluations + one * size * self.evaluations,
            batch_calls=total.batch_calls + 1,
            batch_rows=total.batch_rows + self.contexts * self.walk.branches,
            lengths=total.lengths + lengths * one[:, None],
            judged=total.judged + hot.sum(axis=(0, 2)),
            accepted=total.accepted + (hot * near[..., None]).sum(axis=(0, 2)),
        )


def one_step(
    walk: Walk, head: Head, keys: jax.Array, prior_keys: jax.Array, bound: str
) -> Callable[[Encoding, jax.Array], tuple[jax.Array, jax.Array]]:
    """Return `Lookahead.make` of a one-step head; arguments as for `speculative.Engine`."""
    batch = keys.shape[0]
    # Drawn once and outside of the loop: a round makes every token of its window again.
    noise = randomness.normal(keys, 0, walk.token_dim)

    def make(encoding, step):
        encoding = walk.read(encoding)
        # All places first, the group after, as in the speculative engine: the prior may look at the
        # whole.
        mu, std = head.starts(encoding, prior_keys)
        encoding, mu, std = walk.take((encoding, mu, std), step)
        eps = _of_group(walk, noise, step)
        scale = jnp.asarray(walk.scales())[jnp.minimum(step, walk.num_steps - 1)]
        x = head.tokens(encoding, mu, std, eps, scale)
        return x, weights(bound, encoding.entropy[:batch], std[:batch])

    return make


def own(
    walk: Walk, keys: jax.Array, bound: str
) -> Callable[[Encoding, jax.Array], tuple[jax.Array, jax.Array]]:
    """Return `Lookahead.make` of the host's own head, which knows no `sigma`."""
    batch = keys.shape[0]

    def make(encoding, step):
        x = walk.own(encoding, step, _of_group(walk, keys, step))
        return x, weights(bound, walk.take(encoding.entropy, step)[:batch])

    return make


def weights(bound: str, entropy: jax.Array, std: jax.Array | None = None) -> jax.Array:
    """Return what bounds are proportional to, like `entropy`; one of `settings.BOUNDS`."""
    return {"entropy": entropy, "sigma": std, "constant": jnp.ones_like(entropy)}[bound]


def _of_group(walk: Walk, values: jax.Array, step: jax.Array) -> jax.Array:
    """`values [B, N, ...]` of the tokens of each image's group, `[B, K, ...]`."""
    return jax.vmap(lambda row, at: row[at])(values, walk.group(step)[0])


def _rms(difference: jax.Array) -> jax.Array:
    """Root mean square over the channels."""
    return jnp.sqrt(jnp.mean(jnp.square(difference), axis=-1))


def _read(tokens: jax.Array, positions: jax.Array) -> jax.Array:
    """`tokens [B, N, C]` at `positions [W, B, K]`, `[W, B, K, C]`."""
    return jax.vmap(lambda row, at: row[at], (0, 1), 1)(tokens, positions)


def _write(old: jax.Array, new: jax.Array, positions: jax.Array, real: jax.Array) -> jax.Array:
    """`old [B, N, ...]` with `new [W, B, K, ...]` put at the `positions` that are `real`."""
    # Place N is one past the end and dropped; the window's groups never overlap, so that the order
    # of the writes does not matter.
    target = jnp.where(real, positions, old.shape[1])
    put = lambda row, at, value: row.at[at].set(value, mode="drop")  # noqa: E731
    return jax.vmap(put, (0, 1, 1))(old, target, new)
