"""Equal blocks as one loop over their stacked parameters: a block is compiled once, not 24 times.

Checkpoints hold a tree for each block, `blocks_0`, `blocks_1`, and so do training states. `stack`
makes one tree `blocks` of them, once, when weights are loaded: a program that stacked them itself
would copy all of them in every call.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


def stack(params: Mapping[str, Any], loops: Mapping[str, int]) -> dict[str, Any]:
    """Return parameters of a module with the blocks of its loops as one tree each.

    Args:
      params: the module's tree, `NAME_0`, `NAME_1`, ... among others.
      loops: NAME -> number of blocks, as the module's `loops` says; fewer than 2 stay as they are.

    Returns:
      The tree with `NAME` in their place, whose arrays have a leading axis of that length.
    """
    rest = dict(params)
    for name, count in loops.items():
        if count < 2:
            continue
        # Taken out, not copied: a tree with both forms would hold the weights twice.
        trees = [rest.pop(f"{name}_{i}") for i in range(count)]
        rest[name] = jax.tree.map(lambda *blocks: jnp.stack(blocks), *trees)
    return rest


def is_stack(params: Mapping[str, Any], loops: Mapping[str, int]) -> bool:
    """Return whether `stack` made this tree of the module's parameters."""
    return any(name in params for name in loops)


def run(
    module: nn.Module,
    name: str,
    blocks: Sequence[nn.Module],
    call: Callable[[nn.Module, jax.Array], jax.Array],
    h: jax.Array,
    *,
    scan: bool = False,
) -> jax.Array:
    """Run `h` through `blocks`, as a loop where `module` was given the tree of `stack`.

    Args:
      module: whose parameters are looked at.
      name: of the loop, one of the module's `loops`.
      blocks: submodules `NAME_0`, ...; equal but for their parameters.
      call: of a block and `h`, `-> h`.
      h: residual stream.
      scan: a loop as well over parameters that lie apart, as training states have them, with a
        dropout key for each block. They are stacked in every step: it pays where compiling is dear
        and activations are made again, for a loop that keeps them keeps them in pieces.
    """
    as_one = module.has_variable("params", name)
    if not as_one and (not scan or len(blocks) < 2 or module.is_initializing()):
        # Also while parameters are made: each block then makes its own, by its own name.
        for block in blocks:
            h = call(block, h)
        return h
    if as_one:
        params, keys = module.get_variable("params", name), None
    else:
        trees = [block.variables["params"] for block in blocks]
        params = jax.tree.map(lambda *arrays: jnp.stack(arrays), *trees)
        # The body of a loop is traced once: with one key all blocks would drop the same places.
        keys = jax.random.split(module.make_rng("dropout"), len(blocks))
    # Without a parent it can be bound to one row of parameters after another.
    block = blocks[0].clone(parent=None, name=None)

    def step(h, own):
        params, key = own
        rngs = {} if key is None else {"dropout": key}
        return call(block.bind({"params": params}, rngs=rngs), h), None

    return jax.lax.scan(step, h, (params, keys))[0]
