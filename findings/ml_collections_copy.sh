#!/usr/bin/env bash
# Question: `trial = ConfigDict(config)`, then `trial.batch = 8`: does `config.batch` change?
#
# Guess, written before the run: none, it turned up beside another question. One would say: no. It
# is a shallow copy, as `dict(config)` is: entries of its own, sections shared.
#
# Seen (ml-collections 1.1.0): it depends on whether anybody has ever asked for a reference to the
# field, even one that was thrown away. From then on the field is shared with every copy, and
# writing to the copy writes to the original and to all that refers to it. `copy.copy` is the same;
# `copy_and_resolve_references()` and `copy.deepcopy` give copies.
#
#     no reference: config.batch 256
#     a field that refers to it: config.batch 8, config.eval_batch 8
#     a reference that was thrown away: config.batch 8
#     copy.copy, a field that refers to it: config.batch 8
#     copy_and_resolve_references(): config.batch 256
#     copy.deepcopy: config.batch 256
#
# Why it matters: sweeps copy a base and change a field for every trial. That works until the base
# config says `eval_batch = config.get_ref("batch")`; from then on every trial starts from the one
# before it.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  ml-collections==1.1.0 absl-py==2.5.1
cat > "$room/probe.py" <<'PY'
import copy
import sys

from ml_collections import ConfigDict


def base(refers):
    config = ConfigDict({"batch": 256})
    if refers == "kept":
        config.eval_batch = config.get_ref("batch")
    if refers == "thrown away":
        config.get_ref("batch")
    return config


CASES = (
    ("no reference", "", ConfigDict, 256),
    ("a field that refers to it", "kept", ConfigDict, 8),
    ("a reference that was thrown away", "thrown away", ConfigDict, 8),
    ("copy.copy, a field that refers to it", "kept", copy.copy, 8),
    ("copy_and_resolve_references()", "kept", ConfigDict.copy_and_resolve_references, 256),
    ("copy.deepcopy", "kept", copy.deepcopy, 256),
)
for name, refers, copied, recorded in CASES:
    config = base(refers)
    trial = copied(config)
    trial.batch = 8
    more = f", config.eval_batch {config.eval_batch}" if name.startswith("a field") else ""
    print(f"{name}: config.batch {config.batch}{more}")
    if (trial.batch, config.batch) != (8, recorded):
        sys.exit(f"changed: {name} is no longer as recorded")
PY
cd "$room"
"$room/venv/bin/python" -I probe.py
