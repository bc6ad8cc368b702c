#!/usr/bin/env bash
# Question: pictures go into an HDF5 data set of shape (pictures, height, width, 3) with compression
# and h5py's own choice of chunks. How much is read for one picture?
#
# Guess, written before the run: none, it turned up beside another question. One would say: about
# one chunk. With 12 KB a picture some whole pictures fit into one; larger ones are cut into a few
# pieces.
#
# Seen (h5py 3.16.0): the chunk is cut along all axes alike, the colours included. A picture of
# 64x64 lies in 48 chunks, each of which holds pieces of 125 pictures: 1.5 MB are read and unpacked
# for 12 KB. In a longer set of smaller pictures it is 3.8 MB for 3 KB.
#
#     10000 pictures of 32x32: chunks (1250, 4, 8, 1), a picture in 96 of them, 1250 times its bytes
#     1000 pictures of 64x64: chunks (125, 16, 16, 1), a picture in 48 of them, 125 times its bytes
#     1000 pictures of 256x256: chunks (63, 32, 32, 1), a picture in 192 of them, 63 times its bytes
#
# Why it matters: training reads pictures in random order, where this costs two or three orders of
# magnitude, and `compression="gzip"` alone turns it on. Give `chunks=(1, height, width, 3)`.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  h5py==3.16.0 numpy==2.4.6
cat > "$room/probe.py" <<'PY'
import math
import sys

import h5py

RECORDED = {
    32: ((1250, 4, 8, 1), 96, 1250),
    64: ((125, 16, 16, 1), 48, 125),
    256: ((63, 32, 32, 1), 192, 63),
}
seen = {}
with h5py.File("pictures.h5", "w") as file:
    for count, side in ((10000, 32), (1000, 64), (1000, 256)):
        data = file.create_dataset(
            f"{count}_{side}", (count, side, side, 3), "uint8", compression="gzip"
        )
        pieces = math.prod(math.ceil(n / c) for n, c in zip(data.shape[1:], data.chunks[1:]))
        times = pieces * math.prod(data.chunks) / (side * side * 3)
        seen[side] = (data.chunks, pieces, round(times))
        where = f"a picture in {pieces} of them, {times:.0f} times its bytes"
        print(f"{count} pictures of {side}x{side}: chunks {data.chunks}, {where}")
if seen != RECORDED:
    sys.exit("changed: the chunks that h5py chooses are no longer those recorded")
PY
cd "$room"
"$room/venv/bin/python" -I probe.py
