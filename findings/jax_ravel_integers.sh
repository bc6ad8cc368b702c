#!/usr/bin/env bash
# Question: `ravel_pytree` lays parameters, a step counter and a random key side by side. Does its
# second result, called on the very vector that it gave, give the same tree back?
#
# Guess, written before the run: yes. "A callable for unflattening": each leaf keeps its dtype and
# so its value.
#
# Seen (jax 0.10.2): dtypes come back, integers do not. The vector has the promoted dtype, float32
# for a tree of float32 and integers, which holds 24 bits: of the key's words 123,456,789 becomes
# 123,456,792, and the step 16,777,217 becomes 16,777,216. No warning. Draws from the key are other
# draws.
#
#     float32 vector; key [123456789 987654321] -> [123456792 987654336] of uint32
#     step 16777217 -> 16777216 of int32
#     a normal from the key: -0.2804 -> -1.4509
#
# Why it matters: the whole state of a training is flattened for checksums, for line searches, for
# evolution strategies, for sending to another host. It comes back with every dtype in order and
# another random stream. Flatten the floating leaves alone.
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
from jax.flatten_util import ravel_pytree

state = {
    "key": jnp.array([123_456_789, 987_654_321], jnp.uint32),
    "step": jnp.int32(16_777_217),
    "weights": jnp.ones(2),
}
vector, back = ravel_pytree(state)
found = back(vector)


def draw(state):
    return float(jax.random.normal(jax.random.wrap_key_data(state["key"])))


print(
    f"{vector.dtype} vector; key {np.asarray(state['key'])} -> {np.asarray(found['key'])} "
    f"of {found['key'].dtype}"
)
print(f"step {state['step']} -> {found['step']} of {found['step'].dtype}")
print(f"a normal from the key: {draw(state):.4f} -> {draw(found):.4f}")
if jax.tree.map(jnp.dtype, found) != jax.tree.map(jnp.dtype, state):
    sys.exit("changed: the dtypes no longer come back")
if (found["key"] == state["key"]).any() or int(found["step"]) != 16_777_216:
    sys.exit("changed: integers no longer lose their last bits in ravel_pytree")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
