#!/usr/bin/env bash
# Question: a loader fills one NumPy buffer again and again and calls `jax.device_put` on it each
# time, waiting until that is done. Are the earlier batches safe?
#
# Guess, written before the run: yes. The device array is not changed by what happens to the buffer
# afterwards; the docstring promises "a copy of x that resides on device".
#
# Seen (jax 0.10.2, CPU): no. `device_put`, with a sharding or without, and
# `make_array_from_process_local_data` return a view where the buffer happens to start at a multiple
# of 64 bytes, and a copy where it does not. `may_alias=False`, of which the docstring says that x
# will be copied, does not change that. `jnp.asarray` and `jnp.array` do copy.
#
#     aligned buffer, then overwritten: device_put changed
#     aligned buffer, then overwritten: device_put with a sharding changed
#     aligned buffer, then overwritten: make_array_from_process_local_data changed
#     aligned buffer, then overwritten: device_put, may_alias=False changed
#     aligned buffer, then overwritten: jnp.asarray kept
#     aligned buffer, then overwritten: jnp.array kept
#     four bytes further on: device_put kept
#
# Why it matters: where a buffer starts is the allocator's affair, so that a loader with reused
# buffers (shared memory, `out=`, `readinto`) passes its test on one array and mixes batches on
# another. Copy on the NumPy side.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
unset "${!JAX_@}" XLA_FLAGS
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 scipy==1.17.1 ml_dtypes==0.6.0
cat > "$room/probe.py" <<'PY'
import sys

import jax
import jax.numpy as jnp
import numpy as np

SIZE = 1024
sharding = jax.sharding.NamedSharding(
    jax.make_mesh((1,), ("data",)), jax.sharding.PartitionSpec("data")
)


def buffer(offset):
    raw = np.zeros(SIZE + 64, np.float32)
    start = (-raw.ctypes.data % 64) // 4 + offset
    return raw[start : start + SIZE]


def kept(name, place, offset=0):
    rows = buffer(offset)
    array = jax.block_until_ready(place(rows))
    rows[:] = 7
    word = "kept" if float(array[0]) == 0 else "changed"
    where = "four bytes further on" if offset else "aligned buffer, then overwritten"
    print(f"{where}: {name} {word}")
    return word == "kept"


def local(rows):
    return jax.make_array_from_process_local_data(sharding, rows)


shared = [
    kept("device_put", jax.device_put),
    kept("device_put with a sharding", lambda rows: jax.device_put(rows, sharding)),
    kept("make_array_from_process_local_data", local),
    kept("device_put, may_alias=False", lambda rows: jax.device_put(rows, may_alias=False)),
]
copied = [
    kept("jnp.asarray", jnp.asarray),
    kept("jnp.array", jnp.array),
    kept("device_put", jax.device_put, offset=1),
]
if any(shared):
    sys.exit("changed: an aligned buffer is no longer shared as recorded")
if not all(copied):
    sys.exit("changed: what was recorded as a copy is one no longer")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
