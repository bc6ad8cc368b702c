#!/usr/bin/env bash
# Question: parameters lie in an `OrderedDict` (as weights read from other frameworks do). Do
# dm-tree, JAX and optree flatten it in one order?
#
# Guess, written before the run: yes, in the order of insertion, which is what the type is for.
#
# Seen (dm-tree 0.1.10, jax 0.10.2, optree 0.20.0): JAX and optree keep the order of insertion,
# dm-tree sorts by key. Leaves flattened by the one and put back by the other change places, which
# no check of shapes finds where the shapes are equal. Plain dicts are sorted by both.
#
#     jax: query key; optree: query key; dm-tree: key query
#     flattened by dm-tree, put back by jax: query holds [2. 2.], key holds [1. 1.]
#
# Why it matters: averages, gradients and restored weights are moved between trees as lists of
# leaves. Query and key, scale and offset, mean and variance have equal shapes; one pair of such
# calls exchanges them for all layers and raises nothing. Stay with one library per round trip.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
unset "${!JAX_@}" XLA_FLAGS
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  dm-tree==0.1.10 optree==0.20.0 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 scipy==1.17.1 \
  ml_dtypes==0.6.0
cat > "$room/probe.py" <<'PY'
import collections
import sys

import jax
import numpy as np
import optree
import tree

names = collections.OrderedDict([("query", "query"), ("key", "key")])
order = {
    "jax": jax.tree.leaves(names),
    "optree": optree.tree_leaves(names),
    "dm-tree": tree.flatten(names),
}
print("; ".join(f"{name}: {' '.join(leaves)}" for name, leaves in order.items()))
weights = collections.OrderedDict([("query", np.full(2, 1.0)), ("key", np.full(2, 2.0))])
mixed = jax.tree.unflatten(jax.tree.structure(weights), tree.flatten(weights))
print(
    f"flattened by dm-tree, put back by jax: query holds {mixed['query']}, key holds {mixed['key']}"
)
if order != {"jax": ["query", "key"], "optree": ["query", "key"], "dm-tree": ["key", "query"]}:
    sys.exit("changed: the orders of an OrderedDict are no longer as recorded")
if mixed["query"][0] != 2 or tree.flatten(dict(names)) != jax.tree.leaves(dict(names)):
    sys.exit("changed: the round trip no longer exchanges two leaves")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
