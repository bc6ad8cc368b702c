#!/usr/bin/env bash
# Question: does `eqx.nn.AdaptiveAvgPool2d` average over the windows of PyTorch's layer of that
# name, where the size is no multiple of the target?
#
# Guess, written before the run: yes. It is there so that networks such as VGG can be carried over,
# whose weights expect those windows: row i goes from floor(i n / m) to ceil((i + 1) n / m).
#
# Seen (equinox 0.13.8, jax 0.10.2): no. The windows do not overlap: the first ones take one row
# more, the others the rest. Of 8 rows to 7, PyTorch averages each with its neighbour, Equinox
# averages the first two and copies the others, which moves them by half a row.
#
#     8 -> 7, rows 0 to 7: equinox 0.5 2 3 4 5 6 7
#     PyTorch's windows:   0.5 1.5 2.5 3.5 4.5 5.5 6.5
#     7 -> 3: equinox 1 3.5 5.5, PyTorch's windows 1 3 5
#
# Why it matters: features of VGG (a perceptual loss, a Frechet distance) on pictures of other sizes
# than 224 are computed from moved maps, with converted weights that are right. Where the size is a
# multiple of the target both agree, so the test at 224 passes.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
unset "${!JAX_@}" XLA_FLAGS
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  equinox==0.13.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 scipy==1.17.1 ml_dtypes==0.6.0
cat > "$room/probe.py" <<'PY'
import math
import sys

import equinox as eqx
import jax.numpy as jnp
import numpy as np


def pooled(size, target):
    image = jnp.broadcast_to(jnp.arange(float(size))[:, None], (1, size, size))
    return np.asarray(eqx.nn.AdaptiveAvgPool2d(target)(image))[0, :, 0]


def windows(size, target):
    rows = np.arange(float(size))
    cuts = [(i * size // target, math.ceil((i + 1) * size / target)) for i in range(target)]
    return np.array([rows[start:end].mean() for start, end in cuts])


def text(values):
    return " ".join(f"{value:g}" for value in values)


eight, three = pooled(8, 7), pooled(7, 3)
print("8 -> 7, rows 0 to 7: equinox", text(eight))
print("PyTorch's windows:  ", text(windows(8, 7)))
print(f"7 -> 3: equinox {text(three)}, PyTorch's windows {text(windows(7, 3))}")
if not np.allclose(pooled(14, 7), windows(14, 7)):
    sys.exit("changed: multiples of the target no longer agree")
if not np.allclose(eight, [0.5, 2, 3, 4, 5, 6, 7]) or not np.allclose(three, [1, 3.5, 5.5]):
    sys.exit("changed: the windows are no longer cut without overlap")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
