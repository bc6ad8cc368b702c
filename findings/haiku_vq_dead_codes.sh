#!/usr/bin/env bash
# Question: what does `hk.nets.VectorQuantizerEMA` do with codes that no vector of the first batch
# is nearest to?
#
# Guess, written before the run: nothing. A moving average with decay 0.99 leaves a code that gets
# nothing where it was initialised, or lets it fade over hundreds of steps.
#
# Seen (dm-haiku 0.0.17): after the first training step every code that was not used is the zero
# vector. The averages correct their bias at zero, so the first step forgets the initialisation as
# a whole. From then on all unused codes are one and the same vector, of which at most one can be
# picked.
#
#     8 codes, 2 used in the first batch: lengths before the step 1.44 1.23 0.79 1.29 1.09 0.84 ...
#     after it 1.0 1.0 0.0 0.0 0.0 0.0 0.0 0.0
#     used later by vectors at random: 3 of 8 codes; from the initial codes: 8
#
# Why it matters: a tokenizer's codebook of 8,192 meets a first batch of a few similar pictures
# (one class, a warm start, black borders). What is left of it is the codes of that batch and a
# single zero, which looks like the usual collapse of a codebook and is made in step one. Fill the
# codebook from data after the first steps, or use `VectorQuantizer`.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
unset "${!JAX_@}" XLA_FLAGS
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  dm-haiku==0.0.17 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 scipy==1.17.1 ml_dtypes==0.6.0
cat > "$room/probe.py" <<'PY'
import sys

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np


def quantize(vectors, is_training):
    layer = hk.nets.VectorQuantizerEMA(4, 8, commitment_cost=0.25, decay=0.99, name="vq")
    return layer(vectors, is_training=is_training)


model = hk.transform_with_state(quantize)
batch = jnp.tile(jnp.eye(4)[:2], (8, 1))
later = jnp.asarray(np.random.default_rng(0).normal(size=(200, 4)), jnp.float32)
params, state = model.init(jax.random.key(0), batch, True)


def used(state):
    output, _ = model.apply(params, state, None, later, False)
    return len(np.unique(np.asarray(output["encoding_indices"])))


def lengths(state):
    return np.linalg.norm(np.asarray(state["vq"]["embeddings"]), axis=0)


fresh, before = used(state), lengths(state)
_, state = model.apply(params, state, None, batch, True)
after, count = np.sort(lengths(state))[::-1], used(state)
print("8 codes, 2 used in the first batch: lengths before the step", *before.round(2))
print("after it", *after.round(2))
print(f"used later by vectors at random: {count} of 8 codes; from the initial codes: {fresh}")
if before.min() < 0.1 or not np.allclose(after[:2], 1, atol=0.01) or after[2:].max() > 0.01:
    sys.exit("changed: unused codes are no longer zero after the first step")
if not count < fresh:
    sys.exit("changed: the zero codes are still told apart")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
