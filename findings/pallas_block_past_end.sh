#!/usr/bin/env bash
# Question: in Pallas's interpret mode, what does a block read or write whose index lies wholly past
# the end of the array, as the neighbour of the last block does?
#
# Guess, written before the run: NaN where it reads, as in the part of a block that hangs over the
# end, and nothing where it writes; or an error.
#
# Seen (jax 0.10.2): it is the last block. Index n reads the last block again, index -1 reads the
# last block too, and an output block too many overwrites the last one. Only the part of a block
# that hangs over the end is NaN, in integers the least value.
#
#     [0 .. 11] in blocks of 4, block i + 1: 4 5 6 7 8 9 10 11 8 9 10 11
#     block i - 1: 8 9 10 11 0 1 2 3 4 5 6 7
#     three blocks into an output of two: 0 1 2 3 8 9 10 11
#     [0 .. 9], block i: 0 1 2 3 4 5 6 7 8 9 nan nan
#
# Why it matters: interpret mode is where kernels are tested without a device. A halo at the border
# or a grid that is one too long gives plausible, finite numbers there, in which the left border of
# a picture is its right one, and says nothing about what the device reads. Clamp or mask indices
# in the index map by hand, and test that the borders count.
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
import numpy as np
from jax.experimental import pallas as pl


def copy(source, target):
    target[...] = source[...]


def blocks(index, source, size=12):
    out = pl.pallas_call(
        copy,
        out_shape=jax.ShapeDtypeStruct((size,), source.dtype),
        grid=(3,),
        in_specs=[pl.BlockSpec((4,), index)],
        out_specs=pl.BlockSpec((4,), lambda i: i),
        interpret=True,
    )(source)
    return [float(x) for x in out]


twelve, ten = jnp.arange(12.0), jnp.arange(10.0)
after = blocks(lambda i: i + 1, twelve)
before = blocks(lambda i: i - 1, twelve)
written = blocks(lambda i: i, twelve, 8)
hanging = blocks(lambda i: i, ten)
for name, values in (
    ("[0 .. 11] in blocks of 4, block i + 1:", after),
    ("block i - 1:", before),
    ("three blocks into an output of two:", written),
    ("[0 .. 9], block i:", hanging),
):
    print(name, *(f"{value:.0f}" for value in values))
last = [8, 9, 10, 11]
if after != [4, 5, 6, 7, *last, *last] or before != [*last, *range(8)]:
    sys.exit("changed: a block past the end no longer reads the last one")
if written != [0, 1, 2, 3, *last] or not np.isnan(hanging[10:]).all():
    sys.exit("changed: writing past the end or hanging over it is no longer as recorded")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
