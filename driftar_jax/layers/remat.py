"""What the backward pass of a block keeps of its forward pass, and what it makes again."""

import jax
from flax import linen as nn

# What a block's backward pass keeps of its forward pass; the rest is made again.
REMAT = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def recomputed(remat: str, call, block: nn.Module, *arrays):
    """Return `call(block, *arrays)`, its intermediate values kept for the gradient or made again.

    Args:
      remat: `none` keeps them all, `dots` the matrix products with parameters, `full` the input.
      call: of the block and trees of arrays.
      block: a submodule; its parameters keep their names.
      *arrays: trees of arrays.

    Raises:
      ValueError: an unknown `remat`.
    """
    if remat == "none":
        return call(block, *arrays)
    # The lifted transform of flax and not `jax.checkpoint`: it knows the block's parameters and
    # keys.
    return nn.remat(call, policy=remat_policy(remat))(block, *arrays)


def remat_policy(remat: str):
    """Return the policy of `jax.checkpoint` of that name; raises ValueError for an unknown one."""
    if remat not in REMAT:
        raise ValueError(f"host.remat: got {remat!r}, allowed {' | '.join(['none', *REMAT])}")
    return REMAT[remat]
