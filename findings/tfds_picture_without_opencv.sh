#!/usr/bin/env bash
# Question: what does TFDS decode, without TensorFlow, under `Image(shape=(None, None, 3))`?
#
# Guess, written before the run: colour pictures `(height, width, 3)` in the declared form, whatever
# the file's mode, and the same pixels whether or not OpenCV is installed (TFDS only says that it
# would be faster).
#
# Seen (tensorflow-datasets 4.9.10, pillow 13.0.0, opencv-python-headless 5.0.0.93): without OpenCV
# a palette PNG comes out as its palette *indices*, three times over, as if they were grey levels,
# and a CMYK JPEG keeps four channels. With OpenCV installed both are colour pictures. An RGBA PNG
# has four channels either way. No word in any of these cases.
#
#     without OpenCV: palette PNG (8, 12, 3), off by up to 254
#     without OpenCV: CMYK JPEG (8, 12, 4)
#     without OpenCV: RGBA PNG (8, 12, 4)
#     with OpenCV: palette PNG (8, 12, 3), off by up to 0
#     with OpenCV: CMYK JPEG (8, 12, 3)
#     with OpenCV: RGBA PNG (8, 12, 4)
#
# Why it matters: JAX programs read TFDS through `as_data_source` to avoid TensorFlow, and whether
# OpenCV is there is an accident of the image they run in. Palette PNGs are common among drawings
# and CMYK among photographs (ImageNet has some). `SkipDecoding` and an own decoder avoid it.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  tensorflow-datasets==4.9.10 importlib_resources==7.1.0 pillow==13.0.0 numpy==2.4.6
cat > "$room/probe.py" <<'PY'
import io
import logging
import sys

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

logging.disable(logging.WARNING)
with_opencv = sys.argv[1] == "with"
four_colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [250, 240, 20]], np.uint8)
pixels = four_colours[np.random.default_rng(0).integers(0, 4, (8, 12))]
picture = Image.fromarray(pixels)
palette = picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
feature = tfds.features.Image(shape=(None, None, 3))


def decoded(name, picture, form):
    file = io.BytesIO()
    picture.save(file, form)
    found = feature.decode_example_np(file.getvalue())
    off = ""
    if name == "palette PNG":
        true = np.asarray(picture.convert("RGB")).astype(int)
        off = f", off by up to {np.abs(found.astype(int) - true).max()}"
    print(f"{sys.argv[1]} OpenCV: {name} {found.shape}{off}")
    return found


indices = decoded("palette PNG", palette, "PNG")
cmyk = decoded("CMYK JPEG", picture.convert("CMYK"), "JPEG")
rgba = decoded("RGBA PNG", picture.convert("RGBA"), "PNG")
colours = np.array_equal(indices, np.asarray(palette.convert("RGB")))
stacked = np.array_equal(indices, np.repeat(np.asarray(palette)[:, :, None], 3, 2))
as_recorded = colours if with_opencv else stacked
if not as_recorded or cmyk.shape[2] != (3 if with_opencv else 4) or rgba.shape[2] != 4:
    sys.exit(f"changed: pictures {sys.argv[1]} OpenCV are no longer decoded as recorded")
PY
cd "$room"
"$room/venv/bin/python" -I probe.py without
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  opencv-python-headless==5.0.0.93
"$room/venv/bin/python" -I probe.py with
