#!/usr/bin/env bash
# Question: does `metrax.AUCROC` change when all scores are divided by 250, or given as logits?
#
# Guess, written before the run: no, but for the last digits. The area depends on the order of the
# scores alone; the 200 thresholds blur it a little.
#
# Seen (google-metrax 0.2.4, jax 0.10.2): the thresholds lie evenly between 0 and 1. Scores below
# the second one are all the same to it: 0.5, whatever their order. Logits give 0.14 where
# probabilities give 0.86.
#
#     scores 0 to 1: metrax 0.8612, by ranks 0.8612
#     the same / 250: metrax 0.5000, by ranks 0.8612
#     1 - the rest / 1000: metrax 0.5000, by ranks 0.8612
#     their logits: metrax 0.1380, by ranks 0.8612
#
# Why it matters: detectors of rare things (leaks of training pictures, unsafe ones, generated ones
# among real ones) give small probabilities or ones near 1. 0.5 reads as "cannot tell at all" and
# is a fault of the ruler. Rank the scores first: `scores.argsort().argsort() / len(scores)`.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
unset "${!JAX_@}" XLA_FLAGS
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  google-metrax==0.2.4 clu==0.0.12 flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 \
  scipy==1.17.1 ml_dtypes==0.6.0
cat > "$room/probe.py" <<'PY'
import sys

import jax.numpy as jnp
import metrax
import numpy as np

draw = np.random.default_rng(0)
scores = draw.random(200).astype(np.float32)
labels = (draw.random(200) < scores).astype(np.float32)


def look(name, scores):
    pairs = scores[labels == 1][:, None] - scores[labels == 0]
    ranks = ((pairs > 0) + 0.5 * (pairs == 0)).mean()
    found = float(metrax.AUCROC.from_model_output(jnp.array(scores), jnp.array(labels)).compute())
    print(f"{name}: metrax {found:.4f}, by ranks {ranks:.4f}")
    return found, ranks


plain = look("scores 0 to 1", scores)
small = look("the same / 250", scores / 250)
near = look("1 - the rest / 1000", 1 - (1 - scores) / 1000)
logits = look("their logits", np.log(scores / (1 - scores)))
ranked = look("their ranks", (scores / 250).argsort().argsort() / np.float32(200))
if abs(plain[0] - plain[1]) > 0.01 or abs(ranked[0] - ranked[1]) > 0.01:
    sys.exit("changed: scores spread over 0 to 1 are no longer measured well")
if abs(small[0] - 0.5) > 1e-3 or abs(near[0] - 0.5) > 1e-3 or logits[0] > 0.3:
    sys.exit("changed: the area no longer depends on the scale of the scores")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
