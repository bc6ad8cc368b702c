#!/usr/bin/env bash
# Question: `transformers.image_transforms.resize` of a float32 picture. What precision is left?
#
# Guess, written before the run: that of float32, the rounding of the filter aside. An array of
# floats goes in and one of floats comes out.
#
# Seen (transformers 5.23.0, pillow 13.0.0): 8 bits. Floats from 0 to 1 are cut to uint8, resized and
# divided by 255 again, also where the size stays as it is, with steps of 1/255 whatever the range
# of the picture. Floats outside 0 to 1 are refused. Pillow itself resizes floats as they are.
#
#     64 values from 0 to 1, size kept: float32, 64 distinct, off by up to 0.0037, mean -0.0018
#     64 values from 0 to 0.01, size kept: float32, 3 distinct, off by up to 0.0039, mean -0.0018
#     Pillow, mode F: off by 0
#
# Why it matters: depth maps, soft masks and attention maps are resized with the function that the
# image processors use, and come back as float32 with steps in them and darker by half a level.
# Resize with Pillow channel by channel, or with `jax.image.resize`.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  transformers==5.23.0 pillow==13.0.0 numpy==2.4.6
cat > "$room/probe.py" <<'PY'
import sys

import numpy as np
from PIL import Image
from transformers.image_transforms import resize

ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8, 1).repeat(3, 2)


def look(scale):
    picture = ramp * np.float32(scale)
    found = resize(picture, (8, 8), input_data_format="channels_last")
    levels, off = len(np.unique(found)), np.abs(found - picture).max()
    mean = (found - picture).mean()
    print(
        f"64 values from 0 to {scale}, size kept: {found.dtype}, {levels} distinct, "
        f"off by up to {off:.4f}, mean {mean:.4f}"
    )
    return levels, off > 0.003 and mean < -0.001


wide, narrow = look(1), look(0.01)
plain = np.asarray(Image.fromarray(ramp[..., 0]).resize((8, 8), Image.BICUBIC))
print(f"Pillow, mode F: off by {np.abs(plain - ramp[..., 0]).max():.0f}")
if not (wide[1] and narrow == (3, True)):
    sys.exit("changed: floats no longer go through uint8")
try:
    resize(ramp * 2, (8, 8), input_data_format="channels_last")
    sys.exit("changed: floats above 1 are taken")
except ValueError:
    pass
PY
cd "$room"
"$room/venv/bin/python" -I probe.py
