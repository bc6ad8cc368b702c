#!/usr/bin/env bash
# Question: what is the last entry of `jnp.cumsum` of 300 ones in uint8?
#
# Guess, written before the run: 300, as the sum is: small integers are widened, as in NumPy.
#
# Seen (jax 0.10.2): 44. `jnp.sum` and `jnp.prod` widen uint8 to uint32, `jnp.cumsum` and
# `jnp.cumprod` stay in uint8 and wrap around. A mask of booleans is widened by both, a mask that
# was stored as uint8 by one. NumPy widens in all four.
#
#     jnp uint8: sum 300 (uint32), cumsum ends at 44 (uint8)
#     jnp bool: sum 300 (int32), cumsum ends at 300 (int32)
#     numpy uint8: sum 300 (uint64), cumsum ends at 300 (uint64)
#
# Why it matters: positions of packed or masked tokens are cumulated from masks that arrive as
# uint8, and 256 tokens are a picture of 16x16: the first size at which token 256 gets the place of
# token 0. Nothing fails: gathers take wrapped places as they take others. Pass `dtype=jnp.int32`.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
unset "${!JAX_@}" XLA_FLAGS
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 scipy==1.17.1 ml_dtypes==0.6.0
cat > "$room/probe.py" <<'PY'
import sys

import jax.numpy as jnp
import numpy as np

RECORDED = {
    ("jnp", "uint8"): (300, "uint32", 44, "uint8"),
    ("jnp", "bool"): (300, "int32", 300, "int32"),
    ("numpy", "uint8"): (300, "uint64", 300, "uint64"),
}
for (library, dtype), recorded in RECORDED.items():
    module = jnp if library == "jnp" else np
    ones = module.ones(300, dtype)
    total, last = module.sum(ones), module.cumsum(ones)[-1]
    seen = int(total), str(total.dtype), int(last), str(last.dtype)
    print(f"{library} {dtype}: sum {seen[0]} ({seen[1]}), cumsum ends at {seen[2]} ({seen[3]})")
    if seen != recorded:
        sys.exit(f"changed: {library} no longer widens {dtype} as recorded")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
