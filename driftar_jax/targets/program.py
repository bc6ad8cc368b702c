"""What a chip's compiler says of a program: memory, code, collectives, and whether it fits."""

import dataclasses
import math
import re
import time
from collections.abc import Callable
from typing import Any

import jax

from driftar_jax.storage import compiled
from driftar_jax.targets import precision
from driftar_jax.targets.chips import GIB, Target

_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "f64": 8}
# Without the card NVIDIA's compiler cannot try which of its own matrix products is the fastest,
# takes one unseen, and then refuses some shapes; cuBLAS takes all of them.
_OPTIONS = {"cuda": {"xla_gpu_enable_triton_gemm": "False"}}
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program for a target; bytes are of one device.

    Attributes:
      target: name of the chips.
      memory: bytes of a device.
      peak: most bytes held at once, arguments and results included.
      code: bytes of machine code; None where the compiler did not come so far.
      collectives: kind -> (number, bytes of the results); those inside a loop count once.
      lower_seconds, compile_seconds: of the wall; of CPU where several processes share it they say
        little.
      lower_cpu, compile_cpu: seconds of CPU time of this process.
      products: matrix products in the lowered text.
      precision: of the float32 ones, in words.
    """

    target: str
    memory: int
    peak: int
    code: int | None
    collectives: dict[str, tuple[int, int]] | None
    lower_seconds: float
    lower_cpu: float
    compile_seconds: float
    compile_cpu: float
    products: int
    precision: str

    @property
    def fits(self) -> bool:
        """Say whether a device holds it: an H100's compiler takes any program without a word."""
        return self.code is not None and self.peak <= self.memory


def compile_for(target: Target, lower: Callable[[], Any]) -> Compiled:
    """Lower and compile a program.

    Args:
      target: of `chips.describe`.
      lower: makes the lowered program, whose arguments lie on devices of `target`.

    Raises:
      RuntimeError: the compiler refuses it, for another reason than its size.
    """
    start, cpu = time.monotonic(), time.process_time()
    lowered = lower()
    middle, cpu_middle = time.monotonic(), time.process_time()
    text = lowered.as_text()
    executable = too_large = None
    try:
        # A program that was kept would be read and not compiled, and its seconds would say nothing.
        with compiled.afresh():
            executable = lowered.compile(_OPTIONS.get(target.platform))
    except jax.errors.JaxRuntimeError as error:
        # A program that does not fit is an answer, not an error: how much it wanted stands in the
        # words.
        too_large = _asked_for(str(error))
        if too_large is None:
            raise
    end, cpu_end = time.monotonic(), time.process_time()
    return Compiled(
        target=target.name,
        memory=target.memory,
        peak=too_large if executable is None else _peak(executable),
        code=None if executable is None else _code(executable),
        collectives=None if executable is None else count_collectives(executable.as_text()),
        lower_seconds=middle - start,
        lower_cpu=cpu_middle - cpu,
        compile_seconds=end - middle,
        compile_cpu=cpu_end - cpu_middle,
        products=text.count("stablehlo.dot_general"),
        precision=precision.words(target.platform),
    )


def _asked_for(said: str) -> int | None:
    """Bytes that a refused program wants, as a TPU's compiler says it; None: refused otherwise."""
    used = r"[Uu]sed ([\d.]+)([KMGT]?)i?B? of [\d.]+[KMGT]?i?B? hbm"
    # Temporaries alone, where these are too many already.
    temporaries = r"required for HLO temporaries \(([\d.]+)([KMGT]?)i?B?\) exceeds available HBM"
    match = re.search(used, said) or re.search(temporaries, said)
    return int(float(match[1]) * _UNITS[match[2]]) if match else None


def _peak(executable: Any) -> int:
    memory = executable.memory_analysis()
    if memory.peak_memory_in_bytes:
        return memory.peak_memory_in_bytes
    # Not every compiler states a peak. Then all there is at once, donated arrays counted once.
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return held - memory.alias_size_in_bytes + memory.temp_size_in_bytes


def _code(executable: Any) -> int:
    size = executable.memory_analysis().generated_code_size_in_bytes
    # NVIDIA's code stands outside that number; all of the executable is the next best.
    return size or len(executable.runtime_executable().serialize())


def count_collectives(program: str) -> dict[str, tuple[int, int]]:
    """Return kind -> (number, bytes of their results on one device) in the text of a compiled
    program.

    A collective inside a loop counts once, as everything of XLA's does; one that is written in
    every fusion that moves it along, as TPUs have them, counts once for its channel.
    """
    totals, channels = {}, set()
    for line in program.splitlines():
        match = re.search(r"= (.*?) (" + "|".join(_COLLECTIVES) + r")(-start)?\(", line)
        if match is None:
            continue
        if channel := re.search(r"channel_id=(\d+)", line):
            if (match[2], channel[1]) in channels:
                continue
            channels.add((match[2], channel[1]))
        number, size = totals.get(match[2], (0, 0))
        totals[match[2]] = (number + 1, size + _result_bytes(match[1], bool(match[3])))
    return dict(sorted(totals.items()))


def _result_bytes(types: str, started: bool) -> int:
    """Of `f32[2,3]{1,0}` or a tuple; one that was started holds its operands as well."""
    sizes = [
        _BYTES.get(kind, 4) * math.prod(int(n) for n in shape.split(",") if n)
        for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", types)
    ]
    return sum(sizes) // 2 if started and len(sizes) > 1 else sum(sizes)


def words(collectives: dict[str, tuple[int, int]] | None) -> str:
    """Return `3 all-reduce (1.20 MiB), ...`."""
    return ", ".join(
        f"{number} {kind} ({size / 2**20:.2f} MiB)"
        for kind, (number, size) in (collectives or {}).items()
    )


def report(program: Compiled) -> list[str]:
    """Return lines for a reader."""
    size = lambda n: "not known" if n is None else f"{n / GIB:.3f} GiB"  # noqa: E731
    verdict = "it fits" if program.fits else "it does NOT fit"
    return [
        f"compiled for       {program.target}, float32 products as {program.precision}",
        f"peak               {size(program.peak)} of {size(program.memory)} a device: {verdict}",
        f"code               {size(program.code)}",
        f"collectives        {words(program.collectives) or 'none'} a device",
        f"lowered in         {program.lower_seconds:.0f} s ({program.lower_cpu:.0f} of CPU), "
        f"{program.products} matrix products",
        f"compiled in        {program.compile_seconds:.0f} s ({program.compile_cpu:.0f} of CPU); "
        "nothing was run",
    ]
