#!/usr/bin/env bash
# Question: how far off is a picture that Pillow writes with `quality=100`?
#
# Guess, written before the run: at most 3 levels as JPEG, at most 1 as AVIF: the best quality
# leaves out what costs colour. WebP was added afterwards.
#
# Seen (Pillow 13.0.0): colours are kept at half the width and height at every quality, 100
# included, in all three formats. Columns of red and blue are off by 152 levels or more; grey
# pictures hardly at all, which hides it. `subsampling=0` (JPEG) and `subsampling="4:4:4"` (AVIF)
# switch that off; a WebP has to be lossless.
#
#     JPEG quality=100: red and blue columns off by 152, grey noise by 1
#     JPEG quality=100, subsampling=0: red and blue columns off by 1, grey noise by 1
#     WebP quality=100: red and blue columns off by 163, grey noise by 3
#     AVIF quality=100: red and blue columns off by 152, grey noise by 0
#     AVIF quality=100, subsampling=4:4:4: red and blue columns off by 2, grey noise by 0
#
# Why it matters: sets and samples are stored "at quality 100" where PNG is too large, and small
# pictures, pixel art and emoji change most. A Frechet distance between pictures and their own
# stored copies is then the distance of the format.
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

columns = np.zeros((64, 64, 3), np.uint8)
columns[:, ::2, 0] = columns[:, 1::2, 2] = 255
noise = np.random.default_rng(0).integers(0, 256, (64, 64, 1)).astype(np.uint8).repeat(3, 2)


def off(picture, kind, options):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, quality=100, **options)
    read = np.asarray(Image.open(file).convert("RGB"))
    return int(np.abs(read.astype(int) - picture).max())


for kind, options, far in (
    ("JPEG", {}, True),
    ("JPEG", {"subsampling": 0}, False),
    ("WebP", {}, True),
    ("AVIF", {}, True),
    ("AVIF", {"subsampling": "4:4:4"}, False),
):
    coloured, grey = off(columns, kind, options), off(noise, kind, options)
    said = "".join(f", {key}={value}" for key, value in options.items())
    print(f"{kind} quality=100{said}: red and blue columns off by {coloured}, grey noise by {grey}")
    if (coloured > 100) != far or (not far and coloured > 4) or grey > 4:
        sys.exit(f"changed: {kind} no longer keeps colours as recorded")
PY
cd "$room"
"$room/venv/bin/python" -I probe.py
