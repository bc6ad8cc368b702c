#!/usr/bin/env bash
# Question: what does tensorboardX's `add_image` store of a picture with values 0..255 that is not
# uint8, and of a float picture that overshoots 0..1 by a little?
#
# Guess, written before the run: whole numbers are taken as 0..255 whatever their width, or refused;
# floats are clipped.
#
# Seen (tensorboardX 2.6.5): only uint8 is taken as it is. Everything else is multiplied by 255 and
# cut to eight bits, so that values wrap around: of int32 pixels noise is left, and the white of a
# decoder at 1.01 becomes black, its black at -0.01 white.
#
#     uint8 0 100 255: stored 0 100 255
#     int32 0 100 255: stored 0 156 1
#     float32 -0.01 0.5 1.01: stored 254 127 1
#
# Why it matters: pixels arrive as int32 where `datasets` hands them to JAX
# (`datasets_jax_dtypes.sh`), and decoders overshoot. The speckles look like a fault of the model.
# Clip and convert to uint8 before logging.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  tensorboardX==2.6.5 protobuf==7.36.2 packaging==26.4 pillow==13.0.0 numpy==2.4.6
cat > "$room/probe.py" <<'PY'
import io
import pathlib
import struct
import sys

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter
from tensorboardX.proto import event_pb2


def stored(values, dtype):
    folder = pathlib.Path(np.dtype(dtype).name)
    writer = SummaryWriter(str(folder))
    row = np.array(values, dtype)[None, :, None]
    writer.add_image("row", np.repeat(row, 3, 2), 0, dataformats="HWC")
    writer.close()
    (file,) = folder.iterdir()
    data, start = file.read_bytes(), 0
    # A record: eight bytes of length, four of checksum, the event, four of checksum.
    while start < len(data):
        (size,) = struct.unpack("<Q", data[start : start + 8])
        event = event_pb2.Event.FromString(data[start + 12 : start + 12 + size])
        start += 16 + size
        for value in event.summary.value:
            picture = Image.open(io.BytesIO(value.image.encoded_image_string))
    got = np.asarray(picture)[0, :, 0].tolist()
    listed = " ".join(map(str, values)), " ".join(map(str, got))
    print(f"{folder}: {listed[0]}: stored {listed[1]}".replace(": ", " ", 1))
    return got


if stored([0, 100, 255], np.uint8) != [0, 100, 255]:
    sys.exit("changed: uint8 is no longer stored as it is")
if stored([0, 100, 255], np.int32) != [0, 156, 1]:
    sys.exit("changed: int32 is no longer stored as recorded")
if stored([-0.01, 0.5, 1.01], np.float32) != [254, 127, 1]:
    sys.exit("changed: floats beyond 0..1 are no longer stored as recorded")
PY
cd "$room"
"$room/venv/bin/python" -I probe.py
