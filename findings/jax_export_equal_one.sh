#!/usr/bin/env bash
# Question: a function treats a single row apart (`if x.shape[0] == 1: ...`). What becomes of that
# when it is exported with a symbolic number of rows?
#
# Guess, written before the run: the export is refused with InconclusiveDimensionOperation, as it
# is for `x.shape[0] > 1`, since the answer depends on the caller.
#
# Seen (jax 0.10.2): the export succeeds. `==` between a dimension and a number is False unless it
# is known to be true, so the branch for one row is left out, and the exported function called with
# one row takes the other one. `>` and `<` do raise.
#
#     == 1: the function gives 0.0, the exported one nan
#     > 1: InconclusiveDimensionOperation
#
# Why it matters: special cases for one row (a spread that needs two, a batch that is broadcast,
# guidance that is switched off) are written with `==`. The program that is shipped answers a
# single request differently from the code it was made of, while every larger batch agrees. Write
# `x.shape[0] < 2`, which stops the export.
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
from jax import export


def spread(rows):
    if rows.shape[0] == 1:
        return jnp.zeros(rows.shape[1:])
    return rows.std(0, ddof=1)


def ordered(rows):
    return rows.std(0, ddof=1) if rows.shape[0] > 1 else jnp.zeros(rows.shape[1:])


rows = jax.ShapeDtypeStruct(export.symbolic_shape("b, 2"), jnp.float32)
shipped = export.export(jax.jit(spread))(rows)
one, three = jnp.ones((1, 2)), jnp.arange(6.0).reshape(3, 2)
here, there = float(jax.jit(spread)(one)[0]), float(shipped.call(one)[0])
print(f"== 1: the function gives {here}, the exported one {there}")
if not jnp.allclose(spread(three), shipped.call(three)):
    sys.exit("changed: three rows no longer agree")
try:
    export.export(jax.jit(ordered))(rows)
    sys.exit("changed: > 1 is no longer refused")
except Exception as error:
    name = type(error).__name__
    print(f"> 1: {name}")
if here != 0 or there == there or name != "InconclusiveDimensionOperation":
    sys.exit("changed: == 1 of a symbolic dimension is no longer False")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
