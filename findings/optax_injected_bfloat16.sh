#!/usr/bin/env bash
# Question: is `optax.inject_hyperparams(optax.adamw)(...)` the same optimizer as
# `optax.adamw(...)`, with numbers that can be changed later?
#
# Guess, written before the run: none, it turned up beside another question. One would say: yes,
# also for bfloat16 parameters: plain and injected agree to the last bit or nearly so.
#
# Seen (optax 0.2.8, jax 0.10.2): the numbers are stored in the dtype of the parameters. In bfloat16
# the default b2 of 0.999 becomes 1, the correction of the start divides by 1 - 1, and every
# parameter is NaN after the first step. `hyperparam_dtype=jnp.float32` gives the plain optimizer's
# step, but in float32.
#
#     float32: plain -0.100, injected -0.100
#     bfloat16: plain -0.100, injected nan, b2 is stored as 1.0
#     bfloat16, hyperparam_dtype=float32: injected -0.100, of dtype float32
#
# Why it matters: injecting is how a learning rate is logged or changed from outside, and it is
# added to programs that train already. Where the constant survives the rounding (b2 of 0.98, a rate
# of 3e-4) nothing is NaN and the run is merely another one.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
unset "${!JAX_@}" XLA_FLAGS
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 scipy==1.17.1 ml_dtypes==0.6.0
cat > "$room/probe.py" <<'PY'
import math
import sys

import jax
import jax.numpy as jnp
import optax


def first_step(tx, dtype):
    params = jnp.ones((3,), dtype)
    state = tx.init(params)
    updates, _ = jax.jit(tx.update)(jnp.ones((3,), dtype), state, params)
    return updates[0], state


def injected(**options):
    return optax.inject_hyperparams(optax.adamw, **options)(learning_rate=0.1)


single, _ = first_step(optax.adamw(0.1), jnp.float32)
single_injected, _ = first_step(injected(), jnp.float32)
print(f"float32: plain {single:.3f}, injected {single_injected:.3f}")
plain, _ = first_step(optax.adamw(0.1), jnp.bfloat16)
broken, state = first_step(injected(), jnp.bfloat16)
b2 = float(state.hyperparams["b2"])
seen = [float(plain), float(broken)]
print(f"bfloat16: plain {seen[0]:.3f}, injected {seen[1]:.3f}, b2 is stored as {b2}")
wide, _ = first_step(injected(hyperparam_dtype=jnp.float32), jnp.bfloat16)
name = "bfloat16, hyperparam_dtype=float32"
print(f"{name}: injected {float(wide):.3f}, of dtype {wide.dtype}")
if abs(single - single_injected) > 1e-6 or abs(seen[0] + 0.1) > 1e-3:
    sys.exit("changed: plain AdamW, or the injected one in float32, is no longer as recorded")
if not math.isnan(seen[1]) or b2 != 1:
    sys.exit("changed: the injected AdamW in bfloat16 is no longer as recorded")
if abs(wide + 0.1) > 1e-3 or wide.dtype != jnp.float32:
    sys.exit("changed: the injected AdamW with float32 numbers is no longer as recorded")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
