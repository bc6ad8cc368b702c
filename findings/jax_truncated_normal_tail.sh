#!/usr/bin/env bash
# Question: what does `jax.random.truncated_normal` draw far out in the tail, where rejection would
# be slow and inversion is what one wants it for?
#
# Guess, written before the run: values within the bounds, coarser the farther out, crowded towards
# the lower bound as the law is: of a normal above 4, all but one in a million lie below 7.
#
# Seen (jax 0.10.2, float32, the default): the inverse runs out of numbers at 5.42, and what lies
# beyond goes to the *other* bound. Above 4 one draw in two thousand is the upper bound, above 5
# one in eighteen, above 5.4 all; with an upper bound of infinity that is the largest float, and
# the mean is infinite.
#
#     [4, inf): largest draw 3.4e+38 (0.05 % of draws), mean inf; the law's mean is 4.226
#     [5, 9]: 5.6 % of draws are 9.0, mean 5.380; the law's mean is 5.187
#     [5.4, 9]: 100.0 % of draws are 9.0, mean 9.000; the law's mean is 5.574
#
# Why it matters: noise that is to stay outside of a ball, rare-event sampling and thresholds of a
# verifier are drawn so; a single draw of 3.4e38 turns a batch into NaN.
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
import numpy as np
import scipy.stats

DRAWS = 100_000


def tail(lower, upper):
    draws = jax.random.truncated_normal(jax.random.key(0), lower, upper, (DRAWS,))
    draws = np.asarray(draws, np.float32)
    # As float32, so that a mean beyond its largest number reads as users would see it.
    with np.errstate(over="ignore"):
        mean = draws.mean(dtype=np.float32)
    end = 3e38 if upper == np.inf else upper - 0.01
    return (draws > end).mean(), draws.max(), mean, scipy.stats.truncnorm(lower, upper).mean()


share, largest, mean, law = tail(4.0, np.inf)
print(
    f"[4, inf): largest draw {largest:.1e} ({share:.2%} of draws), mean {mean}; "
    f"the law's mean is {law:.3f}".replace("%", " %")
)
as_recorded = largest > 3e38 and 0 < share < 0.002 and mean == np.inf
for lower, least, most in ((5.0, 0.03, 0.1), (5.4, 0.99, 1.0)):
    share, largest, mean, law = tail(lower, 9.0)
    print(
        f"[{lower:g}, 9]: {share:.1%} of draws are {largest:.1f}, mean {mean:.3f}; "
        f"the law's mean is {law:.3f}".replace("%", " %")
    )
    as_recorded &= least <= share <= most
if not as_recorded:
    sys.exit("changed: draws far out in the tail no longer fall on the other bound")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
