#!/usr/bin/env bash
# Question: does `jnp.linspace(999, 0, 1000, dtype=int)` count down through all the steps of a
# diffusion, as NumPy's does?
#
# Guess, written before the run: yes; whole numbers of this size are exact in float32, and so are
# whole steps between them.
#
# Seen (jax 0.10.2, numpy 2.4.6): no. The interpolation `start * (1 - t) + stop * t` in float32 ends
# just below whole numbers, and integers are cut, not rounded: 7 of 1,000 steps are one too small,
# 0 comes twice and 7 never. Counting up from 0 is exact, so the same schedule read backwards is.
#
#     linspace(999, 0, 1000, dtype=int): 7 differ from NumPy's, 999 distinct: 6 for 7, 5 for 6, ...
#     linspace(980, 0, 50, dtype=int): 5 differ from NumPy's, 50 distinct: 799 for 800, 559 for ...
#     linspace(0, 999, 1000, dtype=int): 0 differ from NumPy's, 1000 distinct
#     linspace(-3, 3, 7) cut to integers: -3 -2 0 0 1 2 3
#
# Why it matters: samplers take their time steps from this call, counting down. Some steps look up
# the noise level of their neighbour, near the end, where levels differ most; ports of samplers
# differ from their originals in the last steps and nowhere else. Round, or flip a rising one.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
unset "${!JAX_@}" XLA_FLAGS
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 scipy==1.17.1 ml_dtypes==0.6.0
cat > "$room/probe.py" <<'PY'
import sys

import jax.numpy as jnp
import numpy as np


def look(start, stop, count):
    found = np.asarray(jnp.linspace(start, stop, count, dtype=int))
    right = np.linspace(start, stop, count, dtype=int)
    off = np.flatnonzero(found != right)
    pairs = ", ".join(f"{found[i]} for {right[i]}" for i in off[:3])
    print(
        f"linspace({start}, {stop}, {count}, dtype=int): {len(off)} differ from NumPy's, "
        f"{len(set(found.tolist()))} distinct{': ' * bool(pairs)}{pairs}"
    )
    return len(off)


down, few = look(999, 0, 1000), look(980, 0, 50)
up = look(0, 999, 1000)
fewest = np.asarray(jnp.linspace(-3, 3, 7)).astype(int)
print("linspace(-3, 3, 7) cut to integers:", *fewest)
if up or not down or not few:
    sys.exit("changed: steps that go down are whole now, or those that go up are not")
if list(fewest) == [-3, -2, -1, 0, 1, 2, 3]:
    sys.exit("changed: -1 is whole now")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
