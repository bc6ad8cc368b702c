#!/usr/bin/env bash
# Question: does `check_vma` of `jax.shard_map` change anything in a program that is valid either
# way?
#
# Guess, written before the run: no. It checks what varies over which mesh axis, at the price of
# some annotations; values and gradients are the same with and without.
#
# Seen (jax 0.10.2, four devices): the gradients differ by the number of devices. With the check a
# gradient with respect to replicated weights arrives already summed over the devices; without it,
# it is the device's own. The recipe of `pmap`'s days, gradient of the local loss, then `pmean`, is
# right without the check and four times too large with it; the gradient of a `pmean`ed loss is
# right with the check and the device's own rows alone without it.
#
#     pmean(grad(loss)): check_vma=True 6.0 6.0 6.0 6.0, check_vma=False 1.5 1.5 1.5 1.5
#     grad(pmean(loss)): check_vma=True 1.5 1.5 1.5 1.5, check_vma=False 0.0 1.0 2.0 3.0
#
# Why it matters: the check is switched off to get one stubborn operation through, and is on because
# that is the default. Adam hides the first case (its step does not depend on the scale, clipping
# and weight decay do); in the second one every device takes a step of its own, while the output
# specification says that the weights are the same, which is then not checked.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
unset "${!JAX_@}" XLA_FLAGS
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 scipy==1.17.1 ml_dtypes==0.6.0
cat > "$room/probe.py" <<'PY'
import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import jax.numpy as jnp

P = jax.sharding.PartitionSpec
mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
rows, weight = jnp.arange(4.0), jnp.float32(1)


def loss(weight, rows):
    return jnp.mean(weight * rows)


def after(weight, rows):
    return jax.lax.pmean(jax.grad(loss)(weight, rows), "data")[None]


def before(weight, rows):
    return jax.grad(lambda w: jax.lax.pmean(loss(w, rows), "data"))(weight)[None]


def gradients(step, check):
    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"), check_vma=check
    )
    return jax.jit(mapped)(weight, rows).tolist()


seen = {}
for name, step in (("pmean(grad(loss))", after), ("grad(pmean(loss))", before)):
    seen[name] = [gradients(step, check) for check in (True, False)]
    on, off = (" ".join(map(str, values)) for values in seen[name])
    print(f"{name}: check_vma=True {on}, check_vma=False {off}")
if seen["pmean(grad(loss))"] != [[6.0] * 4, [1.5] * 4]:
    sys.exit("changed: the mean of local gradients is no longer as recorded")
if seen["grad(pmean(loss))"] != [[1.5] * 4, [0.0, 1.0, 2.0, 3.0]]:
    sys.exit("changed: the gradient of the mean loss is no longer as recorded")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
