#!/usr/bin/env bash
# Question: `StandardCheckpointer.restore(path, target)`: the target says another shape or dtype
# than what is stored. What happens?
#
# Guess, written before the run: another shape raises, whatever the target is made of (it does for a
# ShapeDtypeStruct). Another dtype raises where values would be lost: float to integer.
#
# Seen (orbax-checkpoint 0.12.8): the shape is checked for JAX arrays and for ShapeDtypeStructs;
# with a NumPy array as the target the stored one comes back in its own shape, without a word. The
# dtype is converted in all three cases, floats to integers and uint8 included: fractions are cut
# off, 300 wraps around to 44.
#
#     stored (2, 3), target jax.Array (3, 3): ValueError
#     stored (2, 3), target ShapeDtypeStruct (3, 3): ValueError
#     stored (2, 3), target numpy.ndarray (3, 3): (2, 3)
#     stored float32 0.7 -0.7 300.0, target int32: 0 0 300
#     stored float32 0.7 -0.7 300.0, target uint8: 0 0 44
#
# Why it matters: evaluators and converters on a host restore into NumPy trees, where the one check
# that tells "another model" from "this model" is missing; and a statistic that was declared as an
# integer (counts, a mean of 0.7) restores as 0.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
unset "${!JAX_@}" XLA_FLAGS
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  orbax-checkpoint==0.12.8 tensorstore==0.1.86 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 \
  scipy==1.17.1 ml_dtypes==0.6.0
cat > "$room/probe.py" <<'PY'
import logging
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

logging.disable(logging.ERROR)
checkpointer = ocp.StandardCheckpointer()
matrix, three = pathlib.Path("matrix").resolve(), pathlib.Path("three").resolve()
checkpointer.save(matrix, {"w": jnp.arange(6.0).reshape(2, 3)})
checkpointer.save(three, {"w": jnp.array([0.7, -0.7, 300])})
checkpointer.wait_until_finished()


def shape(target):
    try:
        return checkpointer.restore(matrix, {"w": target})["w"].shape
    except ValueError:
        return "ValueError"


targets = {
    "jax.Array": jnp.zeros((3, 3)),
    "ShapeDtypeStruct": jax.ShapeDtypeStruct((3, 3), jnp.float32),
    "numpy.ndarray": np.zeros((3, 3), np.float32),
}
shapes = {name: shape(target) for name, target in targets.items()}
for name, got in shapes.items():
    print(f"stored (2, 3), target {name} (3, 3): {got}")
if list(shapes.values()) != ["ValueError", "ValueError", (2, 3)]:
    sys.exit("changed: shapes of targets are no longer checked as recorded")
for dtype, values in ((jnp.int32, [0, 0, 300]), (jnp.uint8, [0, 0, 44])):
    got = checkpointer.restore(three, {"w": jnp.zeros(3, dtype)})["w"]
    listed = " ".join(map(str, got.tolist()))
    print(f"stored float32 0.7 -0.7 300.0, target {dtype.__name__}: {listed}")
    if got.dtype != dtype or got.tolist() != values:
        sys.exit("changed: floats are no longer converted as recorded")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
