#!/usr/bin/env bash
# Question: what do Optax's running averages do to bfloat16 arrays: the second moment of `adam`, and
# `ema` with its correction of the start?
#
# Guess, written before the run: they are coarse, right to a per cent or two. After the gradients
# have fallen to a tenth the second moment follows within some thousand steps. (Of `ema`, which was
# looked at afterwards, one would say that the average of a constant 1 is 1.)
#
# Seen (optax 0.2.8, jax 0.10.2): 0.999 is rounded to bfloat16 first, and that is 1. Nothing is ever
# forgotten: `nu` climbs until its increments are too small to count, at 0.5, and stays there for
# good. The correction knows the true 0.999, so that the average of ones passes 1.27 and sinks to
# 0.53.
#
#     1,000 steps at gradient 1, 10,000 at 0.1: float32 nu 0.0100, step 0.999 of the rate
#     1,000 steps at gradient 1, 10,000 at 0.1: bfloat16 nu 0.5000, step 0.146 of the rate
#     ema of ones after 500 and 3,000 steps: float32 1.00 1.00
#     ema of ones after 500 and 3,000 steps: bfloat16 1.27 0.53
#     ema of ones after 500 and 3,000 steps: bfloat16, accumulator_dtype=float32 1.00 1.00
#
# Why it matters: with parameters in bfloat16 Adam turns into an Adagrad whose sums saturate: one
# early spike divides the step for the rest of the run. `mu_dtype` does not help, it is for the
# first moment. Keep float32 parameters and cast them in the forward pass.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
unset "${!JAX_@}" XLA_FLAGS
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 scipy==1.17.1 ml_dtypes==0.6.0
cat > "$room/probe.py" <<'PY'
import sys

import jax
import jax.numpy as jnp
import optax


def second_moment(dtype):
    tx = optax.adam(1.0)

    def steps(gradient, count, state):
        def step(state, _):
            updates, state = tx.update(jnp.asarray(gradient, dtype), state)
            return state, updates

        return jax.lax.scan(step, state, None, length=count)

    state, _ = steps(1.0, 1000, tx.init(jnp.ones((), dtype)))
    state, updates = steps(0.1, 10000, state)
    nu, size = float(state[0].nu), float(-updates[-1])
    said = f"{dtype.__name__} nu {nu:.4f}, step {size:.3f} of the rate"
    print(f"1,000 steps at gradient 1, 10,000 at 0.1: {said}")
    return nu, size


def average(dtype, name, **options):
    tx = optax.ema(0.999, debias=True, **options)

    def step(state, _):
        mean, state = tx.update(jnp.ones((), dtype), state)
        return state, mean

    _, means = jax.lax.scan(step, tx.init(jnp.zeros((), dtype)), None, length=3000)
    some = [round(float(means[i]), 2) for i in (499, 2999)]
    print(f"ema of ones after 500 and 3,000 steps: {name} {some[0]:.2f} {some[1]:.2f}")
    return some


nu, size = second_moment(jnp.float32)
half_nu, half_size = second_moment(jnp.bfloat16)
single = average(jnp.float32, "float32")
half = average(jnp.bfloat16, "bfloat16")
helped = average(
    jnp.bfloat16, "bfloat16, accumulator_dtype=float32", accumulator_dtype=jnp.float32
)
if abs(nu - 0.01) > 2e-4 or abs(size - 1) > 0.01 or single != [1, 1] or helped != [1, 1]:
    sys.exit("changed: averages in float32 are no longer as recorded")
if half_nu != 0.5 or not 0.1 < half_size < 0.2:
    sys.exit("changed: the second moment in bfloat16 is no longer as recorded")
if not (1.2 < half[0] < 1.35 and 0.45 < half[1] < 0.6):
    sys.exit("changed: the corrected average in bfloat16 is no longer as recorded")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
