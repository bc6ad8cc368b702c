"""Where arrays live: one mesh, one table of logical axes, shardings of state and batch."""

import contextlib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")

# Logical axis of a parameter or activation -> mesh axes. The only place that names mesh axes.
RULES = (
    ("batch", ("data", "fsdp")),
    ("embed", "fsdp"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("position", None),
    ("class", None),
    ("layers", None),
    # The width of a table that no other axis divides: vocabularies rarely divide, widths do.
    ("table", ("fsdp", "tensor")),
    ("bank", ("data", "fsdp")),  # classes of the bank of real samples
)

# Logical axes that stay whole where they do not divide: ten classes of digits on eight devices.
MAY_STAY_WHOLE = ("bank",)


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Make a mesh over `devices`, all that are here by default; an axis of -1 is what the others
    leave.

    Raises:
      ValueError: the axes do not multiply to the number of devices, or `tensor` spans processes.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    fixed = int(np.prod([s for s in sizes if s != -1]))
    shape = [len(devices) // fixed if s == -1 else s for s in sizes]
    if sizes.count(-1) > 1 or int(np.prod(shape)) != len(devices):
        raise ValueError(
            f"mesh: got data={data} fsdp={fsdp} tensor={tensor}, "
            f"allowed axes whose product is the device count {len(devices)} (one may be -1)"
        )
    # A process reads whole rows of a batch, so the devices that share a row must all be its own.
    own = sum(device.process_index == devices[0].process_index for device in devices)
    if own % shape[2]:
        raise ValueError(
            f"mesh.tensor: got {shape[2]}, allowed a divisor of the {own} devices of a process"
        )
    return Mesh(np.asarray(devices).reshape(shape), AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a leading axis over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def parts_of(mesh: Mesh) -> int:
    """Return over how many devices the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def rows_over(params: Any) -> NamedSharding | None:
    """Return where the rows of a batch go: over the mesh that parameters lie on, if it has one."""
    for leaf in jax.tree.leaves(params):
        place = getattr(leaf, "sharding", None)
        if isinstance(place, NamedSharding) and place.mesh.size > 1:
            return batch_sharding(place.mesh)
    return None


def over_rows(batch: Any, rows: NamedSharding | None) -> Any:
    """Return a batch laid out over `rows_over(params)`, where its rows divide; else as it is."""
    if rows is None or len(jax.tree.leaves(batch)[0]) % parts_of(rows.mesh):
        return batch
    return jax.device_put(batch, rows)


@contextlib.contextmanager
def activations_on(mesh: Mesh):
    """Have activations lie where the table says. Nothing on a single device.

    Left alone, XLA lets them follow the parameters, and splits channels over `fsdp` in place of
    images: hundreds of times the traffic.
    """
    if mesh.size == 1:
        yield
        return
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(RULES):
        yield


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Raise ValueError unless a (micro-)batch of this size divides over `data` and `fsdp`."""
    parts = parts_of(mesh)
    if batch_size % parts:
        raise ValueError(
            f"train.batch_size: got {batch_size} images at a time over {parts} parts of the mesh, "
            f"allowed a multiple of {parts}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(abstract, mesh: Mesh):
    """Return shardings of a tree of boxed parameters (as `eval_shape` of an init gives it).

    Args:
      abstract: tree of `ShapeDtypeStruct`, parameters boxed by `nn.with_logical_partitioning`;
        leaves without a box are replicated.
      mesh: from `make_mesh`.

    Returns:
      The same tree, unboxed, of `NamedSharding`.

    Raises:
      ValueError: a dimension does not divide over its mesh axes; the parameter is named.
    """
    shapes = nn.meta.unbox(abstract)
    specs = jax.tree.map(
        lambda shape, spec: _whole_where_needed(shape, spec, mesh),
        shapes,
        nn.get_partition_spec(abstract),
    )
    shardings = nn.logical_to_mesh_sharding(specs, mesh, RULES)
    jax.tree_util.tree_map_with_path(_check_divides, shapes, shardings)
    return shardings


def _whole_where_needed(array, spec: PartitionSpec, mesh: Mesh) -> PartitionSpec:
    """Logical `spec` without the axes that may stay whole and do not divide."""

    def fits(dim, axis):
        parts = int(np.prod([mesh.shape[name] for name in dict(RULES)[axis]]))
        return dim % parts == 0

    return PartitionSpec(
        *(
            None if axis in MAY_STAY_WHOLE and not fits(dim, axis) else axis
            for dim, axis in zip(array.shape, spec, strict=False)
        )
    )


def _check_divides(path, array, sharding: NamedSharding) -> None:
    for dim, axes in zip(array.shape, sharding.spec, strict=False):
        names = (axes,) if isinstance(axes, str) else (axes or ())
        parts = int(np.prod([sharding.mesh.shape[a] for a in names]))
        if dim % parts:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ValueError(
                f"{name}: got size {dim} over mesh axes {names}, allowed a multiple of {parts}"
            )
