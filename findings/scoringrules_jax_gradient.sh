#!/usr/bin/env bash
# Question: can the energy score of `scoringrules` be a training loss through its JAX backend?
#
# Guess, written before the run: yes; the backend is there to be differentiated, and the gradient
# agrees with finite differences.
#
# Seen (scoringrules 0.10.0, jax 0.10.2): the value is right and the gradient is NaN in every entry,
# for the default estimator and the fair one, at any draw: both sum over all pairs of members, each
# member with itself included, and the norm has no gradient at 0. `estimator="akr"`, which pairs
# neighbours only, is finite.
#
#     nrg (default): value 0.8692, NaN in 15 of 15 entries of the gradient
#     fair: value 0.6558, NaN in 15 of 15 entries of the gradient
#     akr: value 0.7277, NaN in 0 of 15 entries of the gradient
#
# Why it matters: the energy score is the loss of one-step heads (EAR, CALM, drifting with the
# energy field). The first step destroys the parameters although the logged loss was fine.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
unset "${!JAX_@}" XLA_FLAGS
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  scoringrules==0.10.0 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 scipy==1.17.1 ml_dtypes==0.6.0
cat > "$room/probe.py" <<'PY'
import sys

import jax
import jax.numpy as jnp
import numpy as np
import scoringrules

draw = np.random.default_rng(0)
truth = jnp.asarray(draw.normal(size=3), jnp.float32)
members = jnp.asarray(draw.normal(size=(5, 3)), jnp.float32)


def loss(members, estimator):
    return scoringrules.energy_score(truth, members, backend="jax", estimator=estimator)


bad = {}
for estimator, note in (("nrg", " (default)"), ("fair", ""), ("akr", "")):
    value, gradient = jax.value_and_grad(loss)(members, estimator)
    bad[estimator] = int(jnp.isnan(gradient).sum())
    print(
        f"{estimator}{note}: value {value:.4f}, "
        f"NaN in {bad[estimator]} of {gradient.size} entries of the gradient"
    )
default = scoringrules.energy_score(truth, members, backend="jax")
if not np.isclose(default, loss(members, "nrg")):
    sys.exit("changed: nrg is no longer the default estimator")
if bad != {"nrg": 15, "fair": 15, "akr": 0}:
    sys.exit("changed: the gradients of the energy score are no longer as recorded")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
