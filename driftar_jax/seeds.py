"""Random keys that name their implementation, and the arithmetic in which they are drawn from.

Pictures and steps are functions of a seed, so nothing that the environment may set can change them:
neither `JAX_DEFAULT_PRNG_IMPL` nor `JAX_THREEFRY_PARTITIONABLE` nor `JAX_ENABLE_X64`.
"""

import contextlib

import jax
import numpy as np

IMPLEMENTATION = "threefry2x32"
PARTITIONABLE = True
# What a run stores of its draws, and compares when it goes on.
FACTS = {"keys": IMPLEMENTATION, "partitionable": PARTITIONABLE, "draws": "float32"}
# Seeds of commands and of the API; what lies beyond 32 bits is folded in.
MOST = 2**63 - 1


def argument(seed: int) -> np.ndarray | np.uint32:
    """Return a seed as compiled programs take it: uint32, `[2]` of low and high 32 bits beyond
    these.
    """
    seed = check_seed(seed)
    halves = np.asarray([seed & 0xFFFFFFFF, seed >> 32], np.uint32)
    return halves if halves[1] else halves[0]


def key(seed: jax.Array | int) -> jax.Array:
    """Return the typed key of a seed, a whole number or an `argument`.

    Of seeds beyond 32 bits it is the key of the low half into which the high one is folded.
    """
    if isinstance(seed, int):
        seed = argument(seed)
    if seed.ndim == 0:
        return jax.random.key(seed, impl=IMPLEMENTATION)
    return jax.random.fold_in(jax.random.key(seed[0], impl=IMPLEMENTATION), seed[1])


def check_seed(seed) -> int:
    """Return the seed as an int; ValueError unless it is a whole number from 0 to 2**63 - 1."""
    whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, (bool, np.bool_))
    if not whole or not 0 <= seed <= MOST:
        raise ValueError(f"seed: got {seed!r}, allowed a whole number from 0 to {MOST}")
    return int(seed)


@contextlib.contextmanager
def fixed():
    """Return the hold the settings of jax in which draws and what is made of them are the same
    everywhere.
    """
    with (
        jax.enable_x64(False),
        jax.default_prng_impl(IMPLEMENTATION),
        jax.threefry_partitionable(PARTITIONABLE),
    ):
        yield


def fix() -> None:
    """Do as `fixed`, for the rest of a program."""
    jax.config.update("jax_enable_x64", False)
    jax.config.update("jax_default_prng_impl", IMPLEMENTATION)
    jax.config.update("jax_threefry_partitionable", PARTITIONABLE)
