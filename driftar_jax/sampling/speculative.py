"""Speculative decoding over groups: drafts are cheap, one backbone call judges several of them.

A round drafts up to `gamma` groups from the last encoding, then ONE backbone call encodes the
contexts of the drafted groups and of the one after them. Groups are accepted in order. If a draft
is rejected, the target makes that group itself; if all are accepted, it makes the next one. A call
therefore yields the accepted groups plus one. Rows of a batch move at their own pace; all of it is
one `lax.while_loop` with fixed shapes.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from driftar_jax.heads import early_stop, randomness
from driftar_jax.hosts.base import Head, Walk
from driftar_jax.sampling import verify
from driftar_jax.sampling.settings import Rule
from driftar_jax.types import Encoding, Speculation

# Bins of the entropy, over [0, 1], in which verdicts are counted: the report asks whether drafts of
# low entropy are accepted more often.
BINS = 20


@flax.struct.dataclass
class _Rows:
    """A group as one side sees it; arrays `[R, K, ...]`: encoding, prior."""

    encoding: Encoding
    mu: jax.Array
    std: jax.Array


@flax.struct.dataclass
class _Drafts:
    """Drafted groups: `rows` and `x` have a leading axis `gamma`, `count [B]` says how many."""

    rows: _Rows
    x: jax.Array
    count: jax.Array


@flax.struct.dataclass
class Drafted:
    """First piece of a round: `tokens` with the drafts in them, `speculation` with what they cost.

    `count [B]` is the number of drafts; without any, `drafts` is None.
    """

    tokens: jax.Array
    drafts: _Drafts | None
    count: jax.Array
    speculation: Speculation


@flax.struct.dataclass
class Called:
    """Second piece: the encodings `[gamma + 1, R, ...]` of one backbone call on `contexts`."""

    encodings: Encoding
    memory: Any
    contexts: jax.Array


@flax.struct.dataclass
class _Judged:
    """`there [gamma, B]`: drafted; the rest `[gamma, B, K]`: verdict, no padding, target's `E`."""

    there: jax.Array
    accepted: jax.Array
    real: jax.Array
    entropy: jax.Array


@flax.struct.dataclass
class State:
    """Between rounds.

    Attributes:
      step: `[B]` int32, groups that stand.
      tokens: `[B, N, C]`.
      last: encoding of the last context that the backbone saw and that stands.
      memory: the host's.
      tracker: of the target's entropy, with an average `[B]` over each image's backbone calls.
      speculation: what is reported.
    """

    step: jax.Array
    tokens: jax.Array
    last: Encoding
    memory: Any
    tracker: early_stop.EntropyTracker
    speculation: Speculation


@dataclasses.dataclass(frozen=True)
class Engine:
    """Everything a batch needs; `run` generates it.

    Attributes:
      walk: the host bound to the batch.
      head: makes tokens.
      keys: `[B, N]`, one per token (`randomness.token_keys`).
      prior_keys: `[B]`, one per image (`randomness.prior_keys`).
      rule: how far, and what.
      tracker: statistics of training, for the early stop; None: the checkpoint has none.
    """

    walk: Walk
    head: Head
    keys: jax.Array
    prior_keys: jax.Array
    rule: Rule
    tracker: early_stop.EntropyTracker | None = None

    def run(self) -> tuple[jax.Array, Speculation]:
        """Generate all groups of all images.

        Returns:
          tokens `[B, N, C]` float32 and `Speculation`.

        Raises:
          ValueError: the rule asks for statistics that are not there.
        """
        state = jax.lax.while_loop(self.goes_on, self._round, self.start())
        return state.tokens, state.speculation

    def goes_on(self, state: State) -> jax.Array:
        """Say whether an image of the batch is not finished; bool scalar."""
        return (state.step < self.walk.num_steps).any()

    def start(self) -> State:
        """Return the state before the first round: nothing known, no encoding."""
        walk, batch = self.walk, self.keys.shape[0]
        tokens = jnp.zeros((batch, walk.num_tokens, walk.token_dim), jnp.float32)
        step, memory = jnp.zeros(batch, jnp.int32), walk.memory()
        # The carry of the while loop needs its final shapes and types at once, but there is no
        # encoding before the first call. Only the host knows how large one is; `eval_shape` asks it
        # at no cost.
        shapes, _ = jax.eval_shape(lambda: walk.encode(memory, tokens, step, 1))
        return State(
            step=step,
            tokens=tokens,
            last=jax.tree.map(lambda s: jnp.zeros(s.shape[1:], s.dtype), shapes),
            memory=memory,
            tracker=self._tracker(),
            speculation=nothing(batch, self.rule.gamma),
        )

    def _tracker(self) -> early_stop.EntropyTracker:
        """Statistics before the first call, each image with an average of its own."""
        if self.rule.stop != early_stop.TRAINED:
            tracker = early_stop.of_threshold(self.rule.stop, gamma=self.rule.share)
        elif self.tracker is None:
            raise ValueError(
                "stop: got auto, allowed 0 to 1 (no statistics of the entropy in this checkpoint)"
            )
        else:
            tracker = self.tracker
        # A restored tracker holds Python or NumPy numbers; a carry must be strongly typed float32.
        # The average is spread over the images so that an image stops drafting alike in every
        # batch.
        tracker = jax.tree.map(jnp.float32, tracker)
        return tracker.replace(ema=jnp.full(self.keys.shape[0], tracker.ema))

    # --- pieces of a group ---------------------------------------------------------------------

    def _rows(self, encoding: Encoding, step: jax.Array) -> _Rows:
        """The group of `step` in an encoding `[R, ...]`, with its prior."""
        # Starts are made for all places before the group is taken: a control of the prior shuffles
        # entropies over the whole grid, which a group alone could not reproduce.
        mu, std = self.head.starts(self.walk.read(encoding), self.prior_keys)
        return _Rows(*self.walk.take((encoding, mu, std), step))

    def _token_keys(self, step: jax.Array) -> jax.Array:
        """Keys `[B, K]` of the group's tokens."""
        return jax.vmap(lambda k, p: k[p])(self.keys, self.walk.group(step)[0])

    def _noise(self, step: jax.Array) -> jax.Array:
        """`[B, K, C]`: the one noise of each token, whoever asks for it."""
        return randomness.normal(self._token_keys(step), 0, self.walk.token_dim)

    def _scale(self, step: jax.Array) -> jax.Array:
        # Images that are done stand at step T and still run along in the batch: they read the last
        # scale, and nobody reads their tokens.
        return jnp.asarray(self.walk.scales())[jnp.minimum(step, self.walk.num_steps - 1)]

    def _made(self, rows: _Rows, eps: jax.Array, step: jax.Array) -> jax.Array:
        encoding = self.walk.read(rows.encoding)
        return self.head.tokens(encoding, rows.mu, rows.std, eps, self._scale(step))

    def _write(self, tokens, x, step, where) -> jax.Array:
        """`tokens` with the group `x [B, K, C]` of `step` put in, for the images `where [B]`."""
        positions, real = self.walk.group(step)
        # Padding and finished images aim at place N, one past the end, which `mode="drop"`
        # discards: a scatter has no mask of its own, and any place inside the image would be
        # overwritten.
        target = jnp.where(real & where[:, None], positions, self.walk.num_tokens)
        return jax.vmap(lambda t, p, v: t.at[p].set(v, mode="drop"))(tokens, target, x)

    def _entropy(self, encoding: Encoding) -> jax.Array:
        """`[B, ...]`, of the conditional rows."""
        return encoding.entropy[: self.keys.shape[0]]

    def _prior(self, rows: _Rows) -> verify.Normal:
        """Distribution of the conditional rows' start."""
        batch = self.keys.shape[0]
        # Verdicts are about the conditional row's start; the unconditional row follows with the
        # same noise. The temperature belongs in: it is part of the law that the start was really
        # drawn from.
        return verify.Normal(rows.mu[:batch], self.head.temperature * rows.std[:batch])

    # --- a round -------------------------------------------------------------------------------

    def _round(self, state: State) -> State:
        drafted = self.drafted(state)
        return self.settled(state, drafted, self.called(state, drafted))

    def settled(self, state: State, drafted: Drafted, called: Called) -> State:
        """Do the third piece of a round: accept drafts, add the target's own group, roll back."""
        walk, gamma = self.walk, self.rule.gamma
        drafts, encodings = drafted.drafts, called.encodings
        # `[gamma + 1, B]`: context s is the one behind the first s drafts, hence it encodes group
        # `step + s`. The last of them serves the group after a round in which every draft stood.
        steps = state.step[None] + jnp.arange(gamma + 1)[:, None]
        rows = jax.vmap(self._rows)(encodings, steps)
        judged = self._judged(drafts, rows, steps)
        # Padding of a group that is smaller than K has no verdict and must not fail the group; a
        # draft that was never made must, or it would count as accepted.
        ok = (judged.accepted | ~judged.real).all(axis=-1) & judged.there
        # The product is 1 up to the first failure and 0 from there on: its sum is the length of the
        # accepted run. A later draft that passed does not count, for its context fell.
        accepted = jnp.cumprod(ok.astype(jnp.int32), axis=0).sum(axis=0)
        step = state.step + accepted
        # The target's encoding of the first group that does not stand is valid: its context holds
        # accepted drafts only. So the same call also yields this group, whatever was rejected.
        own = _chosen(rows, accepted, walk.branches)
        last = _chosen(encodings, accepted, walk.branches)
        eps = self._own_noise(drafts, own, accepted, step)
        x = self._made(own, eps, step)
        # An image that is done keeps its tokens and counts while slower rows of its batch go on.
        live = state.step < walk.num_steps
        mean_entropy = self._entropy(last).mean(axis=-1)
        return State(
            step=jnp.where(live, step + 1, state.step),
            tokens=self._write(drafted.tokens, x, step, live),
            last=last,
            # The call wrote keys of rejected drafts as well; everything behind the own group goes.
            # The own group stays pending: keys in its place, if any, are those of the rejected
            # draft.
            memory=walk.roll_back(called.memory, step + 1),
            # Followed for finished images as well, where the value is never read: a mask would only
            # cost.
            tracker=state.tracker.replace(ema=early_stop.follow(state.tracker.ema, mean_entropy)),
            speculation=self._counted(drafted, live, accepted, called.contexts, judged),
        )

    def drafted(self, state: State) -> Drafted:
        """Do the first piece of a round: draft up to gamma groups, each from the encoding of the
        last.
        """
        walk, gamma = self.walk, self.rule.gamma
        if not gamma:
            return Drafted(state.tokens, None, jnp.zeros_like(state.step), state.speculation)
        # All drafts are kept for the verdict in buffers of static length gamma, whatever number a
        # round makes; the shape of one draft tells their sizes.
        rows, x = jax.eval_shape(lambda: self._draft(state.last, state.tokens, state.step)[1:])
        empty = lambda s: jnp.zeros((gamma, *s.shape), s.dtype)  # noqa: E731
        drafts = _Drafts(
            rows=jax.tree.map(empty, rows), x=empty(x), count=jnp.zeros_like(state.step)
        )
        # There is nothing to draft from before the first call, and the last group needs no draft:
        # a call is due anyhow, and makes it.
        may = (state.step > 0) & (state.step < walk.num_steps - 1)

        def going(carry):
            return (carry[0] < gamma) & carry[1].any()

        def body(carry):
            turn, may, last, tokens, drafts, total = carry
            step = state.step + turn
            encoding, rows, x = self._draft(last, tokens, step)
            # The stop is asked after the draft encoding is made and before its tokens count, so a
            # draft call that ends drafting was paid for: `draft_calls` adds `may` and not `take`.
            ends = early_stop.stop(self._entropy(encoding), state.tracker, gamma=self.rule.share)
            take = may & ~ends
            put = lambda all_, one: all_.at[turn].set(one)  # noqa: E731
            drafts = _Drafts(
                rows=jax.tree.map(put, drafts.rows, rows),
                x=put(drafts.x, x),
                count=drafts.count + take,
            )
            total = total.replace(
                draft_calls=total.draft_calls + may,
                batch_draft_calls=total.batch_draft_calls + 1,
            )
            tokens = self._write(tokens, x, step, take)
            # An image that stopped never drafts again in this round: a gap between drafts would
            # leave the later ones without a context.
            return (
                turn + 1,
                take & (step + 1 < walk.num_steps - 1),
                encoding,
                tokens,
                drafts,
                total,
            )

        start = jnp.int32(0), may, state.last, state.tokens, drafts, state.speculation
        _, _, _, tokens, drafts, total = jax.lax.while_loop(going, body, start)
        return Drafted(tokens, drafts, drafts.count, total)

    def _draft(self, last, tokens, step):
        # Drafted tokens take the noise that the target's own would take, so that where the draft's
        # encoding is right its token is the plain sampler's, and `coupled` has something to
        # compare.
        encoding = self.walk.draft(last, tokens, step)
        rows = self._rows(encoding, step)
        return encoding, rows, self._made(rows, self._noise(step), step)

    def called(self, state: State, drafted: Drafted) -> Called:
        """Do the second piece of a round: the one backbone call.

        Where no image of the batch has a draft, the call holds one context instead of gamma + 1.
        """
        most = self.rule.gamma + 1

        def call(contexts):
            encodings, memory = self.walk.encode(state.memory, drafted.tokens, state.step, contexts)
            # Both branches of the `cond` must return the same shapes. The zeros stand where no
            # draft was made, and `there` keeps them out of every verdict.
            lengthen = lambda a: jnp.pad(a, [(0, most - contexts)] + [(0, 0)] * (a.ndim - 1))  # noqa: E731
            return jax.tree.map(lengthen, encodings), memory

        if most == 1:
            return Called(*call(1), jnp.int32(1))
        # One decision for the whole batch: shapes are static, so an image without drafts cannot
        # have a shorter call of its own.
        several = drafted.count.max() > 0
        encodings, memory = jax.lax.cond(several, lambda: call(most), lambda: call(1))
        return Called(encodings, memory, jnp.where(several, most, 1))

    def _judged(self, drafts: _Drafts | None, rows: _Rows, steps: jax.Array) -> _Judged:
        """Verdicts on the drafted groups of `steps [gamma + 1, B]`, and what they are about."""
        gamma, batch = self.rule.gamma, self.keys.shape[0]
        entropy = rows.encoding.entropy[:gamma, :batch]
        if not gamma:
            none = jnp.zeros(entropy.shape, bool)
            return _Judged(there=none[..., 0], accepted=none, real=none, entropy=entropy)
        # The context after the last draft has no draft to judge.
        target = jax.tree.map(lambda a: a[:gamma], rows)
        accepted = jax.vmap(self._judge)(drafts.rows, drafts.x, target, steps[:gamma])
        return _Judged(
            there=jnp.arange(gamma)[:, None] < drafts.count[None],
            accepted=accepted,
            real=jax.vmap(lambda step: self.walk.group(step)[1])(steps[:gamma]),
            entropy=entropy,
        )

    def _judge(self, draft: _Rows, x, target: _Rows, step) -> jax.Array:
        """`[B, K]` bool: which tokens of one group stand."""
        if self.rule.name == "gaussian":
            q, p = self._prior(draft), self._prior(target)
            # The draft's start is made again from its noise instead of being kept: noise is a
            # function of the token, so that nothing but the keys has to be kept for it.
            x0 = q.mean + q.std[..., None] * self._noise(step)
            return verify.accepts(x0, q, p, randomness.verdict_keys(self._token_keys(step)))
        if self.rule.name == "coupled":
            # The target's token from the same noise: the difference is then the encodings' alone.
            again = self._made(target, self._noise(step), step)
            return verify.coupled(x, again, self._prior(target).std, self.rule.delta)
        near = verify.feature(draft.encoding.z, target.encoding.z, self.rule.delta)
        # Guidance branches of one image are accepted together.
        return near.reshape(self.walk.branches, *x.shape[:2]).all(axis=0)

    def _own_noise(self, drafts, own: _Rows, accepted, step) -> jax.Array:
        """Noise `[B, K, C]` of the target's own group: the tokens', or what corrects a draft."""
        eps = self._noise(step)
        if self.rule.name != "gaussian" or drafts is None:
            return eps
        # Where all drafts stood there is no failed one; the index is clamped to stay inside, and
        # `failed` below throws the result away.
        at = jnp.minimum(accepted, self.rule.gamma - 1)
        draft = _chosen(drafts.rows, at, self.walk.branches)
        q, p = self._prior(draft), self._prior(own)
        failed = (accepted < drafts.count)[:, None] & self.walk.group(step)[1]
        # Where nothing failed both are the same, so that nothing is left to correct.
        q = verify.Normal(
            jnp.where(failed[..., None], q.mean, p.mean), jnp.where(failed, q.std, p.std)
        )
        x0 = q.mean + q.std[..., None] * eps
        # The same keys as in `_judge`: the verdict must come out the same here, or a token could be
        # corrected that was accepted, and the target's law would be lost.
        verdict = verify.gaussian(x0, q, p, randomness.verdict_keys(self._token_keys(step)))
        # The head makes tokens from standard noise, so the corrected start is expressed as the
        # noise that the target's prior turns into it. The floor is the one the verdict used.
        again = (verdict.x0 - p.mean) / p.floored().std[..., None]
        return jnp.where(failed[..., None], again, eps)

    def _counted(self, drafted: Drafted, live, accepted, contexts, judged: _Judged):
        """What was found, with this round's numbers added for the images still `live`."""
        gamma, one = self.rule.gamma, live.astype(jnp.int32)
        total, count = drafted.speculation, drafted.count
        # A histogram per image: the mean alone would hide that rounds are often all or nothing.
        lengths = jax.nn.one_hot(accepted, gamma + 1, dtype=jnp.int32) * one[:, None]
        # Every draft's, the own group's, and what `coupled` makes to compare.
        evaluations = count + 1 + ((count > 0) if self.rule.name == "coupled" else 0)
        # Groups after the first failure stood in a context that does not hold: they tell nothing.
        valid = judged.there & (jnp.arange(gamma)[:, None] <= accepted[None]) & live[None]
        valid = valid[..., None] & judged.real
        bins = jnp.clip((judged.entropy * BINS).astype(jnp.int32), 0, BINS - 1)
        hot = jax.nn.one_hot(bins, BINS, dtype=jnp.int32) * valid[..., None]
        return total.replace(
            backbone_calls=total.backbone_calls + one,
            head_evaluations=total.head_evaluations + one * evaluations,
            batch_calls=total.batch_calls + 1,
            batch_rows=total.batch_rows + contexts * self.walk.branches,
            lengths=total.lengths + lengths,
            judged=total.judged + hot.sum(axis=(0, 2)),
            accepted=total.accepted + (hot * judged.accepted[..., None]).sum(axis=(0, 2)),
        )


def nothing(batch: int, gamma: int) -> Speculation:
    """Return the counts before the first round, all zero."""
    per_image, scalar = jnp.zeros(batch, jnp.int32), jnp.int32(0)
    bins = jnp.zeros((batch, BINS), jnp.int32)
    return Speculation(
        backbone_calls=per_image,
        draft_calls=per_image,
        head_evaluations=per_image,
        batch_calls=scalar,
        batch_rows=scalar,
        batch_draft_calls=scalar,
        lengths=jnp.zeros((batch, gamma + 1), jnp.int32),
        judged=bins,
        accepted=bins,
    )


def _chosen(tree: Any, index: jax.Array, branches: int) -> Any:
    """`[S, R, ...]` -> `[R, ...]`: for each image the entry `index [B]`."""
    # The branches of guidance are rows of their own and move together.
    index = jnp.concatenate([index] * branches)
    return jax.tree.map(lambda a: jax.vmap(lambda v, i: v[i], (1, 0))(a, index), tree)
