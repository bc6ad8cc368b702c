"""Names of chips, `tpu:v5e:4x4` or `gpu:h100:8`, and the devices that their compilers compile for.

The compilers come with the packages that drive the real chips (libtpu; jax's CUDA plugin) and need
no chip. Nothing can be run on the devices that are described here.
"""

import dataclasses
import importlib.resources
import importlib.util
import math
import os
import re
from collections.abc import Sequence

import jax

from driftar_jax.config import nearest, wrong
from driftar_jax.targets import precision

GIB = 2**30
# GiB of a device's memory, as the makers state it. A v4 chip is one device, a tpu7x chip two.
TPUS = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32, "tpu7x": 96}
GPUS = ("a100", "h100", "b200")
ALLOWED = "tpu:v5e:4x4 | tpu:v6e:2x4 | gpu:h100:8 | ..."
# GPUs of one host.
_OF_A_HOST = 8


@dataclasses.dataclass(frozen=True)
class Target:
    """Chips to compile for.

    Attributes:
      name: as they were asked for.
      platform: `tpu` or `cuda`, as jax names it.
      devices: of several processes where the slice has several hosts.
      memory: bytes of one device.
    """

    name: str
    platform: str
    devices: Sequence[jax.Device]
    memory: int


def describe(name: str) -> Target:
    """Return the chips called `name`; before anything is computed, for the process then computes on
    CPUs.

    Args:
      name: `tpu:KIND:ROWSxCOLUMNS` (a third side for v4, v5p and tpu7x), or `gpu:KIND:NUMBER`.

    Raises:
      ValueError: no such chip, no such slice, or its compiler is not installed; one line.
    """
    family, _, rest = name.partition(":")
    kind, _, size = rest.partition(":")
    if family not in ("tpu", "gpu"):
        raise wrong("target", name, ALLOWED)
    known = tuple(TPUS) if family == "tpu" else GPUS
    if kind not in known:
        near = nearest(kind, known)
        raise wrong("target", name, f"{family}:KIND:SIZE, KIND of {' | '.join(known)}{near}")
    _on_cpus()
    precision.again("tpu" if family == "tpu" else "cuda")
    return _tpus(name, kind, size) if family == "tpu" else _gpus(name, kind, size)


def _on_cpus() -> None:
    """What runs at all runs here; and libtpu says nothing of a machine that it does not find."""
    jax.config.update("jax_platforms", "cpu")
    quiet = {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # a second process may compile at the same time
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_MIN_LOG_LEVEL": "3",
        "TPU_STDERR_LOG_LEVEL": "3",
    }
    for variable, value in quiet.items():
        # What the user has set stands.
        os.environ.setdefault(variable, value)


def _tpus(name: str, kind: str, size: str) -> Target:
    sides = 2 if kind in ("v5e", "v6e") else 3
    example = "x".join("224"[-sides:]) if sides == 2 else "2x2x4"
    if not re.fullmatch(r"[1-9]\d?" + r"x[1-9]\d?" * (sides - 1), size):
        raise wrong("target", name, f"tpu:{kind}:{example}, {sides} sides of a slice")
    _installed(name, ("libtpu",), "pip install -r requirements-aot.txt")
    shape = [int(n) for n in size.split("x")]
    # The two cores of a v4 chip are one device only if the description says so.
    options = {"chip_config_name": "megacore"} if kind == "v4" else {}
    if math.prod(shape) == 1:
        # A host has several chips unless it is told otherwise, more than this slice.
        options["chips_per_host_bounds"] = (1, 1, 1)
    devices = _topology(name, "tpu", f"{kind}:{size}", **options)
    return Target(name, "tpu", devices, TPUS[kind] * GIB)


def _gpus(name: str, kind: str, size: str) -> Target:
    count = int(size) if size.isdecimal() else 0
    if not 1 <= count <= 4096 or (count > _OF_A_HOST and count % _OF_A_HOST):
        allowed = f"gpu:{kind}:8, 1 to {_OF_A_HOST} of one host or a multiple of {_OF_A_HOST}"
        raise wrong("target", name, allowed)
    how = "pip install -r requirements-cuda.txt, 3.4 GB"
    _installed(name, ("jax_cuda13_plugin", "jax_plugins.xla_cuda13"), how)
    text = (importlib.resources.files(__package__) / "gpus" / f"{kind}.txt").read_text()
    hosts, of_a_host = max(count // _OF_A_HOST, 1), min(count, _OF_A_HOST)
    shape = f"1x{hosts}x{of_a_host}"
    devices = _topology(name, "cuda", kind, topology=shape, target_config=text)
    return Target(name, "cuda", devices, int(re.search(r"device_memory_size: (\d+)", text)[1]))


def _installed(name: str, packages: Sequence[str], how: str) -> None:
    def there(package):
        try:
            # Of `a.b` it looks into `a`, and raises where that is missing.
            return importlib.util.find_spec(package) is not None
        except ModuleNotFoundError:
            return False

    if not all(there(package) for package in packages):
        raise wrong("target", name, f"chips whose compiler is installed ({how})")


def _topology(name: str, platform: str, topology_name: str, **options) -> Sequence[jax.Device]:
    from jax.experimental import topologies  # here: most programs compile for what they run on

    try:
        return topologies.get_topology_desc(
            platform=platform, topology_name=topology_name, **options
        ).devices
    except (RuntimeError, ValueError) as error:  # jax's own errors are RuntimeErrors
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise wrong("target", name, f"a slice that exists ({said})") from error
