#!/usr/bin/env bash
# Question: a run goes bad after step 10, is set back to step 4 and trained on. What does Orbax's
# `CheckpointManager` do with `save(6)` while step 10 is still there?
#
# Guess, written before the run: it saves: another step, another folder. For a step that exists it
# raises, as its StepAlreadyExistsError says.
#
# Seen (orbax-checkpoint 0.12.8): neither is saved, nothing is raised, no line is printed; `save`
# returns False. That goes on until the step exceeds the latest one. `force=True` does save 6; this
# manager then takes 6 for the latest step, the one that opens the folder next takes 10.
#
#     after step 4 and step 10: save(6) returns False, save(10) returns False
#     on disk: 4 10
#     save(6, force=True) returns True, on disk: 4 6 10
#     latest step: 6 for this manager, 10 for the next one
#
# Why it matters: everything between the step one went back to and the step one ran away from is
# without a checkpoint, and a job that is preempted there restarts from the bad one. Remove the
# later steps first, or give the second attempt a folder of its own, and look at what `save`
# returns.
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
folder = pathlib.Path("run").resolve()
manager = ocp.CheckpointManager(folder)


def save(step, **options):
    weights = ocp.args.StandardSave({"w": np.full(2, step, np.float32)})
    done = manager.save(step, args=weights, **options)
    manager.wait_until_finished()
    return done


def steps():
    return sorted(manager.all_steps())


def listed():
    return " ".join(map(str, steps()))


save(4), save(10)
again = (save(6), save(10))
print(f"after step 4 and step 10: save(6) returns {again[0]}, save(10) returns {again[1]}")
print(f"on disk: {listed()}")
if again != (False, False) or steps() != [4, 10]:
    sys.exit("changed: an earlier step is no longer left out as recorded")
forced = save(6, force=True)
print(f"save(6, force=True) returns {forced}, on disk: {listed()}")
latest = manager.latest_step(), ocp.CheckpointManager(folder).latest_step()
print(f"latest step: {latest[0]} for this manager, {latest[1]} for the next one")
if forced is not True or steps() != [4, 6, 10] or latest != (6, 10):
    sys.exit("changed: an earlier step by force is no longer as recorded")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
