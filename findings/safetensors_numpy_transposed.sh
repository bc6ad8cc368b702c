#!/usr/bin/env bash
# Question: does `safetensors.numpy.save` keep the values of a transposed array?
#
# Guess, written before the run: yes; NumPy's `tobytes` writes any view in C order, and big-endian
# arrays are known to be handled.
#
# Seen (safetensors 0.8.0, numpy 2.4.6): the memory behind the view is written in its own order
# under the view's shape, without a word. What comes back is another matrix, of the right shape,
# dtype and sum. Fortran order does the same; `np.ascontiguousarray` first gives the right file.
#
#     stored [[0, 3], [1, 4], [2, 5]], read [[0, 1], [2, 3], [4, 5]]
#     Fortran order: values kept False
#     np.ascontiguousarray first: values kept True
#     big-endian: values kept True
#
# Why it matters: kernels are transposed between Flax and PyTorch layouts in every conversion of a
# checkpoint, mostly as `.T`. The file passes every check of names, shapes and norms.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  safetensors==0.8.0 numpy==2.4.6
cat > "$room/probe.py" <<'PY'
import sys

import numpy as np
from safetensors.numpy import load, save


def stored(array):
    return load(save({"w": array}))["w"]


def kept(name, array):
    found = bool(np.array_equal(stored(array), array))
    print(f"{name}: values kept", found)
    return found


kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
turned = stored(kernel.T)
print(f"stored {kernel.T.astype(int).tolist()}, read {turned.astype(int).tolist()}")
fortran = kept("Fortran order", np.asfortranarray(kernel))
whole = kept("np.ascontiguousarray first", np.ascontiguousarray(kernel.T))
big = kept("big-endian", np.arange(3, dtype=">f4"))
if turned.shape != (3, 2) or turned.ravel().tolist() != list(range(6)):
    sys.exit("changed: a transposed array is no longer stored as recorded")
if fortran or not whole or not big:
    sys.exit("changed: other layouts are no longer stored as recorded")
PY
cd "$room"
"$room/venv/bin/python" -I probe.py
