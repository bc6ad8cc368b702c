#!/usr/bin/env bash
# Question: the learning rate is 0 (the first step of a warm-up, the last of a cosine). What does
# weight decay do to the parameters in Optax's optimizers?
#
# Guess, written before the run: nothing. In Optax the decay is multiplied by the learning rate;
# that is what is said of `adamw`, and the others are built from the same parts.
#
# Seen (optax 0.2.8, jax 0.10.2): true of `adamw`, `lion`, `lamb` and `adan`, not of `adafactor`:
# there the decay comes after the learning rate, and at rate 0 the parameters still lose the whole
# `weight_decay_rate` in every step.
#
#     ten steps at learning rate 0, decay 0.01, from 2: adamw 2.000
#     ten steps at learning rate 0, decay 0.01, from 2: lion 2.000
#     ten steps at learning rate 0, decay 0.01, from 2: lamb 2.000
#     ten steps at learning rate 0, decay 0.01, from 2: adan 2.000
#     ten steps at learning rate 0, decay 0.01, from 2: adafactor 1.809
#
# Why it matters: a decay that is taken over from an AdamW run (0.1 at rate 3e-4) is 3,000 times as
# strong in Adafactor, where it wants 3e-5, and it does not follow warm-up and decay of the rate.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
unset "${!JAX_@}" XLA_FLAGS
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 scipy==1.17.1 ml_dtypes==0.6.0
cat > "$room/probe.py" <<'PY'
import sys

import jax.numpy as jnp
import optax


def left(name, tx):
    params = jnp.full((4, 4), 2.0)
    state = tx.init(params)
    for _ in range(10):
        updates, state = tx.update(jnp.ones((4, 4)), state, params)
        params = optax.apply_updates(params, updates)
    value = float(params[0, 0])
    print(f"ten steps at learning rate 0, decay 0.01, from 2: {name} {value:.3f}")
    return value


for name in ("adamw", "lion", "lamb", "adan"):
    if left(name, getattr(optax, name)(0.0, weight_decay=0.01)) != 2:
        sys.exit(f"changed: at learning rate 0 {name} decays")
if abs(left("adafactor", optax.adafactor(0.0, weight_decay_rate=0.01)) - 2 * 0.99**10) > 1e-3:
    sys.exit("changed: adafactor no longer decays by the whole rate at learning rate 0")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
