#!/usr/bin/env bash
# Question: which range does scikit-image's `peak_signal_noise_ratio` take for float pictures in
# [-1, 1], where `data_range` is not given?
#
# Guess, written before the run: 2 for all of them, the width of [-1, 1], in which scikit-image
# keeps floats.
#
# Seen (scikit-image 0.26.0): it looks at the *true* picture, one at a time. Without a negative
# pixel the range is 1, with a single one it is 2: the same error is 6.02 dB better for a picture
# that has one pixel at -0.001. Nothing is said. A reference that overshoots 1 is refused; the
# compared picture may be anything.
#
#     all pixels >= 0, error 0.01: 40.00 dB
#     one pixel at -0.001, error 0.01: 46.02 dB
#     uint8, error 1: 48.13 dB whether or not a pixel is 0
#
# Why it matters: models of pictures work in [-1, 1], and some pictures of a set, the bright ones,
# have no pixel below 0. Their PSNR is 6 dB lower, which is more than most differences that are
# published; an average over a set depends on how many of them it holds. Give `data_range=2`.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  scikit-image==0.26.0 scipy==1.17.1 numpy==2.4.6 pillow==13.0.0
cat > "$room/probe.py" <<'PY'
import sys

import numpy as np
from skimage.metrics import peak_signal_noise_ratio as psnr

bright = np.random.default_rng(0).uniform(0.0, 0.9, (64, 64))
nearly = bright.copy()
nearly[0, 0] = -0.001
found = [psnr(bright, bright + 0.01), psnr(nearly, nearly + 0.01)]
print(f"all pixels >= 0, error 0.01: {found[0]:.2f} dB")
print(f"one pixel at -0.001, error 0.01: {found[1]:.2f} dB")
levels = (bright * 255).astype(np.uint8) + np.uint8(1)
black = levels.copy()
black[0, 0] = 0
whole = [psnr(levels, levels + np.uint8(1)), psnr(black, black + np.uint8(1))]
print(f"uint8, error 1: {whole[0]:.2f} dB whether or not a pixel is 0")
if not np.allclose(found, [40.0, 46.0206], atol=1e-3):
    sys.exit("changed: the range no longer depends on one negative pixel")
if not np.allclose(whole, 48.1308, atol=1e-3):
    sys.exit("changed: the range of uint8 is no longer 255")
PY
cd "$room"
"$room/venv/bin/python" -I probe.py
