#!/usr/bin/env bash
# Question: `np.savez` with arrays named after files, "cat" and "cat.npy" among them. What does
# `np.load(...)["cat.npy"]` give?
#
# Guess, written before the run: the array stored under that name. Keys are free strings, and a
# clash of names would be refused on saving.
#
# Seen (numpy 2.4.6): the array of "cat". Members of the archive are the names with ".npy" added,
# and a look-up tries the names of members first, so "cat.npy" is where "cat" lies. `files` lists
# both names, iterating gives the first array twice, and the other one cannot be reached by its
# name.
#
#     stored {'cat': 1.0, 'cat.npy': 2.0}, files ['cat', 'cat.npy']
#     loaded {'cat': 1.0, 'cat.npy': 1.0}; under 'cat.npy.npy': 2.0
#
# Why it matters: features and masks are kept in one archive under the names of the files they were
# made from, where a picture "cat" and an array "cat.npy" of one folder meet. One set of values is
# read as another of the same shape. Take other names than such with ".npy" at the end.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  numpy==2.4.6
cat > "$room/probe.py" <<'PY'
import io
import sys

import numpy as np

stored = {"cat": np.array(1.0), "cat.npy": np.array(2.0)}
archive = io.BytesIO()
np.savez(archive, **stored)
archive.seek(0)
loaded = np.load(archive)
values = {name: float(array) for name, array in loaded.items()}
given = {name: float(array) for name, array in stored.items()}
print(f"stored {given}, files {loaded.files}")
print(f"loaded {values}; under 'cat.npy.npy': {float(loaded['cat.npy.npy'])}")
if sorted(loaded.files) != ["cat", "cat.npy"]:
    sys.exit("changed: the names are no longer kept")
if values != {"cat": 1.0, "cat.npy": 1.0} or float(loaded["cat.npy.npy"]) != 2:
    sys.exit("changed: 'cat.npy' is no longer read as 'cat'")
PY
cd "$room"
"$room/venv/bin/python" -I probe.py
