"""How long an image takes, and where the time goes; with trained or with random weights.

Backbone and head are timed as the sampler runs them, with the same sizes and in the same scan, but
one without the other; what is left of the whole is `rest`: keys, gathers, the grid.
"""

import dataclasses
import functools
import resource
import sys
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from driftar_jax.hosts.nextstep import NextStep
from driftar_jax.sampling import draft_count, sampler, speculate
from driftar_jax.sampling.generator import Loaded
from driftar_jax.types import Counts, Encoding


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds over the rounds, one value per round, and the compilation's."""

    seconds: tuple[float, ...]
    compile_s: float

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))


@dataclasses.dataclass(frozen=True)
class Row:
    """One method at one batch size; times are of a whole batch.

    With drafts, or a cache, a call is one loop whose pieces have no times of their own; `drafted`
    says what an image with drafts cost (`speculate.counts`).
    """

    method: str
    settings: sampler.Settings
    batch_size: int
    whole: Times
    backbone: Times | None
    head: Times | None
    temporary_bytes: int
    peak_bytes: int
    drafted: Counts | None = None

    def as_json(self) -> dict:
        """Flat record; seconds are per image."""
        there = [n for n in PIECES if getattr(self, n) is not None]
        per_image = {n: getattr(self, n).median / self.batch_size for n in there}
        rest = per_image["whole"] - sum(per_image[n] for n in there[1:])
        steps, cost = self.settings.ar_steps, self.drafted
        evaluations = cost.head_evaluations if cost else sum(self.settings.head_steps)
        return {
            "method": self.method,
            "batch_size": self.batch_size,
            "ar_steps": steps,
            "backbone_calls": cost.backbone_calls if cost else steps,
            "draft_calls": cost.draft_calls if cost else 0,
            "head_evaluations": evaluations,
            "guidance": self.settings.guidance,
            "seconds_per_image": per_image["whole"],
            "seconds_per_image_low": min(self.whole.seconds) / self.batch_size,
            "seconds_per_image_high": max(self.whole.seconds) / self.batch_size,
            "backbone_s": per_image.get("backbone"),
            "head_s": per_image.get("head"),
            "rest_s": max(rest, 0.0),
            "rounds": len(self.whole.seconds),
            "compile_s": self.whole.compile_s,
            "temporary_bytes": self.temporary_bytes,
            "peak_bytes": self.peak_bytes,
        }


PIECES = ("whole", "backbone", "head")


def methods(settings: sampler.Settings, controls: bool) -> list[tuple[str, sampler.Settings]]:
    """The settings asked for and, with `controls`, what a speed-up has to be held against.

    Those are, for the own head: fewer head steps, head steps that fall over the AR steps, and fewer
    AR steps.
    """
    rows = [(settings.method, settings)]
    if settings.drafts:
        auto = "auto" if settings.drafts < 0 else settings.drafts
        name = f"{settings.method}, gamma {auto} ({settings.rule})"
        rows = [(settings.method, settings.changed(gamma=0)), (name, settings)]
        settings = settings.changed(gamma=0)
    if not controls:
        return rows
    change = functools.partial(dataclasses.replace, settings)
    if settings.method == "own":
        few = max(1, settings.nfe // 10)
        rows.append(("own, a tenth of the head steps", change(nfe=few, nfe_schedule="constant")))
        rows += [
            (f"own, head steps {schedule}", change(nfe_schedule=schedule, nfe_last=few))
            for schedule in ("two_stage", "linear", "cosine")
        ]
    quarter = max(1, settings.ar_steps // 4)
    return [*rows, (f"{settings.method}, a quarter of the AR steps", change(ar_steps=quarter))]


def measure(
    subject: Loaded,
    table: Sequence[tuple[str, sampler.Settings]],
    *,
    batch_sizes: Sequence[int],
    rounds: int,
    tell: Callable[[str], None] = print,
) -> list[Row]:
    """Time all methods at all batch sizes; `tell` takes a line for each.

    Args:
      subject: what is timed.
      table: from `methods`; settings checked.
      batch_sizes: images per call.
      rounds: timed calls, at least 1, after one that is not timed.
    """
    rows = []
    for batch_size in batch_sizes:
        for name, settings in table:
            rows.append(_row(subject, name, settings, batch_size, rounds))
            tell(line(rows[-1].as_json()))
    return rows


def line(record: dict) -> str:
    """One row for a reader."""
    pieces = [("backbone", "backbone_s"), ("head", "head_s"), ("rest", "rest_s")]
    pieces = [f"{n} {record[key]:.3g}" for n, key in pieces if record["backbone_s"] is not None]
    pieces += [f"{record['backbone_calls']:.2f} backbone calls"]
    return (
        f"{record['method']}, batch {record['batch_size']}: {record['seconds_per_image']:.4g} s "
        f"per image ({record['seconds_per_image_low']:.4g} to "
        f"{record['seconds_per_image_high']:.4g}); {', '.join(pieces)}; compiled in "
        f"{record['compile_s']:.1f} s; peak memory {record['peak_bytes'] / 2**30:.2f} GiB"
    )


def _row(subject: Loaded, name: str, settings, batch_size: int, rounds: int) -> Row:
    parts, params = subject.parts, subject.params
    label = subject.conditions(np.arange(batch_size) % parts.images.num_classes, 0)
    index = jnp.arange(batch_size, dtype=jnp.int32)
    if settings.drafts < 0:
        settings = draft_count.choose(parts, settings, params, batch_size, labels=label).settings
        name = name.replace("auto", f"auto = {settings.gamma}")
    label = jnp.asarray(label)
    whole = params, label, index, jnp.uint32(0)
    plain = settings.changed(gamma=0)
    asked = {
        "whole": (sampler.generate, (parts, plain), whole),
        "backbone": (_backbone_alone, (parts, plain), (params, label)),
        "head": (_head_alone, (parts, plain), (params, index)),
    }
    if isinstance(parts.host, NextStep):
        del asked["backbone"], asked["head"]  # one loop over a cache, never apart
    if settings.drafts:
        static = parts, settings.draft_rule(settings.drafts), plain
        asked = {"whole": (speculate.generate, static, whole)}
    calls, compiled_in, temporary = {}, {}, 0
    for piece, (function, static, arguments) in asked.items():
        start = time.perf_counter()
        compiled = function.lower(*static, *arguments).compile()
        compiled_in[piece] = time.perf_counter() - start
        calls[piece] = functools.partial(compiled, *arguments)
        if piece == "whole":
            temporary = compiled.memory_analysis().temp_size_in_bytes
    made = {piece: jax.block_until_ready(call()) for piece, call in calls.items()}
    taken = {piece: [] for piece in calls}
    for _ in range(rounds):
        # In turn, so that a slow moment of the machine hits all pieces.
        for piece, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            taken[piece].append(time.perf_counter() - start)
    times = {p: Times(tuple(taken[p]), compiled_in[p]) if p in calls else None for p in PIECES}
    drafted = None
    if settings.drafts:
        drafted = speculate.counts(speculate.joined([made["whole"][1]], batch_size))
    memory = {"temporary_bytes": temporary, "peak_bytes": _peak()}
    return Row(name, settings, batch_size, **times, **memory, drafted=drafted)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _backbone_alone(parts, settings, params, label):
    """The sampler's backbone calls, on contexts of the right sizes."""
    images = parts.images
    batch, num_tokens = label.shape[0], images.num_tokens
    tokens = jnp.zeros((batch, num_tokens, images.token_dim), jnp.float32)
    rank = jnp.broadcast_to(jnp.arange(num_tokens), (batch, num_tokens))

    def call(steps, total, step):
        known = rank >= step["now"]
        made = sampler.backbone(parts, settings, steps, params, tokens, known, label, step["keep"])
        # Drift-AR reads the entropy, the own head does not: what is not read is not computed.
        read = made.z.sum() + (made.entropy.sum() if parts.prior is not None else 0.0)
        return total + read, None

    total = jnp.float32(0)
    for steps in sampler.plans_of(parts, settings):
        total, _ = jax.lax.scan(functools.partial(call, steps), total, steps.columns())
    return total


@functools.partial(jax.jit, static_argnums=(0, 1))
def _head_alone(parts, settings, params, index):
    """The sampler's head calls with what the backbone leaves to them, on features all alike."""
    images = parts.images
    batch, num_tokens = index.shape[0], images.num_tokens
    rows = 2 * batch if settings.guided else batch
    seen = Encoding(
        z=jnp.ones((rows, parts.host.buffer_size + num_tokens, parts.host.width), jnp.float32),
        entropy=jnp.full((rows, num_tokens), 0.5, jnp.float32),
    )
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(0)))(index)
    order = jnp.broadcast_to(jnp.arange(num_tokens), (batch, num_tokens))

    def call(steps, tokens, step):
        asked = (parts, settings, steps, params, tokens, seen, order, keys, step)
        return sampler.reveal(*asked), None

    tokens = jnp.zeros((batch, num_tokens, images.token_dim), jnp.float32)
    for steps in sampler.plans_of(parts, settings):
        tokens, _ = jax.lax.scan(functools.partial(call, steps), tokens, steps.columns())
    return tokens


def _peak() -> int:
    """Most bytes held so far: by the device where it tells, else by this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
