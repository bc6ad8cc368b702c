#!/usr/bin/env bash
# Question: `nn.MultiHeadDotProductAttention(dropout_rate=0.5)` on a batch of equal examples. Are
# different weights dropped in each?
#
# Guess, written before the run: yes, for each example and each head, as with `nn.Dropout` and as
# attention of other frameworks does.
#
# Seen (flax 0.12.8): one mask of queries by keys is drawn and shared by all examples and all heads,
# in linen and in NNX. `broadcast_dropout` is True unless it is switched off.
#
#     linen: 64 equal examples give 1 output; broadcast_dropout=False: 64
#     nnx: 64 equal examples give 1 output; broadcast_dropout=False: 64
#     nn.Dropout: 64
#
# Why it matters: at each step whole pairs of positions are cut for the batch, in all heads at once,
# so averaging over the batch takes none of the noise of dropout away, and the rate found with
# another framework means something else. Pass `broadcast_dropout=False`.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
unset "${!JAX_@}" XLA_FLAGS
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 scipy==1.17.1 ml_dtypes==0.6.0
cat > "$room/probe.py" <<'PY'
import sys

import flax.linen as nn
import jax
import numpy as np
from flax import nnx

same = jax.numpy.tile(jax.random.normal(jax.random.key(0), (1, 5, 8)), (64, 1, 1))
sizes = {"num_heads": 2, "qkv_features": 8, "dropout_rate": 0.5}


def outputs(array):
    return len(np.unique(np.asarray(array).round(5).reshape(64, -1), axis=0))


def linen(**kwargs):
    layer = nn.MultiHeadDotProductAttention(**sizes, **kwargs)
    params = layer.init(jax.random.key(1), same, deterministic=True)
    rngs = {"dropout": jax.random.key(2)}
    return outputs(layer.apply(params, same, deterministic=False, rngs=rngs))


def of_nnx(**kwargs):
    layer = nnx.MultiHeadAttention(in_features=8, decode=False, rngs=nnx.Rngs(0), **sizes, **kwargs)
    return outputs(layer(same, deterministic=False, rngs=nnx.Rngs(1)))


seen = []
for name, count in (("linen", linen), ("nnx", of_nnx)):
    seen += [count(), count(broadcast_dropout=False)]
    print(f"{name}: 64 equal examples give {seen[-2]} output; broadcast_dropout=False: {seen[-1]}")
plain = nn.Dropout(0.5, deterministic=False).apply({}, same, rngs={"dropout": jax.random.key(2)})
print("nn.Dropout:", outputs(plain))
if seen[::2] != [1, 1]:
    sys.exit("changed: attention no longer shares its dropout among the examples")
if min(seen[1::2]) < 32 or outputs(plain) != 64:
    sys.exit("changed: examples are no longer dropped from apart as recorded")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
