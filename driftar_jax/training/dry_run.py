"""What a training step needs on a mesh: compiled, never run, no array of it ever made.

Devices are simulated where there are none: sizes and operations do not depend on them.
"""

import dataclasses
import functools
import math
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from driftar_jax import model, seeds
from driftar_jax.data import is_latents
from driftar_jax.features import maps
from driftar_jax.storage.compiled import afresh
from driftar_jax.targets.chips import Target
from driftar_jax.targets.program import Compiled, compile_for, count_collectives, words
from driftar_jax.targets.program import report as program_report
from driftar_jax.training import loop, masked, phi, specs, tasks

GIB = 2**30


# Nothing is run here, and fast machine code is most of XLA's work on CPUs; memory, operations and
# collectives are decided before it.
_QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@dataclasses.dataclass(frozen=True)
class Needs:
    """A compiled step of one phase; bytes are of one device, operations of the whole step.

    Attributes:
      mesh: sizes of data, fsdp and tensor.
      parameters: numbers of all groups.
      params, optimizer, average, own: bytes of the state: parameters, moments, moving average, and
        what a task keeps beside them (the bank).
      kept: bytes that a micro-batch's forward pass keeps for its gradient, before the compiler;
        what `host.remat` lowers.
      temporary: bytes of activations and whatever else lives inside the step; None if the step was
        lowered alone.
      flops: floating-point operations, forward, backward and update, before the compiler.
      moved: bytes read and written by the compiled operations of one device, or None.
      collectives: kind -> (number, bytes) a step per device, or None.
      seconds: of lowering and compiling.
      program: what the compiler of a target said, where one was asked.
    """

    mesh: tuple[int, int, int]
    parameters: int
    params: int
    optimizer: int
    average: int
    own: int
    kept: int
    temporary: int | None
    flops: float
    moved: float | None
    collectives: dict[str, tuple[int, int]] | None
    seconds: float
    program: Compiled | None = None

    @property
    def devices(self) -> int:
        """Count the devices of the mesh."""
        return math.prod(self.mesh)

    def step_seconds(self, peak_tflops: float, peak_gb_s: float) -> float:
        """Return the least time of a step under two ceilings: arithmetic and memory; links are left
        out.

        Args:
          peak_tflops, peak_gb_s: of one device, as they were measured or are promised.
        """
        arithmetic = self.flops / self.devices / (1e12 * peak_tflops)
        return max(arithmetic, (self.moved or 0.0) / (1e9 * peak_gb_s))


def measure(
    settings: Any,
    *,
    compiled: bool = True,
    frozen: bool = False,
    network: Any | None = None,
    target: Target | None = None,
) -> Needs:
    """Lower and compile the training step of a checked config on its mesh.

    Args:
      settings: checked config; `drift.features_from` is not read.
      compiled: False stops before XLA, which takes minutes at the largest sizes.
      frozen: the second phase.
      network: config of task `mae` in whose features whole grids drift; None: in the identity.
      target: chips to compile for; operations are then counted in the program for a CPU, for their
        compilers do not say. None: what this process computes on.

    Raises:
      ValueError: the mesh does not fit the devices, the batch or a parameter.
    """
    images = specs.image_spec(settings)
    space = None
    if settings.task == "drift" and "features" in settings.drift:
        space = _space(network, images)
    trainer = _loop(settings, images, space, target and target.devices)
    batch, step = _batch(settings, images), trainer.step_function(frozen)
    lower = functools.partial(step.lower, trainer.abstract, batch)
    start = time.monotonic()
    temporary = moved = collectives = program = None
    if target is None:
        lowered = lower()
        flops = _flops(lowered, trainer, settings, images, space, frozen)
        if compiled:
            with afresh():
                made_here = lowered.compile(_QUICK if jax.default_backend() == "cpu" else None)
            temporary = int(made_here.memory_analysis().temp_size_in_bytes)
            moved = float(made_here.cost_analysis().get("bytes accessed", 0.0))
            collectives = count_collectives(made_here.as_text())
    else:
        flops = _flops(None, trainer, settings, images, space, frozen)
        if compiled:
            program = compile_for(target, lower)
            collectives = program.collectives
    seconds, state = time.monotonic() - start, trainer.abstract
    return Needs(
        mesh=tuple(trainer.mesh.shape.values()),
        parameters=sum(math.prod(a.shape) for a in jax.tree.leaves(state.params)),
        params=_share(state.params),
        optimizer=_share(state.opt_state),
        average=_share(state.ema),
        own=_share(state.extra),
        kept=_kept(trainer, batch, frozen),
        temporary=temporary,
        flops=flops,
        moved=moved,
        collectives=collectives,
        seconds=seconds,
        program=program,
    )


def _flops(lowered, trainer, settings, images, space, frozen) -> float:
    """Operations of a step: of `lowered`, or of the same step in one piece on one CPU."""
    if lowered is None or _has_loops(trainer, settings):
        whole = _without_loops(settings)
        devices = None
        if lowered is None:
            devices = jax.devices("cpu")[:1]
            # Their operations do not depend on the mesh, and one CPU is always there.
            whole.mesh.update(data=1, fsdp=1, tensor=1)
        again = _loop(whole, images, space, devices, unroll=True)
        lowered = again.step_function(frozen).lower(again.abstract, _batch(settings, images))
    return float(lowered.cost_analysis()["flops"])


def _kept(trainer: loop.Loop, batch: dict[str, jax.ShapeDtypeStruct], frozen: bool) -> int:
    """Bytes on one device of what `jax.vjp` of a micro-batch's loss holds, weights included."""
    learns, parts = trainer.task.trainable(frozen), trainer.config.optim.accumulate
    few = {
        n: jax.ShapeDtypeStruct((a.shape[0] // parts, *a.shape[1:]), a.dtype)
        for n, a in batch.items()
    }

    def pulled_back(params, extra, batch, step):
        fixed = {name: tree for name, tree in params.items() if name not in learns}
        own = () if extra is None else (extra,)
        # Any key will do: what is held depends on shapes alone.
        key = jax.random.fold_in(seeds.key(0), step)

        def loss(moving):
            return trainer.task.loss({**fixed, **moving}, batch, key, step, frozen, *own)[0]

        return jax.vjp(loss, {name: params[name] for name in learns})[1]

    state = trainer.abstract
    held = jax.eval_shape(pulled_back, state.params, state.extra, few, state.step)
    size = sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(held))
    return size // (trainer.mesh.shape["data"] * trainer.mesh.shape["fsdp"])


def _space(network: Any | None, images: model.ImageSpec):
    """Phi of a network that need not have been trained."""
    if network is None:
        return maps.Identity(), None
    shapes = nn.unbox(jax.eval_shape(masked.build(network, images).init, seeds.key(0)))
    # One zero that looks like an array of any size.
    none = jax.tree.map(lambda a: np.broadcast_to(np.zeros((), a.dtype), a.shape), shapes["mae"])
    return phi.maps(network, images, none)


def _batch(settings: Any, images: model.ImageSpec) -> dict[str, jax.ShapeDtypeStruct]:
    size, (h, w, c) = settings.train.batch_size, images.image_shape
    batch = {"label": jax.ShapeDtypeStruct((size,), jnp.int32)}
    if is_latents(settings.data.name):
        batch["moments"] = jax.ShapeDtypeStruct((size, 2, h, w, 2 * c), jnp.float32)
    else:
        batch["image"] = jax.ShapeDtypeStruct((size, h, w, c), jnp.uint8)
    if images.text is not None:
        batch["text"] = jax.ShapeDtypeStruct((size, 1 + images.text.prompt), jnp.int32)
        if images.edits:
            batch["source"] = batch["image"]
    return batch


def _loop(
    settings: Any, images: model.ImageSpec, space, devices=None, *, unroll: bool = False
) -> loop.Loop:
    task = tasks.build(settings, images, space)
    if unroll and _has_layer_loop(task):
        parts = dataclasses.replace(task.parts, host=task.parts.host.clone(unroll=True))
        contexts = dataclasses.replace(task.contexts, model=parts)
        task = dataclasses.replace(task, contexts=contexts)
    return loop.Loop(task, settings, None, {}, devices)


def _has_layer_loop(task: Any) -> bool:
    # Asked of the host's fields: a task without a host, or a host without such a loop, has none.
    return hasattr(getattr(getattr(task, "parts", None), "host", None), "unroll")


def _has_loops(trainer: loop.Loop, settings: Any) -> bool:
    chunked = bool(settings.get("drift", {}).get("chunk", 0))
    return settings.optim.accumulate > 1 or chunked or _has_layer_loop(trainer.task)


def _without_loops(settings: Any) -> Any:
    """The same step in one piece, whose operations can be counted: a loop's body counts once."""
    whole = settings.copy_and_resolve_references()
    whole.optim.accumulate = 1
    if "chunk" in whole.get("drift", {}):
        whole.drift.chunk = 0
    return whole


def _share(tree) -> int:
    """Bytes of a tree on one device."""
    return sum(
        math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(tree)
    )


def report(settings: Any, needs: Needs, peak_tflops: float, peak_gb_s: float) -> list[str]:
    """Return lines of `train --dry_run`."""

    def gib(size):
        return "not known without compiling" if size is None else f"{size / GIB:.3f} GiB"

    lines = [
        f"devices            {needs.devices}: data x fsdp x tensor = "
        f"{' x '.join(str(n) for n in needs.mesh)}",
        f"parameters         {count(needs.parameters)}",
        f"bytes per device   parameters {gib(needs.params)}, optimiser {gib(needs.optimizer)}, "
        f"average {gib(needs.average)}, bank {gib(needs.own)}",
        f"                   kept for the gradient {gib(needs.kept)} before the compiler, "
        + (
            f"activations and temporaries {gib(needs.temporary)}; no caches in training"
            if needs.program is None
            else "no caches in training"
        ),
        f"operations         {needs.flops / 1e12:.3f} TFLOP a step of {settings.train.batch_size}",
    ]
    if needs.program is not None:
        return [*lines, *program_report(needs.program)]
    if needs.moved is not None:
        lines.append(f"bytes moved        {gib(int(needs.moved))} a step per device")
        lines.append(f"collectives        {words(needs.collectives) or 'none'}")
    if peak_tflops and peak_gb_s:
        least = needs.step_seconds(peak_tflops, peak_gb_s)
        lines.append(
            f"step               at least {least:.4g} s under {peak_tflops:g} TFLOP/s and "
            f"{peak_gb_s:g} GB/s a device; links, start-up and data are left out, and the bytes "
            f"are those of XLA's program for {jax.default_backend()}"
        )
    lines.append(f"compiled in        {needs.seconds:.0f} s; nothing was run")
    return lines


def count(parameters: int) -> str:
    """Return `1.78 M`, `208 M`, `15 B`."""
    large = parameters >= 1e9
    return f"{parameters / (1e9 if large else 1e6):.3g} {'B' if large else 'M'}"


def row(name: str, settings: Any, needs: Needs, peak_tflops: float, peak_gb_s: float) -> str:
    """Return one line of the table of docs/scale.md."""
    sizes = (needs.params, needs.optimizer, needs.average, needs.own, needs.kept)
    sizes += (needs.temporary,)
    cells = (
        name,
        count(needs.parameters),
        str(settings.train.batch_size),
        "x".join(str(n) for n in needs.mesh),
        *("-" if size is None else f"{size / GIB:.3g}" for size in sizes),
        f"{needs.flops / 1e12:.3g}",
        f"{needs.step_seconds(peak_tflops, peak_gb_s):.3g}",
        *_total(needs),
    )
    return "| " + " | ".join(cells) + " |"


def _total(needs: Needs) -> tuple[str, str]:
    """Number and GiB of all collectives; "-" where nothing was compiled."""
    if needs.collectives is None:
        return "-", "-"
    kinds = needs.collectives.values()
    return str(sum(n for n, _ in kinds)), f"{sum(size for _, size in kinds) / GIB:.3g}"


HEADER = (
    "| config | parameters | batch | data x fsdp x tensor | params GiB | optimiser GiB "
    "| average GiB | bank GiB | kept GiB | temporaries GiB | TFLOP a step | least seconds "
    "| collectives | their GiB |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def simulate(devices: int) -> None:
    """Pretend to have this many devices; before any is touched."""
    if devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)


TARGET_HEADER = (
    "| config | batch | target | data x fsdp x tensor | peak GiB | of GiB | code MiB "
    "| collectives a device | matrix products | lowered, s of CPU | compiled, s of CPU |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def target_row(name: str, settings: Any, needs: Needs) -> str:
    """Return one line of the table of chips of docs/scale.md."""
    program = needs.program
    fits = "" if program.fits else " **does not fit**"
    cells = (
        name,
        str(settings.train.batch_size),
        program.target,
        "x".join(str(n) for n in needs.mesh),
        f"{program.peak / GIB:.3g}{fits}",
        f"{program.memory / GIB:.3g}",
        "-" if program.code is None else f"{program.code / 2**20:.3g}",
        words(program.collectives) or "-",
        str(program.products),
        f"{program.lower_cpu:.3g}",
        f"{program.compile_cpu:.3g}",
    )
    return "| " + " | ".join(cells) + " |"
