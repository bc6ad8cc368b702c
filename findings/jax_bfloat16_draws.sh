#!/usr/bin/env bash
# Question: what do `jax.random.normal` and `jax.random.categorical` give in bfloat16?
#
# Guess, written before the run: float32 draws rounded. A million normals reach 4.9, have more than
# a thousand different values, mean 0 within 0.003. 100,000 categorical draws over 1,024 equal
# logits are uniform: 98 each, half of them below id 512.
#
# Seen (jax 0.10.2, CPU): bfloat16 draws use 7 random bits. The normals take 128 values in all, none
# of them 0, none beyond 2.9, lopsided (mean -0.012, twelve standard errors from 0). Of the
# categorical draws 98 % are below id 512, because ties go to the lowest id; a hundred ids and more
# never come up. With `mode="high"` the categorical draw is even again.
#
#     normal bfloat16: 128 values from -2.89 to 2.52, mean -0.0121
#     normal float32: 942524 values from -4.65 to 4.52, mean 0.0002
#     categorical bfloat16: share below 512 0.983, ids never drawn 122
#     categorical bfloat16, mode high: share below 512 0.508, ids never drawn 0
#
# Why it matters: noise drawn in the network's dtype has no tails, and a token head that hands
# bfloat16 logits to `categorical` samples the first half of its codebook.
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

IDS, DRAWS = 1024, 100_000
key = jax.random.key(0)


def normals(dtype):
    x = np.asarray(jax.random.normal(key, (1_000_000,), dtype)).astype(np.float64)
    count = len(np.unique(x))
    print(
        f"normal {jnp.dtype(dtype).name}: {count} values from {x.min():.2f} to {x.max():.2f}, "
        f"mean {x.mean():.4f}"
    )
    return count, np.abs(x).max(), x.mean()


def ids(mode, name, draws):
    logits = jnp.zeros((IDS,), jnp.bfloat16)
    x = np.asarray(jax.random.categorical(key, logits, shape=(draws,), mode=mode))
    below, never = (x < IDS // 2).mean(), int((np.bincount(x, minlength=IDS) == 0).sum())
    print(f"categorical bfloat16{name}: share below 512 {below:.3f}, ids never drawn {never}")
    return below, never


count, far, mean = normals(jnp.bfloat16)
normals(jnp.float32)
below, never = ids(None, "", DRAWS)
even, missing = ids("high", ", mode high", DRAWS)
same = count == 128 and far < 3 and mean < -0.01 and below > 0.97 and never > 50
if not (same and abs(even - 0.5) < 0.02 and missing == 0):
    sys.exit("changed: draws in bfloat16 are no longer as coarse as recorded")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
