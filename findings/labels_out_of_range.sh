#!/usr/bin/env bash
# Question: what do the usual functions make of the label -1 ("no label", which TFDS's `ClassLabel`
# stores without complaint) and of a label one too large (a null class somebody forgot to count)?
#
# Guess, written before the run: all agree that it is no class. The two spellings of the
# cross-entropy give 0 or NaN for it, `nn.Embed` an error or NaN; too large a label is cut to the
# last class, as JAX clamps an index.
#
# Seen (jax 0.10.2, optax 0.2.8, flax 0.12.8), three classes: -1 is the *last class* for the
# cross-entropy with integer labels and for `nn.Embed`, and a loss of 0 through `one_hot`. A label
# of 3 is NaN for the first two (nothing is clamped) and 0 through `one_hot`.
#
#     label 2: integer labels 0.4076, one_hot 0.4076, Embed row 2
#     label -1: integer labels 0.4076, one_hot 0.0000, Embed row 2
#     label 3: integer labels nan, one_hot 0.0000, Embed NaN
#
# Why it matters: unlabelled images train the last class, or are left out, depending on which of two
# equal-looking losses was called; a conditional generator gives them that class's embedding.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
unset "${!JAX_@}" XLA_FLAGS
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  flax==0.12.8 optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 scipy==1.17.1 ml_dtypes==0.6.0
cat > "$room/probe.py" <<'PY'
import math
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

CLASSES = 3
logits = jnp.array([1.0, 2.0, 3.0])
embed = nn.Embed(CLASSES, 2)
params = embed.init(jax.random.key(0), jnp.array([0]))
table = np.asarray(params["params"]["embedding"])


def seen(label):
    label = jnp.array([label])
    whole = float(optax.softmax_cross_entropy_with_integer_labels(logits[None], label)[0])
    hot = float(abs(optax.softmax_cross_entropy(logits[None], jax.nn.one_hot(label, CLASSES))[0]))
    row = np.asarray(embed.apply(params, label))[0]
    rows = [i for i in range(CLASSES) if np.array_equal(row, table[i])]
    name = f"row {rows[0]}" if rows else "NaN" if np.isnan(row).all() else str(row)
    print(f"label {label[0]}: integer labels {whole:.4f}, one_hot {hot:.4f}, Embed {name}")
    return whole, hot, name


last = seen(CLASSES - 1)
none, large = seen(-1), seen(CLASSES)
if none != (last[0], 0.0, "row 2"):
    sys.exit("changed: the label -1 is no longer treated as recorded")
if not math.isnan(large[0]) or large[1:] != (0.0, "NaN"):
    sys.exit("changed: too large a label is no longer treated as recorded")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
