#!/usr/bin/env bash
# Question: what does `jax.nn.dot_product_attention` give a query that may look at nothing: by
# `key_value_seq_lengths` of 0, by a mask that is False everywhere, by `query_seq_lengths`?
#
# Guess, written before the run: the same in all three, 0 (a sum over no values; the docstring's
# lengths are said to be padding), or NaN (a softmax over no logits), as elsewhere.
#
# Seen (jax 0.10.2, XLA's implementation on a CPU): 0 only for rows beyond `query_seq_lengths`. With
# no key left the row is the plain average of *all* values, those that were masked out, and its
# gradient flows into them.
#
#     values 1 2 6, no key by length: 3.0, gradient of the values 0.333 each
#     values 1 2 6, no key by mask: 3.0, gradient of the values 0.333 each
#     values 1 2 6, row beyond query_seq_lengths: 0.0, gradient of the values 0.000 each
#
# Why it matters: an empty prompt in a padded batch, a cache before its first token, cross-attention
# to dropped conditions: the row reads the padding, finite and plausible, in place of nothing.
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
import jax.numpy as jnp

QUERY = jnp.ones((1, 1, 1, 4))
KEYS = jnp.ones((1, 3, 1, 4))
VALUES = jnp.ones((1, 3, 1, 4)) * jnp.array([1.0, 2.0, 6.0])[None, :, None, None]


def row(word, **how):
    def first(values):
        return jax.nn.dot_product_attention(QUERY, KEYS, values, **how)[0, 0, 0, 0]

    out, back = jax.value_and_grad(first)(VALUES)
    back = back[0, :, 0, 0]
    print(f"values 1 2 6, {word}: {out:.1f}, gradient of the values {back[0]:.3f} each")
    return round(float(out), 3), bool(jnp.all(back == back[0]))


none = jnp.array([0])
got = [
    row("no key by length", key_value_seq_lengths=none),
    row("no key by mask", mask=jnp.zeros((1, 1, 1, 3), bool)),
    row("row beyond query_seq_lengths", query_seq_lengths=none),
]
if got != [(3.0, True), (3.0, True), (0.0, True)]:
    sys.exit("changed: rows without a key no longer read what was recorded")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
