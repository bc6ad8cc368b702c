#!/usr/bin/env bash
# Question: what is NumPy's sum and mean of a bfloat16 array that came from the device?
#
# Guess, written before the run: as for float16, which NumPy adds pairwise and averages in float32:
# 1,000 ones sum to 1000 with mean 1.0, and 12,288 uniform numbers have mean 0.50.
#
# Seen (numpy 2.4.6, ml_dtypes 0.6.0): one running bfloat16 total, which stops growing where one
# more summand is below half a step. 1,000 ones sum to 256. The mean of a 64x64x3 picture of uniform
# numbers is 0.021 and its deviation 0.14. float16 gives what was guessed.
#
#     bfloat16: sum of 1000 ones 256.0, mean 0.255859375
#     float16: sum of 1000 ones 1000.0, mean 1.0
#     mean of 12288 uniform numbers: bfloat16 0.0209, the same array as float32 0.5004
#     deviation of the same: bfloat16 0.1445, as float32 0.2889
#
# Why it matters: statistics of latents or pictures that are made on the host from a bfloat16 array
# (`np.asarray(x).mean()`) are wrong by any factor, with no warning; on the device the same mean is
# right. Convert to float32 before the first sum.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  numpy==2.4.6 ml_dtypes==0.6.0
cat > "$room/probe.py" <<'PY'
import sys

import ml_dtypes
import numpy as np

totals = {}
for dtype in (ml_dtypes.bfloat16, np.float16):
    ones = np.ones(1000, dtype)
    totals[np.dtype(dtype).name] = float(ones.sum())
    print(f"{np.dtype(dtype).name}: sum of 1000 ones {ones.sum()}, mean {ones.mean()}")
picture = np.random.default_rng(0).uniform(0, 1, 64 * 64 * 3).astype(ml_dtypes.bfloat16)
true = picture.astype(np.float32)
mean, deviation = float(picture.mean()), float(picture.std())
print(
    f"mean of {picture.size} uniform numbers: bfloat16 {mean:.4f}, "
    f"the same array as float32 {true.mean():.4f}"
)
print(f"deviation of the same: bfloat16 {deviation:.4f}, as float32 {true.std():.4f}")
if totals != {"bfloat16": 256.0, "float16": 1000.0} or mean > 0.05 or deviation > 0.2:
    sys.exit("changed: NumPy's sums of bfloat16 no longer stop as recorded")
PY
cd "$room"
"$room/venv/bin/python" -I probe.py
