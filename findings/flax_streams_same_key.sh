#!/usr/bin/env bash
# Question: a model asks for two streams of random numbers, "dropout" and "noise". Both are started
# from one key (linen: `rngs={"dropout": key, "noise": key}`) or one seed (NNX: `nnx.Rngs(dropout=0,
# noise=0)`). Are the streams independent?
#
# Guess, written before the run: yes. A stream has a name so that its draws differ from another's;
# the name is folded into the key, as linen does with the path of a module.
#
# Seen (flax 0.12.8): the n-th key of one stream is the n-th key of the other. The name only finds
# the key. A mask and a noise drawn from them come from the same bits: all values that a mask of
# probability 1/2 keeps have negative noise, all it drops have positive noise.
#
#     linen: equal keys True, mean noise where kept -0.81, where dropped 0.79
#     nnx: equal keys True, mean noise where kept -0.81, where dropped 0.80
#     nnx.Rngs(0), one default stream: equal keys False, mean noise where kept -0.00, where ...
#
# Why it matters: one seed for all streams is the plain thing to write. Dropout then keeps exactly
# the units with low noise, a second draw of a variational encoder repeats the first, and nothing
# looks random in the wrong way. Split the key, or give each stream its own seed.
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
from flax import nnx


class Pair(nn.Module):
    @nn.compact
    def __call__(self):
        return self.make_rng("dropout"), self.make_rng("noise")


def look(name, dropout, noise):
    equal = bool((jax.random.key_data(dropout) == jax.random.key_data(noise)).all())
    kept = jax.random.bernoulli(dropout, 0.5, (10_000,))
    drawn = jax.random.normal(noise, (10_000,))
    means = float(drawn.mean(where=kept)), float(drawn.mean(where=~kept))
    print(f"{name}: equal keys {equal}, mean noise where kept {means[0]:.2f}, "
          f"where dropped {means[1]:.2f}")
    return equal, means[0] < -0.7 and means[1] > 0.7


key = jax.random.key(0)
linen = look("linen", *Pair().apply({}, rngs={"dropout": key, "noise": key}))
named = nnx.Rngs(dropout=0, noise=0)
streams = look("nnx", named.dropout(), named.noise())
rngs = nnx.Rngs(0)
default = look("nnx.Rngs(0), one default stream", rngs.dropout(), rngs.noise())
if linen != (True, True) or streams != (True, True):
    sys.exit("changed: streams started from one key are no longer the same")
if default != (False, False):
    sys.exit("changed: the default stream repeats a key")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
