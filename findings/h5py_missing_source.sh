#!/usr/bin/env bash
# Question: an HDF5 virtual dataset puts the pictures of two files into one. One of the files is
# missing on this machine. What do its pictures read as?
#
# Guess, written before the run: opening the set, or at the latest reading those rows, raises an
# error that names the file, as an external link to a missing file does.
#
# Seen (h5py 3.16.0): zeros, with the right shape and dtype and without a word. A source that is
# there and one row short is an error, as is a link to a missing file.
#
#     both files: first pixels 1 1 2 2
#     second file missing: 1 1 0 0
#     second file one row short: OSError
#     external link to the missing file: KeyError
#
# Why it matters: large sets are cut into one file per machine or per download and joined by a
# virtual one. A copy that lacks a file trains on black pictures with the labels of real ones, and
# statistics for normalisation are off. Check that each `virtual_sources()` exists, or take a fill
# value that pictures do not have.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  h5py==3.16.0 numpy==2.4.6
cat > "$room/probe.py" <<'PY'
import os
import sys

import h5py
import numpy as np


def write(i, rows):
    with h5py.File(f"part{i}.h5", "w") as file:
        file["pictures"] = np.full((rows, 4, 4, 3), i + 1, np.uint8)


def read():
    with h5py.File("all.h5") as file:
        return file["pictures"][:, 0, 0, 0].tolist()


def refused(look):
    try:
        return str(look())
    except Exception as error:
        return type(error).__name__


def follow():
    with h5py.File("all.h5") as file:
        return file["link"].shape


layout = h5py.VirtualLayout((4, 4, 4, 3), np.uint8)
for i in range(2):
    write(i, 2)
    layout[2 * i : 2 * i + 2] = h5py.VirtualSource(f"part{i}.h5", "pictures", (2, 4, 4, 3))
with h5py.File("all.h5", "w") as file:
    file.create_virtual_dataset("pictures", layout)
    file["link"] = h5py.ExternalLink("part1.h5", "pictures")
whole = read()
os.remove("part1.h5")
missing, link = read(), refused(follow)
write(1, 1)
short = refused(read)
print("both files: first pixels", *whole)
print("second file missing:", *missing)
print("second file one row short:", short)
print("external link to the missing file:", link)
if whole != [1, 1, 2, 2] or (short, link) != ("OSError", "KeyError"):
    sys.exit("changed: whole sets, short files or links no longer read as recorded")
if missing != [1, 1, 0, 0]:
    sys.exit("changed: a missing file no longer reads as zeros")
PY
cd "$room"
"$room/venv/bin/python" -I probe.py
