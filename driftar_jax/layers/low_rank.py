"""Low-rank adapters of dense layers: what is added to a kernel is the product of two thin matrices.

A host with adapters is the host with `kernel + a b` in place of each kernel (Hu et al., LoRA,
arXiv 2106.09685, with its scale of 1): merged, it is a host like any other. So no module knows of
them: a parameter tree goes in, and one without adapters comes out.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

GROUP, OF = "adapter", "host"
# Blocks under this name are stacked along the first axis (`nn.scan`): each has its own product.
_STACKED = "layers"


def _kernels(tree: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(dict(tree))
    for path, leaf in leaves:
        names = tuple(part.key for part in path)
        # Embeddings, norms and biases are no products, and have no adapters.
        if names[-1] == "kernel":
            yield names, leaf


def shapes(host: Mapping[str, Any], rank: int) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Return what adapters of a host are: `{"blocks_0.fc1": {"a", "b"}}`, float32.

    Args:
      host: its parameters, arrays or shapes; a kernel is `[in, ...]`, or `[blocks, in, ...]`.
      rank: r of `a [in, r]` and `b [r, ...]`.
    """
    pairs = {}
    for names, kernel in _kernels(host):
        blocks, rest = _split(names, kernel.shape)
        pairs[".".join(names[:-1])] = {
            "a": jax.ShapeDtypeStruct((*blocks, rest[0], rank), jnp.float32),
            "b": jax.ShapeDtypeStruct((*blocks, rank, *rest[1:]), jnp.float32),
        }
    return pairs


def full_rank(host: Mapping[str, Any]) -> int:
    """Return the rank of which no kernel of a host can have more: adapters of it change anything.

    Args:
      host: its parameters, arrays or shapes.
    """
    sizes = [_split(names, kernel.shape)[1] for names, kernel in _kernels(host)]
    return max(min(size[0], math.prod(size[1:])) for size in sizes)


def _split(names: tuple[str, ...], shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple]:
    at = 1 if _STACKED in names else 0
    return shape[:at], shape[at:]


def init(host: Mapping[str, Any], rank: int, key: jax.Array) -> dict[str, dict[str, jax.Array]]:
    """Return adapters that change nothing yet: `b` is zero, `a` normal with variance `1 / in`."""
    wanted = shapes(host, rank)
    pairs = {}
    keys = jax.random.split(key, len(wanted))
    for own_key, (layer, pair) in zip(keys, wanted.items(), strict=True):
        draw = jax.random.normal(own_key, pair["a"].shape, jnp.float32)
        scaled = draw / math.sqrt(pair["a"].shape[-2])
        pairs[layer] = {"a": scaled, "b": jnp.zeros(pair["b"].shape, jnp.float32)}
    return pairs


def merged(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the groups without adapters, which are added to the host's kernels; no others change.

    Args:
      params: groups of parameters; without adapters they come back as they are.
    """
    if GROUP not in params:
        return dict(params)
    adapters = params[GROUP]

    def added(path, leaf):
        names = tuple(part.key for part in path)
        pair = adapters.get(".".join(names[:-1])) if names[-1] == "kernel" else None
        if pair is None:
            return leaf
        blocks, rest = _split(names, leaf.shape)
        # A kernel of attention has heads and channels apart: one axis in the product, two again
        # after it.
        wide = pair["b"].reshape(*blocks, pair["b"].shape[len(blocks)], -1)
        change = jnp.matmul(pair["a"], wide, precision="highest").reshape(*blocks, *rest)
        # In the kernel's own type, so that no other program than the host's own is compiled for it.
        return leaf + change.astype(leaf.dtype)

    rest = {name: tree for name, tree in params.items() if name != GROUP}
    return rest | {OF: jax.tree_util.tree_map_with_path(added, rest[OF])}
