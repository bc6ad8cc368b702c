#!/usr/bin/env bash
# Question: `compute_prdc(real, fake, nearest_k=5)` of a set against an exact copy of itself, where
# every picture stands in the set six times?
#
# Guess, written before the run: precision, recall and coverage 1, as for any set and its copy.
#
# Seen (prdc 0.2): all four numbers are 0. A picture's radius is the distance to its fifth
# neighbour, which is a copy of it: 0. What counts has to lie *closer* than that, which nothing
# does, the same picture included. With each picture once, all four are 1; five times is enough for
# 1 again, since the picture itself is the first of the copies. Doubles of only some pictures make
# those unreachable.
#
#     each picture 1 time: precision 1.00, recall 1.00, density 1.00, coverage 1.00
#     each picture 5 times: precision 1.00, recall 1.00, density 1.00, coverage 1.00
#     each picture 6 times: precision 0.00, recall 0.00, density 0.00, coverage 0.00
#     half of the pictures 6 times: precision 0.14, recall 0.14, density 0.05, coverage 0.14
#
# Why it matters: small classes are repeated to balance a set, screens and blank pages are the same
# picture many times, and a model that has collapsed draws one picture only. The numbers fall to 0
# at a count of copies that depends on `nearest_k`. Take doubles out first.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  prdc==0.2 scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6
cat > "$room/probe.py" <<'PY'
import contextlib
import io
import sys

import numpy as np
from prdc import compute_prdc

pictures = np.random.default_rng(0).normal(size=(200, 16))
seen = {}
for name, copies in (
    ("each picture 1 time", np.full(200, 1)),
    ("each picture 5 times", np.full(200, 5)),
    ("each picture 6 times", np.full(200, 6)),
    ("half of the pictures 6 times", np.where(np.arange(200) < 100, 6, 1)),
):
    real = pictures.repeat(copies, 0)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the counts
        found = compute_prdc(real, real.copy(), nearest_k=5)
    print(f"{name}:", ", ".join(f"{key} {value:.2f}" for key, value in found.items()))
    seen[name] = np.array(list(found.values()))
once, five, six, half = seen.values()
if not np.allclose(once, 1) or not np.allclose(five[[0, 1, 3]], 1):
    sys.exit("changed: up to five copies are no longer found")
if six.any() or not (half < 0.5).all():
    sys.exit("changed: pictures that stand there six times are found")
PY
cd "$room"
"$room/venv/bin/python" -I probe.py
