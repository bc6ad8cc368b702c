#!/usr/bin/env bash
# Question: are the keys of two seeds that differ by 2**32 two keys?
#
# Guess, written before the run: yes. The seed is "a 64- or 32-bit integer used as the value of the
# key", a key has 64 bits, and a seed too large for that is refused.
#
# Seen (jax 0.10.2): only with `jax_enable_x64`. Otherwise the upper half is cut off without a word,
# for Python integers and NumPy's, and seeds beyond 64 bits raise OverflowError. The switch changes
# the keys of large and of negative seeds, so one seed means two runs.
#
#     key(7) [0 7], key(2**32 + 7) [0 7], key(-1) [0 4294967295]
#     64 distinct seeds, shifted left by 32: 1 key
#     with x64: key(2**32 + 7) [1 7], key(-1) [4294967295 4294967295]
#
# Why it matters: seeds made of two numbers (`run << 32 | host`, a hash, `time_ns()`) are 64 bits
# wide; those that keep what tells runs apart in the upper half give every run, or every host, the
# same noise. Fold the upper half in with `jax.random.fold_in`.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
unset "${!JAX_@}" XLA_FLAGS
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 scipy==1.17.1 ml_dtypes==0.6.0
cat > "$room/probe.py" <<'PY'
import sys

import jax
import numpy as np


def words(seed):
    return jax.random.key_data(jax.random.key(seed)).tolist()


def text(seed):
    return "[{} {}]".format(*words(seed))


print(f"key(7) {text(7)}, key(2**32 + 7) {text(2**32 + 7)}, key(-1) {text(-1)}")
short = [words(7), words(2**32 + 7), words(np.int64(2**32 + 7)), words(-1)]
shifted = {tuple(words(host << 32)) for host in range(64)}
print(f"64 distinct seeds, shifted left by 32: {len(shifted)} key")
try:
    words(2**64)
    sys.exit("changed: a seed of 65 bits is taken")
except OverflowError:
    pass
jax.config.update("jax_enable_x64", True)
print(f"with x64: key(2**32 + 7) {text(2**32 + 7)}, key(-1) {text(-1)}")
if short != [[0, 7]] * 3 + [[0, 2**32 - 1]] or len(shifted) != 1:
    sys.exit("changed: the upper half of a seed now counts without x64")
if [words(2**32 + 7), words(-1)] != [[1, 7], [2**32 - 1] * 2]:
    sys.exit("changed: with x64 the keys are no longer as recorded")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
