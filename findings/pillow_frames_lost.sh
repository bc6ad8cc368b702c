#!/usr/bin/env bash
# Question: five frames of 100 ms are saved as an animation with Pillow, the third equal to the
# second. How many frames are there on reading?
#
# Guess, written before the run: five.
#
# Seen (Pillow 13.0.0): four as GIF, PNG and WebP, five as TIFF and AVIF. Equal neighbours become
# one frame of 200 ms, so that it plays alike, but the third frame of the file is the fourth of what
# was saved. If all five are equal, there is one frame.
#
#     GIF: 4 frames, of five equal ones 1
#     PNG: 4 frames, of five equal ones 1
#     WebP: 4 frames, of five equal ones 1
#     TIFF: 5 frames, of five equal ones 5
#     AVIF: 5 frames, of five equal ones 5
#
# Why it matters: steps of a sampler, clips for a video metric and flipbooks of training are stored
# so, and steps that change nothing are the ones one looks for. Frame i is no longer step i, and
# clips of one set come out with different lengths.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  pillow==13.0.0 numpy==2.4.6
cat > "$room/probe.py" <<'PY'
import io
import sys

import numpy as np
from PIL import Image

frames = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3)).astype(np.uint8)
frames[2] = frames[1]
RECORDED = {"GIF": (4, 1), "PNG": (4, 1), "WebP": (4, 1), "TIFF": (5, 5), "AVIF": (5, 5)}


def read(kind, clip):
    file = io.BytesIO()
    first, *others = map(Image.fromarray, clip)
    duration = {} if kind == "TIFF" else {"duration": 100}
    first.save(file, kind, save_all=True, append_images=others, **duration)
    return Image.open(file).n_frames


for kind, recorded in RECORDED.items():
    counts = read(kind, frames), read(kind, frames[[0] * 5])
    print(f"{kind}: {counts[0]} frames, of five equal ones {counts[1]}")
    if counts != recorded:
        sys.exit(f"changed: {kind} no longer holds as many frames as recorded")
PY
cd "$room"
"$room/venv/bin/python" -I probe.py
