#!/usr/bin/env bash
# Question: is `jax.random.fold_in(key, i)` another key than the i-th of `jax.random.split(key)`?
#
# Guess, written before the run: yes. They are two documented derivations, and a program may take
# both from one parent (`split` for its layers, `fold_in` for its steps).
#
# Seen (jax 0.10.2, CPU): they are the same key for threefry (the default) and for rbg; only
# unsafe_rbg differs. `split` is prefix stable as well: the first two of three are the two of two.
# And `bits(key)[i]` is the exclusive or of the two words of `split(key)[i]`, so drawing from a
# parent is not independent of its children either.
#
#     threefry2x32: fold_in(key, i) == split(key, 5)[i] for i in 0..4: 5 of 5
#     rbg: fold_in(key, i) == split(key, 5)[i] for i in 0..4: 5 of 5
#     unsafe_rbg: fold_in(key, i) == split(key, 5)[i] for i in 0..4: 0 of 5
#     split(key, 2) == split(key, 3)[:2]: True
#     bits(key, (5,)) == split words xored: True
#
# Why it matters: a training step that folds small numbers into the key it also splits (a step
# number, a layer number, an image number) gives the same noise to two things that are meant to be
# independent. Nothing fails; the loss and the pictures look normal.
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

words = jax.random.key_data


def equal(impl):
    key = jax.random.key(7, impl=impl)
    children = jax.random.split(key, 5)
    folded = [jax.random.fold_in(key, i) for i in range(5)]
    return sum(bool((words(a) == words(b)).all()) for a, b in zip(folded, children, strict=True))


found = {impl: equal(impl) for impl in ("threefry2x32", "rbg", "unsafe_rbg")}
for impl, count in found.items():
    print(f"{impl}: fold_in(key, i) == split(key, 5)[i] for i in 0..4: {count} of 5")
key = jax.random.key(7)
prefix = bool((words(jax.random.split(key, 2)) == words(jax.random.split(key, 3))[:2]).all())
print("split(key, 2) == split(key, 3)[:2]:", prefix)
pairs = words(jax.random.split(key, 5))
xored = bool((jax.random.bits(key, (5,)) == pairs[:, 0] ^ pairs[:, 1]).all())
print("bits(key, (5,)) == split words xored:", xored)
if found != {"threefry2x32": 5, "rbg": 5, "unsafe_rbg": 0} or not prefix or not xored:
    sys.exit("changed: fold_in, split and bits no longer meet as recorded")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
