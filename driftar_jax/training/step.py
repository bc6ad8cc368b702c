"""One training step: loss, gradient, update, averages, all inside one jit."""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax

from driftar_jax import seeds
from driftar_jax.layers import low_rank
from driftar_jax.training import freezing
from driftar_jax.training.drawn import Drawn, spread
from driftar_jax.training.optim import TrainState, update_ema
from driftar_jax.training.tasks import Task

TRACK_DECAY = 0.99
# Folded into the step's key for those of micro-batches; above every number that tasks fold in.
PARTS = 67


@runtime_checkable
class OwnsExtra(Protocol):
    """A task with a state of its own beside the parameters: no gradient, no average, no optimizer.

    It is part of the checkpoint, and is handed to `loss` as a last argument.
    """

    def init_extra(self, key: jax.Array) -> dict[str, Any]:
        """Make a fresh state; arrays may be boxed with their logical axes."""

    def update_extra(self, extra: dict[str, Any], batch: dict, key: jax.Array) -> dict[str, Any]:
        """Return the state with a batch taken in, before the loss of the same step."""


def init_extra(task: Task, key: jax.Array) -> dict[str, Any] | None:
    """Return the extra state of a task that owns one."""
    return task.init_extra(key) if isinstance(task, OwnsExtra) else None


def make_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    seed: int | jax.Array,
    frozen: bool,
    accumulate: int,
    ema: float,
    freeze: tuple[str, ...] = (),
    adapters: bool = False,
):
    """Make `step(state, batch) -> (state, metrics)`, pure; jit it with donated state.

    Args:
      task: what is trained.
      optimizer: from `make_optimizer`.
      seed: root of the run's randomness; the step's key is folded from it and `state.step`.
      frozen: True compiles Phase II, where only `task.trainable(True)` learns and the rest stays
        bit for bit what it is.
      accumulate: micro-batches per step, a divisor A of the batch: rows `i, i + A, ...` for i < A.
        Of a `Drawn` task it is the step of the whole batch, up to rounding and but for dropout,
        which every micro-batch draws anew. Of others, every micro-batch draws all anew, and the
        step is the mean of loss and gradient over them. Their keys are none of the step's own.
      ema: decay of the average.
      freeze: globs of parameters that stay as they are in every phase (`freezing`).
      adapters: whether there is a group of `low_rank` adapters, which learns where the host would.
    """
    learns = task.trainable(frozen)
    if adapters and low_rank.OF in learns:
        learns = (*learns, low_rank.GROUP)

    def gradient(params, loss):
        fixed = {name: tree for name, tree in params.items() if name not in learns}
        # Differentiated with respect to what learns alone: zeros for the rest would cost a backward
        # pass.
        learning = {name: params[name] for name in learns}
        held = freezing.mask(learning, freeze)

        def of_moving(moving):
            # The task sees a host as any other.
            return loss(low_rank.merged({**fixed, **freezing.merged(held, learning, moving)}))

        outcome = jax.value_and_grad(of_moving, has_aux=True)(freezing.moving(held, learning))
        (value, metrics), grads = outcome
        return {"loss": value, **metrics}, grads

    def accumulated(params, batch, key, step, extra):
        own = () if extra is None else (extra,)
        if accumulate == 1:
            return gradient(params, lambda p: task.loss(p, batch, key, step, frozen, *own))
        rows = batch
        if isinstance(task, Drawn):
            rows, totals = task.draw(batch, key, frozen, *own)
            # Each part is divided by its share of the whole batch's denominator, and the mean over
            # the parts is then the weighted mean over the batch, however unevenly its weights fall
            # on the parts.
            share = jax.tree.map(lambda a: a / accumulate, totals)

        def part_of_step(part, key):
            if isinstance(task, Drawn):
                part = spread(part)
                return gradient(params, lambda p: task.terms(p, part, share, key, step, frozen))
            return gradient(params, lambda p: task.loss(p, part, key, step, frozen, *own))

        # Rows in turn: a device keeps its own, where blocks of rows would move between devices.
        parts = jax.tree.map(lambda a: a.reshape(-1, accumulate, *a.shape[1:]).swapaxes(0, 1), rows)
        # Of a key of their own: the numbers that `split` and `fold_in` give are the same ones, and
        # `draw` has split the step's.
        keys = jax.random.split(jax.random.fold_in(key, PARTS), accumulate)

        def body(total, part):
            return jax.tree.map(jnp.add, total, part_of_step(*part)), None

        first = jax.tree.map(lambda a: a[0], parts)
        # The scan sums into zeros of the right shapes; starting from the first part instead would
        # compile the backward pass twice.
        shapes = jax.eval_shape(lambda: part_of_step(first, keys[0]))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        total, _ = jax.lax.scan(body, zeros, (parts, keys))
        return jax.tree.map(lambda a: a / accumulate, total)

    def step(state: TrainState, batch):
        # From the step's number and nothing else: a resumed run draws what it would have drawn.
        key = jax.random.fold_in(seeds.key(seed), state.step)
        extra = state.extra
        if extra is not None:
            # Before the loss: the first step's bank then holds the first batch.
            extra = task.update_extra(extra, batch, key)
        metrics, grads = accumulated(state.params, batch, key, state.step, extra)
        metrics["grad_norm"] = optax.global_norm(grads)
        zeros = {
            name: jax.tree.map(jnp.zeros_like, tree)
            for name, tree in state.params.items()
            if name not in learns
        }
        held = freezing.mask(state.params, freeze)
        # The optimizer's state has the same tree in both phases, or a checkpoint of one could not
        # be read by the other; frozen groups get gradients of zero.
        for name, tree in grads.items():
            stays = jax.tree.map(jnp.zeros_like, state.params[name])
            grads[name] = freezing.merged(held[name], stays, tree)
        updates, opt_state = optimizer.update({**zeros, **grads}, state.opt_state, state.params)
        for name, rate in getattr(task, "rates", {}).items():
            updates[name] = jax.tree.map(lambda u, rate=rate: rate * u, updates[name])
        # Momentum and decay would still move what has no gradient.
        moved = optax.apply_updates(
            {n: state.params[n] for n in learns}, {n: updates[n] for n in learns}
        )
        params = freezing.merged(held, state.params, {**state.params, **moved})
        averaged = {name: params[name] for name in state.ema}
        averages = update_ema(state.ema, averaged, ema)
        # A plain mean of the first hundred steps, then an exponential one: without it the start
        # value 0 would weigh on the mean for hundreds of steps.
        rate = jnp.minimum(TRACK_DECAY, state.step / (state.step + 1.0))
        tracked = {n: rate * v + (1 - rate) * metrics[n] for n, v in state.tracked.items()}
        return (
            TrainState(
                params=params,
                # Of what never moves the average is what it was at first.
                ema=freezing.merged({n: held[n] for n in state.ema}, state.ema, averages),
                opt_state=opt_state,
                tracked=tracked,
                step=state.step + 1,
                extra=extra,
            ),
            metrics,
        )

    return step
