"""The only training loop. What is trained is a `Task`; what is shown comes in as callables."""

import collections
import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from tqdm import tqdm

from driftar_jax import seeds, sharding
from driftar_jax.config import lasting, wrong
from driftar_jax.layers import low_rank
from driftar_jax.storage.checkpoints import Checkpoints, abstract_like
from driftar_jax.training import freezing, journal, optim, processes, tracing
from driftar_jax.training.step import init_extra, make_step
from driftar_jax.training.tasks import Task

# Steps that the host may be ahead of the device: enough to keep it busy, few enough that a signal,
# a clock and a progress bar mean what they say even where a step takes seconds.
_AHEAD = 2
_ADAPTERS = 2**31 - 2  # folded into the key of a run's parameters for its adapters


class NonFiniteLoss(RuntimeError):
    """Say that the loss or its gradient is no number any more; the message names the steps."""


class BadData(RuntimeError):
    """Say that data could not be read; the message names the step and, where known, the file."""


class Loop:
    """A run: state, compiled steps, data, log and checkpoints of one workdir.

    Args:
      task: what is trained.
      config: checked config; read for `seed`, `optim`, `train` and `mesh` alone.
      workdir: folder of the run; need not exist before the first step or restore.
      manifest: JSON-able facts stored beside every checkpoint.
      devices: of the mesh; all that are here by default.

    Raises:
      ValueError: the mesh does not fit the devices, the batch or a parameter; nothing is written.
    """

    @seeds.fixed()
    def __init__(
        self,
        task: Task,
        config: Any,
        workdir: pathlib.Path,
        manifest: dict,
        devices: Sequence[jax.Device] | None = None,
    ):
        self.task, self.config, self.workdir, self.manifest = task, config, workdir, manifest
        self.mesh = sharding.make_mesh(**config.mesh.to_dict(), devices=devices)
        sharding.check_batch(config.train.batch_size // config.optim.accumulate, self.mesh)
        self.rank = config.get("adapter", {}).get("rank", 0)
        # The host of adapters stays as it is, and so do the groups that a task never moves.
        stays = (f"{low_rank.OF}.*",) if self.rank else ()
        stays += tuple(f"{group}.*" for group in getattr(task, "stays", ()))
        self.freeze = (*freezing.globs(config.optim.get("freeze", "")), *stays)
        self.optimizer = optim.make_optimizer(config.optim, config.train.steps, stays)
        self.compilations = 0
        # Shapes alone: shardings must be known before the first parameter is made, or a model that
        # fits the devices together would first be made on one of them.
        boxed = jax.eval_shape(self._init)
        if self.rank:
            host = nn.meta.unbox(boxed.params[low_rank.OF])
            if self.rank > (most := low_rank.full_rank(host)):
                allowed = f"0 to {most}, the full rank of the host's widest layers"
                raise wrong("adapter.rank", self.rank, allowed)
        phases = (False,) if task.freeze_step is None else (False, True)
        learns = tuple(self._learns(task.trainable(phase)) for phase in phases)
        freezing.check(self.freeze, boxed.params, learns)
        self.shardings = sharding.state_shardings(boxed, self.mesh)
        self.abstract = abstract_like(nn.meta.unbox(boxed), self.shardings)
        self._steps: dict[bool, Callable] = {}

    @functools.cached_property
    def checkpoints(self) -> Checkpoints:
        """Open those of the workdir; nothing is written there before they are asked for."""
        return Checkpoints(self.workdir, keep=self.config.train.keep)

    def close(self) -> None:
        """Finish the saves; a workdir that was never looked at stays as it is."""
        if "checkpoints" in self.__dict__:
            self.checkpoints.close()

    def _init(self) -> optim.TrainState:
        key = seeds.key(self.config.seed)
        params, extra = self.task.init(key), init_extra(self.task, key)
        if self.rank:
            host = nn.meta.unbox(params[low_rank.OF])
            # Folded, so that everything else is drawn as in a run without adapters.
            key_adapters = jax.random.fold_in(key, _ADAPTERS)
            params = params | {low_rank.GROUP: low_rank.init(host, self.rank, key_adapters)}
        return self._state(params, extra)

    def _state(self, params, extra) -> optim.TrainState:
        aside = getattr(self.task, "aside", ())
        return optim.init_state(params, self.optimizer, self.task.tracked, extra, aside)

    def _learns(self, groups: tuple[str, ...]) -> tuple[str, ...]:
        more = (low_rank.GROUP,) if self.rank and low_rank.OF in groups else ()
        return (*groups, *more)

    @seeds.fixed()
    def fresh_state(self, weights: dict[str, Any] | None = None) -> optim.TrainState:
        """Return the state at step 0, the groups in `weights` taken from another run."""

        def init():
            state = nn.meta.unbox(self._init())
            # The optimizer and the average are made of what is trained on, not of what was drawn:
            # an average that began at the drawn weights would take thousands of steps to forget
            # them.
            params = {**state.params, **(weights or {})}
            for name, source in getattr(self.task, "aside", {}).items():
                params[name] = params[source]
            return self._state(params, state.extra)

        return jax.jit(init, out_shardings=self.shardings)()

    @seeds.fixed()
    def restore(
        self, batches, *, fall_back: bool = False, say: Callable[[str], None] = print
    ) -> optim.TrainState | None:
        """Read the state of the workdir's newest checkpoint and the data position, or None.

        Args:
          batches: is moved to the position.
          fall_back: set damaged checkpoints aside and take the newest whole one; each is named.
          say: where the lines about those go.

        Raises:
          ValueError: the newest checkpoint is damaged or does not fit, or, with `fall_back`, none
            of several is whole; or there are folders beside it and none is a step.
        """
        if fall_back:
            self._set_damaged_aside(say)
        step = self.checkpoints.latest_step()
        if others := self.checkpoints.strangers():
            shown = ", ".join(map(repr, others[:3])) + (", ..." if len(others) > 3 else "")
            folder = self.checkpoints.workdir / "checkpoints"
            if step is None:
                raise ValueError(
                    f"checkpoint: got {shown} in {folder}, allowed folders that are called by "
                    "their step, such as 500, or none (never silently a new run)"
                )
            if processes.leads():
                say(f"{folder}: {shown} is no step and is not read")
        if step is None:
            return None
        a = self.abstract
        rest = {"opt_state": a.opt_state, "tracked": a.tracked, "step": a.step}
        own = {} if a.extra is None else {"extra": a.extra}
        # The abstract arrays carry shardings, so that a run may go on on another number of devices.
        read = self.checkpoints.restore(step, params=a.params, ema=a.ema, train=rest, **own)
        if (then := read["manifest"].get("random", seeds.FACTS)) != seeds.FACTS:
            raise ValueError(
                f"checkpoint: got step {step} of {self.workdir} of a run that drew {then}, allowed "
                f"{seeds.FACTS}"
            )
        # In a folder that was renamed a run would go on in the wrong place of schedules and data.
        if (held := int(read["train"]["step"])) != step:
            raise ValueError(
                f"checkpoint: got step {held} in the folder of step {step} of {self.workdir}, "
                "allowed folders that are called what they hold"
            )
        batches.restore(read["position"])
        trees = {name: read[name] for name in ("params", "ema", *own)}
        return optim.TrainState(**trees, **read["train"])

    def _set_damaged_aside(self, say: Callable[[str], None]) -> None:
        if processes.leads():
            # One process looks and moves; the others wait, or they would see a folder that is being
            # renamed.
            whole, bad = self.checkpoints.newest_whole()
            if bad and whole is None:
                step, wrong = next(iter(bad.items()))
                raise ValueError(
                    f"checkpoint: got step {step} of {self.workdir} with {wrong}, allowed a "
                    "workdir with at least one whole checkpoint (never silently a new run)"
                )
            for step, wrong in bad.items():
                say(f"step {step}: {wrong}; moved to {self.checkpoints.set_aside(step)}")
        processes.barrier("whole checkpoints alone")
        self.checkpoints.reload()

    def save(self, state: optim.TrainState, batches) -> None:
        """Save `state` with the data position, in the background."""
        rest = {"opt_state": state.opt_state, "tracked": state.tracked, "step": state.step}
        self.checkpoints.save(
            int(state.step),
            # Beside the state that goes on, for readers that want no optimizer.
            manifest=self.manifest
            | {"tracked": {n: float(v) for n, v in state.tracked.items()}, "random": seeds.FACTS},
            position=batches.state(),
            config=lasting(self.config),
            params=state.params,
            ema=state.ema,
            train=rest,
            **({} if state.extra is None else {"extra": state.extra}),
        )

    def step_function(self, frozen: bool) -> Callable:
        """Return the compiled step of a phase: `(state, batch) -> (state, metrics)`, donating."""
        if frozen not in self._steps:

            def counted(state, batch, seed):
                self.compilations += 1  # runs when traced, never inside a step
                step = make_step(
                    self.task,
                    self.optimizer,
                    seed=seed,
                    frozen=frozen,
                    accumulate=self.config.optim.accumulate,
                    ema=self.config.optim.ema,
                    freeze=self.freeze,
                    adapters=bool(self.rank),
                )
                with sharding.activations_on(self.mesh):
                    return step(state, batch)

            everywhere = sharding.replicated(self.mesh)
            compiled = jax.jit(
                counted,
                in_shardings=(self.shardings, sharding.batch_sharding(self.mesh), everywhere),
                out_shardings=(self.shardings, everywhere),
                donate_argnums=0,
            )
            self._steps[frozen] = _Seeded(compiled, seeds.argument(self.config.seed))
        return self._steps[frozen]

    @seeds.fixed()
    def run(
        self,
        state: optim.TrainState,
        batches,
        *,
        on_sample: Callable[[int, optim.TrainState], None] | None = None,
        on_held_out: Callable[[int, optim.TrainState], None] | None = None,
        say: Callable[[str], None] = print,
        stop: Callable[[], str] = lambda: "",
        trace: tracing.Trace | None = None,
    ) -> optim.TrainState:
        """Train from `state.step` to `train.steps`, or until `stop`.

        Args:
          state: from `fresh_state` or `restore`; donated.
          batches: iterator with `state()`, at the matching position.
          on_sample: called every `train.sample_every` steps and at the end.
          on_held_out: called every `train.held_out_every` steps and at the end, if that is not 0.
          say: where the log lines go.
          stop: asked after every step; what it returns says why the run has to stop, "" to go on.
            Several processes compare their answers at the log lines.
          trace: the steps to profile.

        Returns:
          The final state, saved.

        Raises:
          NonFiniteLoss: a loss or gradient norm is not finite; nothing of it has been saved.
          BadData: a batch could not be read.
          SaveFailed: a checkpoint could not be written.
        """
        train, start = self.config.train, int(state.step)
        log = goodput = None
        if processes.leads():
            log = journal.MetricsLog(self.workdir / "metrics.jsonl", start)
            goodput = journal.Goodput(self.workdir / "goodput.jsonl", start, processes.BORN)
        place = sharding.batch_sharding(self.mesh)
        # XLA's CPU pool deadlocks when steps with collectives queue up (two cores, many devices).
        ahead = 0 if self.mesh.size > 1 and jax.default_backend() == "cpu" else _AHEAD
        meter = journal.Meter(train.steps, train.batch_size)
        quiet = None if processes.leads() else True
        bar = tqdm(total=train.steps, initial=start, disable=quiet, leave=False)
        aside = [(on_sample, train.sample_every)] if on_sample else []
        if on_held_out and (every := train.get("held_out_every", 0)):
            aside.append((on_held_out, every))
        clock = processes.Clock(60 * train.get("checkpoint_minutes", 0))
        pending, done = collections.deque(), start
        why = processes.agreed(stop())
        while done < train.steps and not why:
            step = done
            with meter.waiting():
                batch = _next(batches, done)
            arrays = {
                name: jax.make_array_from_process_local_data(place, array)
                for name, array in batch.items()
            }
            frozen = self.task.freeze_step is not None and step >= self.task.freeze_step
            with contextlib.ExitStack() as around:
                if trace:
                    around.enter_context(trace.step(step))
                # Two phases, two programs: what is frozen is known when the step is traced, so that
                # the backward pass of frozen groups is never computed.
                if frozen not in self._steps:
                    around.enter_context(meter.compiling())
                # Metrics stay on the device until the next log line: reading them here would make
                # the host wait for every step.
                state, metrics = self.step_function(frozen)(state, arrays)
                pending.append((step, metrics))
                if trace and trace.waits(step):
                    jax.block_until_ready(metrics)
                if len(pending) > ahead:
                    jax.block_until_ready(pending[-1 - ahead])
            bar.update()
            done = step + 1
            last, logs = done == train.steps, done % train.log_every == 0
            due = ""
            if jax.process_count() == 1 or logs:
                # Several processes ask at log lines alone, since agreeing is a collective: a
                # process that stopped alone would leave the others waiting in the next step.
                why = processes.agreed(stop())
                due = processes.agreed(clock.due())
            save = last or why or due or done % train.checkpoint_every == 0
            if logs or save:
                # Before the save: `_drain` raises on a loss that is not finite, and nothing of it
                # may be saved.
                record = meter.record(done, _drain(pending))
                self.checkpoints.check()
                if log:
                    log.write(record)
                    goodput.note(done, meter.stepping, meter.saving)
                    say(meter.line(record))
            if save:
                with meter.holding():
                    self.save(state, batches)
                clock.restart()
            for shown, every in aside:
                if last or (every and done % every == 0):
                    with meter.aside():
                        shown(done, state)
        bar.close()
        with meter.holding():
            self.checkpoints.wait()
        if trace:
            trace.close()
        if goodput and done > start:
            meter.record(done, {})
            goodput.note(done, 0.0, meter.saving)
            say(goodput.line())
        if done < train.steps and processes.leads():
            saved = f"step {done} is saved" if done > start else f"nothing is new since step {done}"
            say(f"stopped by {why}: {saved}; the same command goes on from there")
        return state


def _next(batches, done: int) -> dict[str, np.ndarray]:
    try:
        return next(batches)
    # What the readers of files raise, from whichever thread.
    except (ValueError, OSError, RuntimeError, EOFError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadData(
            f"data: got {line!r} after step {done}, allowed files that can be read; "
            "the last checkpoint stands, and the same command goes on from it"
        ) from error


def _drain(pending: collections.deque) -> dict[str, float]:
    """Means of the metrics since the last log line; one transfer for all of them."""
    steps, values = zip(*pending, strict=True)
    pending.clear()
    values = jax.device_get(values)
    bad = [
        step
        for step, value in zip(steps, values, strict=True)
        if not (np.isfinite(value["loss"]) and np.isfinite(value["grad_norm"]))
    ]
    if bad:
        first = values[steps.index(bad[0])]
        terms = [name for name, value in first.items() if not np.isfinite(value)]
        raise NonFiniteLoss(
            f"loss: got a value that is not finite in steps {bad[0]} to {bad[-1]} "
            f"(first in {', '.join(terms)}), allowed finite numbers; "
            "the last checkpoint is from before them; try a smaller optim.lr or optim.clip"
        )
    # The phases report different terms, and an interval may hold steps of both.
    names = dict.fromkeys(name for value in values for name in value)
    return {name: float(np.mean([v[name] for v in values if name in v])) for name in names}


@dataclasses.dataclass(frozen=True)
class _Seeded:
    """A step with the seed of its run: an argument, so that all seeds share a compiled program."""

    step: Callable
    seed: np.ndarray | np.uint32

    @seeds.fixed()
    def __call__(self, state, batch):
        return self.step(state, batch, self.seed)

    @seeds.fixed()
    def lower(self, state, batch):
        return self.step.lower(state, batch, self.seed)

    def _cache_size(self) -> int:
        return self.step._cache_size()
