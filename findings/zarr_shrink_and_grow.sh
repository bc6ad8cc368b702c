#!/usr/bin/env bash
# Question: an array of ten numbers is cut to five with `resize` and made ten long again. What
# stands in the last five?
#
# Guess, written before the run: the fill value, 0.
#
# Seen (zarr 3.1.6, tensorstore 0.1.86, h5py 3.16.0): the old numbers, in zarr and in TensorStore.
# `resize` writes the new shape and removes chunks that lie outside as a whole; a chunk that is cut
# keeps all its bytes. In chunks of two, number 6 comes back and 7 to 10 are gone. HDF5 clears what
# it cuts off.
#
#     zarr, chunks of 10: 1 2 3 4 5 6 7 8 9 10
#     zarr, chunks of 2: 1 2 3 4 5 6 0 0 0 0
#     TensorStore, chunks of 10: 1 2 3 4 5 6 7 8 9 10
#     TensorStore, chunks of 2: 1 2 3 4 5 6 0 0 0 0
#     h5py, chunks of 10: 1 2 3 4 5 0 0 0 0 0
#
# Why it matters: features and latents are appended to such arrays, and after a stop the array is
# cut back to the last row that is known to be good and grown to its size again. Where zeros mean
# "not computed yet", half-written rows from before the stop pass for computed ones, how many
# depends on the chunks.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  zarr==3.1.6 numcodecs==0.16.6 tensorstore==0.1.86 h5py==3.16.0 numpy==2.4.6 ml_dtypes==0.6.0
cat > "$room/probe.py" <<'PY'
import sys

import h5py
import numpy as np
import tensorstore
import zarr

NUMBERS = np.arange(1, 11, dtype="float32")


def with_zarr(chunk):
    array = zarr.create_array(f"{chunk}.zarr", shape=(10,), chunks=(chunk,), dtype="float32")
    array[:] = NUMBERS
    array.resize((5,))
    array.resize((10,))
    return array[:]


def with_tensorstore(chunk):
    array = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{chunk}.store/"}},
        create=True,
        dtype=tensorstore.float32,
        shape=[10],
        chunk_layout=tensorstore.ChunkLayout(chunk_shape=[chunk]),
    ).result()
    array.write(NUMBERS).result()
    array = array.resize(exclusive_max=[5]).result()
    return array.resize(exclusive_max=[10]).result().read().result()


def with_h5py(chunk):
    with h5py.File(f"{chunk}.h5", "w") as file:
        array = file.create_dataset("x", data=NUMBERS, maxshape=(None,), chunks=(chunk,))
        array.resize((5,))
        array.resize((10,))
        return array[:]


ALL, SIX, FIVE = range(1, 11), (1, 2, 3, 4, 5, 6, 0, 0, 0, 0), (1, 2, 3, 4, 5, 0, 0, 0, 0, 0)
for name, made, chunk, recorded in (
    ("zarr", with_zarr, 10, ALL),
    ("zarr", with_zarr, 2, SIX),
    ("TensorStore", with_tensorstore, 10, ALL),
    ("TensorStore", with_tensorstore, 2, SIX),
    ("h5py", with_h5py, 10, FIVE),
):
    found = [int(number) for number in made(chunk)]
    print(f"{name}, chunks of {chunk}:", *found)
    if found != list(recorded):
        sys.exit(f"changed: {name} no longer keeps what it cuts off as recorded")
PY
cd "$room"
"$room/venv/bin/python" -I probe.py
