#!/usr/bin/env bash
# Question: what does `flax.serialization.from_bytes(target, stored)` do where the stored array has
# another shape and dtype than the target's?
#
# Guess, written before the run: it raises; the target is there to say what is expected, and a list
# of another length does raise.
#
# Seen (flax 0.12.8): the stored array comes back in its own shape and dtype, with no word: of the
# target only names and lengths of lists count. An entry that the target lacks is left out as
# silently; only one that is missing raises.
#
#     asked for w float32 (2, 3), stored w float16 (5,) and b: got w float16 (5,)
#     asked for a list of 2, stored 3: ValueError
#     asked for w and b, stored w: ValueError
#
# Why it matters: parameters of another width load without a word and fail later inside a product,
# or, where they broadcast, never.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
unset "${!JAX_@}" XLA_FLAGS
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  flax==0.12.8 optax==0.2.8 orbax-checkpoint==0.12.8 tensorstore==0.1.86 jax==0.10.2 \
  jaxlib==0.10.2 numpy==2.4.6 scipy==1.17.1 ml_dtypes==0.6.0
cat > "$room/probe.py" <<'PY'
import sys

import numpy as np
from flax import serialization

stored = {"w": np.ones(5, np.float16), "b": np.ones(1, np.float32)}
target = {"w": np.zeros((2, 3), np.float32)}
try:
    read = serialization.from_bytes(target, serialization.to_bytes(stored))
    word = ", ".join(f"{name} {read[name].dtype} {read[name].shape}" for name in sorted(read))
except Exception as error:
    word = type(error).__name__
print(f"asked for w float32 (2, 3), stored w float16 (5,) and b: got {word}")
try:
    serialization.from_bytes([0, 0], serialization.to_bytes([1, 1, 1]))
    longer = "no error"
except Exception as error:
    longer = type(error).__name__
print(f"asked for a list of 2, stored 3: {longer}")
try:
    serialization.from_bytes({"w": 0, "b": 0}, serialization.to_bytes({"w": 1}))
    missing = "no error"
except Exception as error:
    missing = type(error).__name__
print(f"asked for w and b, stored w: {missing}")
if (word, longer, missing) != ("w float16 (5,)", "ValueError", "ValueError"):
    sys.exit("changed: what does not fit the target is no longer taken as recorded")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
