"""TransDiff with its own head: training loss and generation, for any number of groups.

Source: `forward` and `samples` of `models/transdiff.py` and `models/transdiff_mrar.py` of
TransDiff/TransDiff at 0081b3a, which encodes every prefix anew; here a cache holds the past.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from driftar_jax.data.pixels import patchify
from driftar_jax.heads import flow
from driftar_jax.heads.flow import VelocityNet
from driftar_jax.hosts.transdiff import TransDiff
from driftar_jax.types import Encoding


def reference_rows(grids: jax.Array, shape: tuple[int, int], rows: int) -> jax.Array:
    """Return the token grids as the backbone reads them: square patches of the grid, a row for
    each.

    Args:
      grids: `[..., N, C]` tokens in raster order.
      shape: rows and columns of the grid, N together.
      rows: R, rows of the result, N over the square of a patch size.

    Returns:
      `[..., R, C N / R]`, the channel slowest inside a row; the same numbers.

    Raises:
      ValueError: no patch size makes that many rows.
    """
    *leading, tokens, channels = grids.shape
    # `max` lets zero rows reach the check below, which names the field, instead of a division by
    # zero.
    patch = math.isqrt(tokens // max(rows, 1))
    if shape[0] * shape[1] != tokens or rows * patch**2 != tokens:
        raise ValueError(f"rows: got {rows}, allowed {tokens} over a square, grid {shape}")
    out = patchify(grids.reshape(-1, *shape, channels), patch)
    return out.reshape(*leading, *out.shape[1:])


def flow_terms(
    host: TransDiff,
    net: VelocityNet,
    params: dict,
    label: jax.Array,
    grids: jax.Array,
    u: jax.Array,
    noise: jax.Array,
    *,
    shape: tuple[int, int],
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, Encoding]:
    """Return the loss of each grid in each group, from one backbone call; its mean is the training
    loss.

    Term g decodes image g under all rows of the groups 0..g. The references are the clean images
    before it (teacher forcing). Copies of an image share its encoding and its label.

    Args:
      host: the backbone; `params["host"]` its parameters.
      net: the head; `params["head"]` its parameters.
      params: parameter trees.
      label: `[B]` integer, -1 where the class is dropped.
      grids: `[B, groups, N, C]` clean token grids, images of one class in a row.
      u: `[groups, m B]` in (0, 1), of `flow.times`.
      noise: `[groups, m B, N, C]` standard normal; whole copies of the batch, one after another.
      shape: rows and columns of the grid.
      dropout_key: typed key; None is evaluation.

    Returns:
      `[groups, m B]` float32, and the encoding of all groups.

    Raises:
      ValueError: a shape does not fit.
    """
    batch, copies = len(label), u.shape[1] // max(len(label), 1)
    wanted = (batch, host.groups, net.num_tokens, net.token_dim)
    if grids.shape != wanted:
        raise ValueError(f"grids: got shape {grids.shape}, allowed {wanted}")
    if u.shape != (host.groups, copies * batch) or noise.shape != (*u.shape, *wanted[2:]):
        raise ValueError(
            f"noise: got shape {noise.shape} with u {u.shape}, allowed "
            f"[{host.groups}, copies * {batch}, {net.num_tokens}, {net.token_dim}]"
        )
    train = dropout_key is not None
    # One key for the backbone and one for each group's head: with a shared one the dropout masks of
    # all groups would be the same.
    keys = jax.random.split(dropout_key, 1 + host.groups) if train else [None] * (1 + host.groups)

    def apply(module, name, key, *args, **kwargs):
        rngs = None if key is None else {"dropout": key}
        return module.apply({"params": params[name]}, *args, rngs=rngs, **kwargs)

    references = None
    if host.groups > 1:
        # The last image is nobody's reference.
        references = reference_rows(grids[:, :-1], shape, host.group_rows)
    encoding = apply(host, "host", keys[0], label, references, deterministic=not train)
    # Projected once for all groups: row r of the condition depends on row r of `z` alone, and group
    # g then reads the first `rows` of them.
    condition = apply(net, "head", None, encoding.z, method="condition")
    losses = []
    for g in range(host.groups):
        rows = (g + 1) * host.group_rows
        # Copies of an image side by side: in this order devices keep the images that they have.
        prefix = jax.tree.map(lambda a, r=rows: jnp.repeat(a[:, :r], copies, axis=0), condition)

        # Defaults bind the loop's values now; a plain closure would see the last group's in every
        # call.
        def velocity(x, t, prefix=prefix, key=keys[g + 1]):
            time = apply(net, "head", None, t, method="embed_time")
            return apply(
                net, "head", key, x, time, prefix, deterministic=not train, method="velocity"
            )

        def by_image(a):
            return a.reshape(copies, batch, *a.shape[1:]).swapaxes(0, 1).reshape(a.shape)

        x = jnp.repeat(grids[:, g], copies, axis=0)
        per_grid = flow.flow_loss(velocity, x, by_image(u[g]), by_image(noise[g]))
        losses.append(per_grid.reshape(batch, copies).T.reshape(-1))
    return jnp.stack(losses), encoding


def generate(
    host: TransDiff,
    net: VelocityNet,
    params: dict,
    label: jax.Array,
    start: jax.Array,
    noise: Callable[[int, jax.Array], jax.Array],
    *,
    shape: tuple[int, int],
    steps: Sequence[int],
    guidance: Sequence[float],
    scale_drift: float = 1.0,
    scale_noise: float = 1.0,
    table: Encoding | None = None,
) -> jax.Array:
    """Return one image of a class for each group, each from the images before it; the last one
    counts.

    The branch without class keeps the references. Where some groups are guided and others not, the
    backbone encodes both branches in all of them, for later groups look back.

    Args:
      host: the backbone; `params["host"]` its parameters.
      net: the head; `params["head"]` its parameters.
      params: parameter trees.
      label: `[B]` integer in -1..num_classes-1.
      start: `[B, N, C]` standard normal, the same for every group.
      noise: `(group, traced int32 step 0..S-2) -> [B, N, C]` standard normal.
      shape: rows and columns of the grid.
      steps: S of each group, evaluations of the head, at least 2.
      guidance: scale of each group; exactly 1 runs one branch.
      scale_drift: factor of the sampler's drift.
      scale_noise: factor of the sampler's noise.
      table: of `class_table`; the 1-step form then calls no backbone.

    Returns:
      `[groups, B, N, C]` float32.

    Raises:
      ValueError: `steps` or `guidance` has no entry for each group, or too few steps.
    """
    for field, entries in (("steps", steps), ("guidance", guidance)):
        if len(entries) != host.groups:
            raise ValueError(f"{field}: got {len(entries)} entries, allowed {host.groups} groups")
    guided = [scale != 1.0 for scale in guidance]
    batch, twice = len(label), 2 if any(guided) else 1
    variables = {"params": params["host"]}
    # Rows of both branches in one call, conditional ones first, throughout all groups.
    labels = jnp.concatenate([label, jnp.full_like(label, -1)]) if any(guided) else label
    if host.groups > 1:
        encoding, cache = host.apply(variables, labels, method="begin")
    elif table is not None:
        # Label -1 takes the table's last row, which is the unconditional one.
        encoding = jax.tree.map(lambda rows: rows[labels], table)
    else:
        encoding = host.apply(variables, labels)
    z, grids = encoding.z, []
    for g in range(host.groups):
        if g > 0:
            rows = reference_rows(grids[-1], shape, host.group_rows)
            # Both branches look back at the same image: what is guided away from is the class
            # alone.
            rows = jnp.tile(rows, (twice, 1, 1))[:, None]
            encoding, cache = host.apply(variables, rows, cache, method="extend")
            # The head cross-attends to all groups so far, not to the newest alone; the sequence
            # grows by a group each time, and each length compiles a sampler of its own.
            z = jnp.concatenate([z, encoding.z], axis=1)
        grids.append(
            flow.flow_sample(
                net,
                params["head"],
                z[:batch],
                start,
                lambda step, g=g: noise(g, step),
                steps=steps[g],
                guidance=guidance[g] if guided[g] else None,
                c_uncond=z[batch:] if guided[g] else None,
                scale_drift=scale_drift,
                scale_noise=scale_noise,
            )
        )
    return jnp.stack(grids)
