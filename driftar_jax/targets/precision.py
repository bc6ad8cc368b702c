"""How many digits float32 matrix products keep on a chip; on CPUs always all of them.

NVIDIA's TF32 cuts operands to ten bits and is its chips' own way; jax's `tensorfloat32` is not it
there, but all of float32. TPUs make one pass of bfloat16 (seven bits) unless they are asked for
three (`high`, sixteen bits) or six (`highest`).
"""

import functools
import importlib.util

KINDS = ("default", "tf32", "float32")

_WORDS = {
    "cuda": {None: "TF32"},
    "gpu": {None: "TF32"},
    "tpu": {None: "one pass of bfloat16", "high": "three passes of bfloat16"},
}


def choose(matmul: str, platform: str | None = None) -> None:
    """Ask for so many digits in all programs of this process.

    Args:
      matmul: one of `KINDS`.
      platform: `cuda` or `tpu`, where programs are compiled for chips that are not here. None: for
        what this process computes on, which is not looked at: processes that work together have
        still to find each other. The packages that are installed say enough.
    """
    import jax  # here: a command's help and its mistakes need none of it

    if platform is None:
        there = lambda package: importlib.util.find_spec(package) is not None  # noqa: E731
        platform = "tpu" if there("libtpu") and not there("jax_cuda13_plugin") else "cuda"
    name = {"default": None, "tf32": "high" if platform == "tpu" else None, "float32": "highest"}
    jax.config.update("jax_default_matmul_precision", name[matmul])
    global again
    again = functools.partial(choose, matmul)


# `again(platform)`: the same for chips that are not here.
again = functools.partial(choose, "default")


def words(platform: str | None = None) -> str:
    """Find out what float32 products keep at present on `platform`, by default the one that is
    here.
    """
    import jax

    setting = jax.config.jax_default_matmul_precision
    return _WORDS.get(platform or jax.default_backend(), {}).get(setting, "float32")
