#!/usr/bin/env bash
# Question: do NumPy's `sort`, `median` and `unique` treat a NaN in a bfloat16 (or float8) array of
# ml_dtypes as they treat it in float32?
#
# Guess, written before the run: yes. NaN is sorted to the end and the median is NaN; `max` is NaN
# in both.
#
# Seen (numpy 2.4.6, ml_dtypes 0.6.0): `max` is, the order is not. A NaN stays where it is and what
# lies on its two sides is not compared: the array comes back unsorted, its least value in third
# place, and the median is a number, the least one.
#
#     float32: sort 0 1 2 3 nan, median nan, max nan, place of 2 among the sorted 2
#     bfloat16: sort 3 nan 0 1 2, median 0, max nan, place of 2 among the sorted 4
#     float8_e4m3fn: sort 3 nan 0 1 2, median 0, max nan, place of 2 among the sorted 4
#
# Why it matters: medians and percentiles are what one logs of activations and gradients in order to
# see trouble, and here the one bad entry yields a plausible number. Cast to float32 first.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  numpy==2.4.6 ml_dtypes==0.6.0
cat > "$room/probe.py" <<'PY'
import sys
import warnings

import ml_dtypes
import numpy as np

warnings.simplefilter("ignore", RuntimeWarning)
values = np.array([3, np.nan, 1, 2, 0], np.float32)


def seen(dtype):
    array = values.astype(dtype)
    ordered = np.sort(array)
    middle, most = float(np.median(array)), float(np.max(array))
    place = int(np.searchsorted(ordered, dtype(2)))
    listed = [f"{float(v):g}" for v in ordered]
    said = f"sort {' '.join(listed)}, median {middle:g}, max {most:g}"
    print(f"{dtype.__name__}: {said}, place of 2 among the sorted {place}")
    return listed, f"{middle:g}", f"{most:g}"


if seen(np.float32) != (["0", "1", "2", "3", "nan"], "nan", "nan"):
    sys.exit("changed: NaN in float32 is no longer as recorded")
for dtype in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn):
    if seen(dtype) != (["3", "nan", "0", "1", "2"], "0", "nan"):
        sys.exit(f"changed: NaN in {dtype.__name__} is no longer as recorded")
PY
cd "$room"
"$room/venv/bin/python" -I probe.py
