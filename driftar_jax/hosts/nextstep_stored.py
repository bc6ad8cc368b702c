"""How a workdir stores a converted NextStep-1: its config, and its layers side by side."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from driftar_jax import seeds
from driftar_jax.config import CONVERTED, wrong
from driftar_jax.heads.flow_token import FlowTokenHead
from driftar_jax.hosts.nextstep import NextStep
from driftar_jax.sharding import state_shardings
from driftar_jax.storage.checkpoints import Checkpoints, abstract_like

# What `config.json` of a workdir says.
TASK = CONVERTED


def modules(fields: Mapping, **overrides) -> tuple[NextStep, FlowTokenHead]:
    """Build backbone and head of `sizes`; `overrides` are further fields of `NextStep`."""
    host = {k: v for k, v in fields.items() if k not in ("head_width", "head_depth")}
    backbone = NextStep(**{**host, **overrides})
    head = FlowTokenHead(
        token_dim=backbone.token_dim,
        width=fields["head_width"],
        depth=fields["head_depth"],
        dtype=backbone.dtype,
    )
    return backbone, head


def abstract_params(host: NextStep, head: FlowTokenHead, *, boxed: bool = False) -> dict:
    """Return `{"host": ..., "head": ...}` of `ShapeDtypeStruct`, without running anything.

    `boxed` keeps the logical axes, as `sharding.state_shardings` wants them.
    """
    key = seeds.key(0)
    ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    tokens = jax.ShapeDtypeStruct((1, 1, host.token_dim), jnp.float32)
    backbone = jax.eval_shape(lambda *a: host.init(*a, method="everything"), key, ids, tokens)
    x, t = tokens.update(shape=(1, host.token_dim)), tokens.update(shape=(1,))
    flow = jax.eval_shape(head.init, key, x, t, tokens.update(shape=(1, host.width)))
    params = {"host": backbone["params"], "head": flow["params"]}
    return params if boxed else nn.unbox(params)


def unstacked(tree: Mapping) -> dict:
    """Return the tree with layers side by side, `host/stack/layers/{i}/...`; abstract or not."""
    layers = tree["host"]["stack"]["layers"]
    (depth,) = {leaf.shape[0] for leaf in jax.tree.leaves(layers)}
    return _with_layers(tree, {str(i): _layer_of(layers, i) for i in range(depth)})


def stacked(tree: Mapping) -> dict:
    """Return the inverse of `unstacked`, for arrays."""
    layers = tree["host"]["stack"]["layers"]
    parts = [layers[str(i)] for i in range(len(layers))]
    return _with_layers(tree, jax.tree.map(lambda *rows: np.stack(rows), *parts))


def _layer_of(layers: Mapping, index: int):
    def row(leaf):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
        return leaf[index]

    return jax.tree.map(row, layers)


def _with_layers(tree: Mapping, layers) -> dict:
    host = {**tree["host"], "stack": {**tree["host"]["stack"], "layers": layers}}
    return {**tree, "host": host}


def trees(apart: Mapping) -> dict[str, dict]:
    """Return a tree of `unstacked` in parts that are written one after another.

    Returns:
      `ema`, all but the layers, and `layer_000`, ...: each holds its leaves under their own paths.
    """
    stack = apart["host"]["stack"]
    rest = {name: part for name, part in stack.items() if name != "layers"}
    parts = {"ema": {**apart, "host": {**apart["host"], "stack": rest}}}
    for name, layer in stack["layers"].items():
        parts[f"layer_{int(name):03d}"] = {"host": {"stack": {"layers": {name: layer}}}}
    return parts


def fields_of(config: Mapping) -> dict:
    """Return the fields of `sizes`, from the config of a workdir.

    Raises:
      ValueError: it is the workdir of something else.
    """
    if config.get("task") != TASK:
        raise wrong("task", config.get("task"), f"{TASK!r} (a converted NextStep-1)")
    return dict(config["host"])


def read_params(
    opened: Checkpoints, step: int, host: NextStep, head: FlowTokenHead, mesh: Mesh
) -> dict[str, Any]:
    """Return `{"host": ..., "head": ...}` with stacked layers, in the stored types, laid out over
    `mesh`.

    Layers are read one at a time into the stack, so that beside it only one is held.
    """
    shardings = state_shardings(abstract_params(host, head, boxed=True), mesh)
    stack_shardings = shardings["host"]["stack"].pop("layers")
    first, *layers = trees(unstacked(abstract_params(host, head)))
    params = opened.restore(step, ema=abstract_like(opened.stored(step, first), shardings))[first]

    def apart(sharding):
        # The first axis of the stack is the layers; a single layer is laid out by the others.
        return NamedSharding(mesh, PartitionSpec(*sharding.spec[1:]))

    row_shardings = jax.tree.map(apart, stack_shardings)
    stack = None
    for index, name in enumerate(layers):
        stored_row = _inner(opened.stored(step, name), index)
        wanted = abstract_like(stored_row, row_shardings)
        row = _inner(opened.restore(step, **{name: _outer(wanted, index)})[name], index)
        if stack is None:
            stack = jax.tree.map(
                lambda a, s: jnp.zeros((len(layers), *a.shape), a.dtype, device=s),
                row,
                stack_shardings,
            )
        stack = _put(stack, row, index)
    params["host"]["stack"]["layers"] = stack
    return params


# Donated, so that the stack is written in place and not copied for every layer.
@functools.partial(jax.jit, donate_argnums=0)
def _put(stack, row, index):
    return jax.tree.map(lambda s, r: s.at[index].set(r), stack, row)


def _inner(tree, index: int):
    return tree["host"]["stack"]["layers"][str(index)]


def _outer(layer, index: int) -> dict:
    return {"host": {"stack": {"layers": {str(index): layer}}}}
