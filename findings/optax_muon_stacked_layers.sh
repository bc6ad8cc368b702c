#!/usr/bin/env bash
# Question: what does `optax.contrib.muon` do with kernels stacked by `nn.scan`, `[layers, in,
# out]`?
#
# Guess, written before the run: it takes the leading axis as a batch and orthogonalises the update
# of every layer: eight singular values near 1 for each 8x8 kernel, stacked or not.
#
# Seen (optax 0.2.8): only leaves of exactly two axes get Muon. A stacked kernel falls to the Adam
# that serves biases, with no word: its first update holds signs and its singular values run from 8
# to almost 0.
#
#     [8, 8]: singular values 1.13 .. 0.69
#     [4, 8, 8], first layer: singular values 7.99 .. 0.00
#
# Why it matters: putting the blocks of a transformer into one scanned stack, which changes nothing
# in the mathematics, turns the optimiser of nearly all weights into another one, at Muon's learning
# rate. `muon_weight_dimension_numbers` names the axes.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
unset "${!JAX_@}" XLA_FLAGS
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 scipy==1.17.1 ml_dtypes==0.6.0
cat > "$room/probe.py" <<'PY'
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

key = jax.random.key(0)
params = {"plain": jnp.ones((8, 8)), "stack": jnp.ones((4, 8, 8))}
gradients = {name: jax.random.normal(key, leaf.shape) for name, leaf in params.items()}
optimiser = optax.contrib.muon(1.0)
updates, _ = jax.jit(optimiser.update)(gradients, optimiser.init(params), params)


def spread(name, kernel):
    values = np.linalg.svd(np.asarray(kernel), compute_uv=False)
    print(f"{name}: singular values {values[0]:.2f} .. {values[-1]:.2f}")
    return values[0], values[-1]


high, low = spread("[8, 8]", updates["plain"])
top, bottom = spread("[4, 8, 8], first layer", updates["stack"][0])
if not (high < 1.3 and low > 0.5 and top > 5 and bottom < 0.2):
    sys.exit("changed: plain and stacked kernels are no longer treated as recorded")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
