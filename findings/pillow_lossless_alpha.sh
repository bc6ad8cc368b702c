#!/usr/bin/env bash
# Question: does an RGBA picture come back from a WebP that Pillow wrote with `lossless=True`?
#
# Guess, written before the run: byte for byte.
#
# Seen (Pillow 13.0.0): only where alpha is not 0. The colours of pixels with alpha 0 are
# replaced. `exact=True` keeps them; PNG does anyway.
#
#     lossless=True: colours differ in 100 % of the pixels of alpha 0, 0 % of the others
#     lossless=True, exact=True: 0 %, 0 %
#     PNG: 0 %, 0 %
#
# Why it matters: four channels of latents, a picture with its mask (alpha 0 is where the model is
# to paint), or normals beside coverage are packed into RGBA because viewers open it. WebP is then
# called lossless, and under the mask it is not: the target of inpainting is gone.
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

picture = np.random.default_rng(0).integers(1, 256, (64, 64, 4)).astype(np.uint8)
picture[:32, :, 3] = 0


def differ(kind, **options):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, **options)
    wrong = (np.asarray(Image.open(file).convert("RGBA")) != picture).any(-1)
    return 100 * wrong[:32].mean(), 100 * wrong[32:].mean()


clear, others = differ("WebP", lossless=True)
print(
    f"lossless=True: colours differ in {clear:.0f} % of the pixels of alpha 0, "
    f"{others:.0f} % of the others"
)
exact, png = differ("WebP", lossless=True, exact=True), differ("PNG")
print("lossless=True, exact=True: {:.0f} %, {:.0f} %".format(*exact))
print("PNG: {:.0f} %, {:.0f} %".format(*png))
if clear < 90 or others > 0:
    sys.exit("changed: lossless WebP no longer replaces colours under alpha 0 alone")
if any(exact + png):
    sys.exit("changed: exact WebP or PNG no longer keeps all colours")
PY
cd "$room"
"$room/venv/bin/python" -I probe.py
