#!/usr/bin/env bash
# Question: does saving the same tensors with the same metadata twice give the same file?
#
# Guess, written before the run: yes, byte for byte, in every process: the tensors are sorted and
# JSON of a Python dict keeps its order.
#
# Seen (safetensors 0.8.0): only without metadata. With four metadata entries their order in the
# header changes from save to save, even within one process: eight saves give several files.
#
#     8 saves without metadata: 1 file
#     8 saves with one entry: 1 file
#     8 saves with four entries: several files
#
# Why it matters: digests of checkpoints, caches by content and "the export is reproducible" tests
# fail now and then. Compare tensors and metadata after loading, or keep the metadata in one entry.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  safetensors==0.8.0 numpy==2.4.6
cat > "$room/probe.py" <<'PY'
import sys

import numpy as np
from safetensors.numpy import save

SAVES = 8
tensors = {"b": np.ones(3, np.float32), "a": np.zeros(2, np.float16)}


def files(name, metadata):
    count = len({bytes(save(tensors, metadata=metadata)) for _ in range(SAVES)})
    print(f"{SAVES} saves {name}:", "1 file" if count == 1 else "several files")
    return count


bare = files("without metadata", None)
single = files("with one entry", {"format": "np"})
four = files("with four entries", {"format": "np", "step": "3", "seed": "1", "name": "x"})
if bare != 1 or single != 1 or four == 1:
    sys.exit("changed: the order of metadata entries no longer varies as recorded")
PY
cd "$room"
"$room/venv/bin/python" -I probe.py
