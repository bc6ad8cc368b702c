#!/usr/bin/env bash
# Question: which steps does Orbax keep when it keeps the best (`best_fn`, `best_mode="min"`) and the
# metric of one step is NaN?
#
# Guess, written before the run: NaN is the worst there is, so that step is the first to go and the
# others are kept as if it had never been; or `save` refuses it.
#
# Seen (orbax-checkpoint 0.12.8): steps are sorted by a comparison that NaN leaves undefined. With
# one step kept, 0.4 then 0.5 then NaN leaves NaN, which is also `best_step()`; 0.4, NaN, 0.5 leaves
# 0.5. The checkpoint with the lowest loss is deleted in both, without a word. An infinite loss is
# handled as one expects.
#
#     losses 0.4 0.5 nan, the best kept: step 2 (nan) is left and best
#     losses 0.4 nan 0.5, the best kept: step 2 (0.5) is left and best
#     losses 0.4 inf 0.5, the best kept: step 0 (0.4) is left and best
#
# Why it matters: a held-out score that is NaN once (an empty class, a judge at its limit, a loss
# that overflowed) costs the best checkpoint of a run.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
unset "${!JAX_@}" XLA_FLAGS
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  orbax-checkpoint==0.12.8 tensorstore==0.1.86 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 \
  scipy==1.17.1 ml_dtypes==0.6.0
cat > "$room/probe.py" <<'PY'
import logging
import pathlib
import sys

import numpy as np
import orbax.checkpoint as ocp

logging.disable(logging.ERROR)
NAN, INF = float("nan"), float("inf")


def left(*losses):
    folder = pathlib.Path("_".join(map(str, losses))).resolve()
    options = ocp.CheckpointManagerOptions(
        max_to_keep=1, best_fn=lambda metrics: metrics["loss"], best_mode="min"
    )
    manager = ocp.CheckpointManager(folder, options=options)
    for step, loss in enumerate(losses):
        weights = ocp.args.StandardSave({"w": np.full(2, step, np.float32)})
        manager.save(step, args=weights, metrics={"loss": loss})
        manager.wait_until_finished()
    (step,) = manager.all_steps()
    word = "best" if manager.best_step() == step else f"best is {manager.best_step()}"
    listed = " ".join(map(str, losses))
    print(f"losses {listed}, the best kept: step {step} ({losses[step]}) is left and {word}")
    return step


if (left(0.4, 0.5, NAN), left(0.4, NAN, 0.5), left(0.4, INF, 0.5)) != (2, 2, 0):
    sys.exit("changed: a metric of NaN no longer decides as recorded")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
