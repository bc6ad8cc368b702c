#!/usr/bin/env bash
# Question: does Orbax keep apart a leaf named "a.b" and a leaf "b" inside "a"?
#
# Guess, written before the run: yes, the tree's structure is stored beside the arrays, and names
# are quoted where they have to be; at worst an error.
#
# Seen (orbax-checkpoint 0.12.8): with equal shapes both are written to the same array "a.b", with
# no word, and both read back as one of the two: the other's values are gone. Names with "/" are
# kept apart. (With different shapes the save fails.)
#
#     saved {'a.b': [0, 0, 0], 'a': {'b': [1, 1, 1]}}: restored alike, one of them lost
#     saved {'a/b': [0, 0, 0], 'a': {'b': [1, 1, 1]}}: restored as saved
#
# Why it matters: trees that hold a network under its PyTorch names ("layers.0.weight") beside the
# nested one, for parity or distillation, are the case where the names meet.
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


def both(name):
    tree = {name: np.zeros(3, np.float32), "a": {"b": np.ones(3, np.float32)}}
    folder = pathlib.Path(name.replace("/", "_")).resolve()
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(folder, tree)
    checkpointer.wait_until_finished()
    found = checkpointer.restore(folder, tree)
    flat, nested = np.asarray(found[name]), np.asarray(found["a"]["b"])
    if np.array_equal(flat, nested):
        word = "restored alike, one of them lost"
    else:
        word = "restored as saved" if not flat.any() and nested.all() else f"{flat} {nested}"
    print(f"saved {{'{name}': [0, 0, 0], 'a': {{'b': [1, 1, 1]}}}}: {word}")
    return word


if both("a.b") != "restored alike, one of them lost" or both("a/b") != "restored as saved":
    sys.exit("changed: names with a dot or a slash are no longer treated as recorded")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
