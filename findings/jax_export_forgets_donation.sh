#!/usr/bin/env bash
# Question: does a jitted function with `donate_argnums` still donate after `jax.export`?
#
# Guess, written before the run: yes. The aliasing of inputs and outputs is part of the exported
# module, as shardings and layouts are, and survives serialising.
#
# Seen (jax 0.10.2, CPU): no. Called directly or inside a jit, the exported function leaves its
# input alive and writes a second buffer; the compiled call aliases 0 bytes. It has to be donated
# again by the caller: `jax.jit(exported.call, donate_argnums=0)`.
#
#     jitted function: input deleted True
#     exported.call: input deleted False
#     jit(exported.call): input deleted False, aliased bytes 0
#     jit(exported.call, donate_argnums=0): input deleted True, aliased bytes 4000
#
# Why it matters: a sampler that is exported for serving holds its key-value cache (or a training
# step its whole state) twice, and copies it every step: out of memory at sizes that fit before.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
unset "${!JAX_@}" XLA_FLAGS
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 flatbuffers==25.12.19 numpy==2.4.6 scipy==1.17.1 ml_dtypes==0.6.0
cat > "$room/probe.py" <<'PY'
import functools
import sys

import jax
import jax.numpy as jnp
from jax import export

row = jnp.ones(10)


@functools.partial(jax.jit, donate_argnums=0)
def append(cache, row):
    return jax.lax.dynamic_update_slice(cache, row, (0,))


def deleted(name, call):
    cache, aliased = jnp.zeros(1000), None
    if hasattr(call, "lower"):
        aliased = call.lower(cache, row).compile().memory_analysis().alias_size_in_bytes
    jax.block_until_ready(call(cache, row))
    note = "" if aliased is None or call is append else f", aliased bytes {aliased}"
    print(f"{name}: input deleted {cache.is_deleted()}{note}")
    return cache.is_deleted(), aliased


stored = export.export(append)(jnp.zeros(1000), row).serialize()
exported = export.deserialize(stored)
plain = deleted("jitted function", append)
direct = deleted("exported.call", exported.call)
inside = deleted("jit(exported.call)", jax.jit(exported.call))
again = deleted("jit(exported.call, donate_argnums=0)", jax.jit(exported.call, donate_argnums=0))
if plain != (True, 4000) or direct[0] or inside != (False, 0) or again != (True, 4000):
    sys.exit("changed: donation no longer stops at the export as recorded")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
