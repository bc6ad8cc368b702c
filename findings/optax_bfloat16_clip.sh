#!/usr/bin/env bash
# Question: does `optax.clip_by_global_norm(1.0)` bound the norm of half-precision gradients?
#
# Guess, written before the run: yes, within rounding. 1,000 bfloat16 leaves of norm 1 have a global
# norm of 31.6 (within 1 %) and norm 1.0 after clipping; four float16 entries of 300 have norm 600
# and norm 1.0 after it.
#
# Seen (optax 0.2.8, jax 0.10.2): the squares are added leaf by leaf in the leaves' own dtype. In
# bfloat16 the total stops at 256, so that the norm reads 16 and what is clipped still has norm
# 1.98. In float16 300 squared overflows: the norm is inf and the gradients become zero.
#
#     bfloat16, 1000 leaves: norm 16, after clipping to 1: 1.976
#     float16, one leaf of four 300s: norm inf, after clipping to 1: 0.000
#     float32, 1000 leaves: norm 31.62, after clipping to 1: 1.000
#
# Why it matters: the more leaves a network has (a ViT of 24 blocks has some 300), the more the
# logged `grad_norm` understates and the weaker the clipping; in float16 training stands still.
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
import numpy as np
import optax


def clipped(name, gradients):
    norm = float(jax.jit(optax.global_norm)(gradients))
    clip = optax.clip_by_global_norm(1.0)
    after, _ = jax.jit(clip.update)(gradients, clip.init(gradients))
    squares = [np.square(np.asarray(g).astype(np.float64)).sum() for g in jax.tree.leaves(after)]
    left = math.sqrt(sum(squares))
    print(f"{name}: norm {norm:.4g}, after clipping to 1: {left:.3f}")
    return norm, left


def leaves(dtype):
    return {str(i): jnp.ones((1,), dtype) for i in range(1000)}


norm, left = clipped("bfloat16, 1000 leaves", leaves(jnp.bfloat16))
half, nothing = clipped("float16, one leaf of four 300s", {"w": jnp.full((4,), 300, jnp.float16)})
single, one = clipped("float32, 1000 leaves", leaves(jnp.float32))
if abs(one - 1) > 1e-3 or abs(single - 31.62) > 0.01:
    sys.exit("changed: float32 gradients are no longer clipped as recorded")
if norm != 16 or not 1.9 < left < 2.1 or half != math.inf or nothing != 0:
    sys.exit("changed: half-precision gradients are no longer clipped as recorded")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
