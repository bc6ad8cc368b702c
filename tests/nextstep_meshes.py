"""NextStep-1 on simulated devices: the 14B compiled without its weights, a tiny one sampled.

XLA_FLAGS=--xla_force_host_platform_device_count=8 \\
    python tests/nextstep_meshes.py 14b '{"tensor": 8}' '{"fsdp": 8}'

Prints a line of JSON per mesh. `14b`: bytes per device, in bfloat16, of parameters and cache, and
of all arguments of the compiled cached step. `tiny`: tokens of two images. `read`: whether a stored
checkpoint arrives where it should.
"""

import json
import math
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))  # run as a file, in a checkout

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tiny
from jax.sharding import NamedSharding, PartitionSpec

from driftar_jax import sharding
from driftar_jax.heads import randomness
from driftar_jax.hosts import nextstep_own, nextstep_plain, nextstep_stored
from driftar_jax.hosts.nextstep import PRESETS
from driftar_jax.hosts.nextstep_stored import abstract_params, modules, trees, unstacked
from driftar_jax.layers import causal
from driftar_jax.sampling.settings import Settings
from driftar_jax.storage import checkpoints

# What the released checkpoint's own files say otherwise; they do not change the sizes asked here.
ASSUMED = dict(vocab_size=152_064, placeholder=151_669, token_dim=64, norm_eps=1e-5, rope_theta=1e6)
# Four images of 512x512 with guidance: 1024 tokens behind a prompt, and room for drafts.
ROWS, PROMPT, SLOTS, DRAFTS = 8, 120, 120 + 1024 + 8, 5
# Logical axes of the arrays of a cache, for `sharding.RULES`.
CACHE_AXES = causal.Cache(
    keys=("layers", "batch", "position", "heads", None),
    values=("layers", "batch", "position", "heads", None),
    length=("batch",),
    padding=("batch",),
    content=("batch", "position"),
)


def measure(axes: dict[str, int]) -> dict:
    """Bytes per device of a mesh of `axes` over the devices of this process."""
    mesh = sharding.make_mesh(**{"data": 1, **axes})
    fields = {**PRESETS["14b"], **ASSUMED, "attention_bias": True}
    host, head = modules(fields, dtype=jnp.bfloat16)
    boxed = abstract_params(host, head, boxed=True)
    placed = sharding.state_shardings(boxed, mesh)
    half = lambda a: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16)  # noqa: E731
    params = jax.tree.map(half, nn.unbox(boxed))
    none = jnp.zeros(ROWS, jnp.int32)
    cache = jax.eval_shape(lambda: host.empty_cache(SLOTS, none, PROMPT))
    cache_placed = jax.tree.map(
        lambda axes: nn.logical_to_mesh_sharding(PartitionSpec(*axes), mesh, sharding.RULES),
        CACHE_AXES,
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )
    tokens = jax.ShapeDtypeStruct((ROWS, DRAFTS, host.token_dim), jnp.float32)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

    def step(params, tokens, cache):
        return host.apply({"params": params["host"]}, tokens, cache, method="advance")

    compiled = (
        jax.jit(
            step,
            in_shardings=(placed, rows, cache_placed),
            out_shardings=(None, cache_placed),
            donate_argnums=2,
        )
        .lower(params, tokens, cache)
        .compile()
    )
    memory = compiled.memory_analysis()
    return {
        "mesh": axes,
        "parameters": sum(math.prod(a.shape) for a in jax.tree.leaves(params)),
        "parameter_bytes": _bytes(params, placed),
        "cache_bytes": _bytes(cache, cache_placed),
        "argument_bytes": memory.argument_size_in_bytes,
        "kept_bytes": memory.alias_size_in_bytes,
    }


def _bytes(tree, shardings) -> int:
    """Bytes of the part of a tree that one device holds."""
    parts = jax.tree.map(
        lambda a, s: math.prod(s.shard_shape(a.shape)) * a.dtype.itemsize, tree, shardings
    )
    return sum(jax.tree.leaves(parts))


def _tiny():
    fields = {**PRESETS["14b"], **ASSUMED, "attention_bias": True}
    fields |= dict(vocab_size=21, placeholder=20, token_dim=3, width=16, depth=3, num_heads=8)
    fields |= dict(num_kv_heads=4, head_dim=2, mlp_width=24, head_width=8, head_depth=1)
    host, head = modules(fields)
    boxed = abstract_params(host, head, boxed=True)
    params = {
        name: tiny.params(lambda key, tree=tree: tree, scale=0.25) for name, tree in boxed.items()
    }
    return host, head, boxed, params


def _split(params) -> int:
    """Arrays that no device holds whole."""
    return sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(params))


def read(axes: dict[str, int]) -> dict:
    """A tiny converted checkpoint, written layer by layer and read onto the mesh."""
    host, head, boxed, params = _tiny()
    with tempfile.TemporaryDirectory() as folder:
        written = checkpoints.Checkpoints(folder)
        first, *layers = trees(unstacked(params)).items()
        written.save(0, manifest={}, **dict([first]))
        written.wait()
        for name, tree in layers:
            written.add(0, name, tree)
        mesh = sharding.make_mesh(**{"data": 1, **axes})
        got = nextstep_stored.read_params(written, 0, host, head, mesh)
        written.close()
    placed = sharding.state_shardings(boxed, mesh)
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), got, params)
    right = jax.tree.map(lambda a, s: a.sharding.is_equivalent_to(s, a.ndim), got, placed)
    return {
        "same": all(jax.tree.leaves(same)),
        "placed": all(jax.tree.leaves(right)),
        "split": _split(got),
    }


def sample(axes: dict[str, int]) -> dict:
    """Tokens of two guided images from a tiny model that is spread over the mesh."""
    mesh = sharding.make_mesh(**{"data": 1, **axes})
    host, head, boxed, params = _tiny()
    params = jax.device_put(params, sharding.state_shardings(boxed, mesh))
    settings = Settings("own", 4, nfe=3, guidance=2.0, guidance_schedule="constant")
    ids = jnp.arange(20, dtype=jnp.int32).reshape(4, 5)
    keys = randomness.token_keys(randomness.image_keys(jnp.uint32(0), jnp.arange(2)), 4)

    @jax.jit
    def run(params, ids, padding):
        one = nextstep_own.sampler(host, head, settings, 4, params)

        def make(encoding, k):
            noise = lambda draw: randomness.normal(keys[:, k], draw, host.token_dim)  # noqa: E731
            return one(encoding.z[:, -1], k, noise)

        return nextstep_plain.decode(host, params["host"], ids, padding, None, 4, 2, make)[0]

    tokens = run(params, ids, jnp.array([0, 1, 2, 2]))
    return {"tokens": np.asarray(tokens).ravel().tolist(), "split": _split(params)}


if __name__ == "__main__":
    kind = {"14b": measure, "tiny": sample, "read": read}[sys.argv[1]]
    for asked in sys.argv[2:]:
        print(json.dumps(kind(json.loads(asked))))
