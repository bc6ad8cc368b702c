#!/usr/bin/env bash
# Question: how far is OTT's `soft_sort.sort`, with its defaults, from sorting 0..n-1?
#
# Guess, written before the run: within 0.1 for every entry: the inputs are well apart, and the
# smoothing is relative to their range. `soft_sort.quantile` of 0 and 1 is near the least and the
# greatest.
#
# Seen (ott-jax 0.6.0, jax 0.10.2): the smoothing is fixed on the scale of the *whole* range, not of
# the gaps. The least of ten comes out as 0.37, the least of a hundred as 6.4, and the spread
# shrinks at both ends alike; the quantiles 0 and 1 are NaN.
#
#     n 10: least 0.37, greatest 8.63
#     n 100: least 6.42, greatest 92.46
#     quantiles 0 and 1 of 0..9: nan nan
#
# Why it matters: as a loss on sorted features or a differentiable quantile (sliced distances,
# calibration of an entropy threshold) it pulls both tails inwards, and the more so the more entries
# there are: no setting of one size carries over to another. Pass `epsilon`.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
unset "${!JAX_@}" XLA_FLAGS
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  ott-jax==0.6.0 optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 scipy==1.17.1 \
  ml_dtypes==0.6.0
cat > "$room/probe.py" <<'PY'
import sys

import jax.numpy as jnp
import numpy as np
from ott.tools import soft_sort


def ends(n):
    found = np.asarray(soft_sort.sort(jnp.arange(float(n))))
    print(f"n {n}: least {found[0]:.2f}, greatest {found[-1]:.2f}")
    return found[0], (n - 1) - found[-1]


ten, hundred = ends(10), ends(100)
outer = np.asarray(soft_sort.quantile(jnp.arange(10.0), jnp.array([0.0, 1.0])))
print("quantiles 0 and 1 of 0..9:", *outer)
if not all(0.25 < e < 0.5 for e in ten) or not all(5 < e < 8 for e in hundred):
    sys.exit("changed: the ends of a soft sort are no longer drawn in as recorded")
if not np.isnan(outer).all():
    sys.exit("changed: the outer soft quantiles are no longer NaN")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
