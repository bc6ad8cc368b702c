#!/usr/bin/env bash
# Question: `datasets` with `with_format("jax")`: which dtypes do declared features come out as?
#
# Guess, written before the run: the declared ones where JAX has them (uint8, float16), and an error
# or a warning for an int64 value that does not fit int32.
#
# Seen (datasets 5.2.0, jax 0.10.2): every integer becomes int32 and every float float32. An image
# stored as `Array2D(uint8)` takes four times the memory, and an int64 of 2**33 comes out as 0.
#
#     uint8 image: int32
#     float16 latent: float32
#     int64 number 8589934592: int32 0
#
# Why it matters: pixels in 0..255 that arrive as int32 pass by code that asks "is it uint8, then
# divide by 255"; record numbers and hashes as int64 collide without a word.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
unset "${!JAX_@}" XLA_FLAGS
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  datasets==5.2.0 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 scipy==1.17.1 ml_dtypes==0.6.0
cat > "$room/probe.py" <<'PY'
import sys
import warnings

import datasets
import numpy as np

warnings.simplefilter("error", UserWarning)
features = datasets.Features(
    image=datasets.Array2D((4, 4), "uint8"),
    latent=datasets.Sequence(datasets.Value("float16")),
    number=datasets.Value("int64"),
)
rows = {"image": [np.ones((4, 4), np.uint8)], "latent": [np.ones(3)], "number": [2**33]}
record = datasets.Dataset.from_dict(rows, features).with_format("jax")[0]
image, latent, number = (record[name] for name in features)
print("uint8 image:", image.dtype)
print("float16 latent:", latent.dtype)
print(f"int64 number {2**33}:", number.dtype, int(number))
found = str(image.dtype), str(latent.dtype), str(number.dtype), int(number)
if found != ("int32", "float32", "int32", 0):
    sys.exit("changed: the JAX format no longer widens and cuts as recorded")
PY
cd "$room"
HF_HUB_OFFLINE=1 HF_HOME="$room" JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
