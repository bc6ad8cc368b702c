#!/usr/bin/env bash
# Question: do `safetensors.numpy.load` and `safetensors.flax.load` read back a bfloat16 or float8
# array that their own `save` has just written?
#
# Guess, written before the run: yes, numpy's as an array of ml_dtypes' type, which is what it was
# given, or it refuses to write one; flax's in any case, JAX being at home in bfloat16.
#
# Seen (safetensors 0.8.0, ml_dtypes 0.6.0): both write it, the bytes are in order (`load_file` of
# flax reads them), and `load` of both raises a bare KeyError with the name of the type: flax's goes
# through numpy's table, its `load_file` does not. One such array keeps all others from being read.
#
#     safetensors.numpy, bfloat16: written, 68 bytes; load: KeyError 'BF16'
#     safetensors.numpy, float8_e4m3fn: written, 74 bytes; load: KeyError 'F8_E4M3'
#     safetensors.flax, bfloat16: written, 68 bytes; load: KeyError 'BF16'
#     safetensors.flax, bfloat16, the same bytes by load_file: bfloat16
#
# Why it matters: a tool without PyTorch (an evaluator, a converter, a hub script) that tries itself
# on float32 fails on nearly every released checkpoint, and one that reads from memory (an archive,
# a download) fails where the same file on disk works.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
unset "${!JAX_@}" XLA_FLAGS
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  safetensors==0.8.0 flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 scipy==1.17.1 \
  ml_dtypes==0.6.0
cat > "$room/probe.py" <<'PY'
import sys

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors.flax
import safetensors.numpy


def read_back(room, array):
    written = room.save({"w": array})
    try:
        read = room.load(written)["w"].dtype.name
    except Exception as error:
        read = f"{type(error).__name__} {error}"
    name = f"{room.__name__}, {array.dtype.name}"
    print(f"{name}: written, {len(written)} bytes; load: {read}")
    return read


half = read_back(safetensors.numpy, np.ones(2, ml_dtypes.bfloat16))
quarter = read_back(safetensors.numpy, np.ones(2, ml_dtypes.float8_e4m3fn))
ours = read_back(safetensors.flax, jnp.ones(2, jnp.bfloat16))
safetensors.flax.save_file({"w": jnp.ones(2, jnp.bfloat16)}, "w.safetensors")
by_file = safetensors.flax.load_file("w.safetensors")["w"].dtype.name
print(f"safetensors.flax, bfloat16, the same bytes by load_file: {by_file}")
recorded = ("KeyError 'BF16'", "KeyError 'F8_E4M3'", "KeyError 'BF16'", "bfloat16")
if (half, quarter, ours, by_file) != recorded:
    sys.exit("changed: narrow types are no longer written and refused as recorded")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
