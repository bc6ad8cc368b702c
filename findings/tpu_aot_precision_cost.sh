#!/usr/bin/env bash
# Question: ahead of time, for a TPU that is not there: what does the cost analysis say of a float32
# product at precision `default`, `high` and `highest`?
#
# Guess, written before the run: the units multiply bfloat16, so `high` takes three passes and
# `highest` six: the estimated time and the FLOPs rise by about these factors.
#
# Seen (jax 0.10.2, libtpu 0.0.42.1, topology v5e:2x2, 4096x4096): all three report the same FLOPs
# and the same optimal_seconds, bound by arithmetic, while the compiled programs are different ones.
# 1.06 ms is the time of one pass; six at the chip's 197 TFLOP/s take 4.2 ms at the least.
#
#     default: flops 137438953472, optimal_seconds 0.00106, code 484352 bytes
#     high: flops 137438953472, optimal_seconds 0.00106, code 795648 bytes
#     highest: flops 137438953472, optimal_seconds 0.00106, code 1560064 bytes
#
# Why it matters: plans, roofline tables and MFU figures that come from `cost_analysis()` price exact
# float32 as one bfloat16 pass: four to six times too cheap.
#
# Needs 1.1 GB of disk for a while: libtpu alone is 0.7 GB.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
unset "${!JAX_@}" "${!TPU_@}" XLA_FLAGS LIBTPU_INIT_ARGS
"${PYTHON:-python3}" -m venv "$room/venv"
# No scipy: jax reads it only where its own scipy interface is used.
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check --no-deps \
  jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42.1 numpy==2.4.6 ml_dtypes==0.6.0 opt_einsum==3.4.0
cat > "$room/probe.py" <<'PY'
import sys

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
on_tpu = SingleDeviceSharding(topology.devices[0])
matrix = jax.ShapeDtypeStruct((4096, 4096), jnp.float32, sharding=on_tpu)
costs, codes = set(), set()
for precision in ("default", "high", "highest"):
    product = jax.jit(lambda a, b, p=precision: jnp.dot(a, b, precision=p))
    compiled = product.lower(matrix, matrix).compile()
    cost = compiled.cost_analysis()
    code = compiled.memory_analysis().generated_code_size_in_bytes
    print(
        f"{precision}: flops {cost['flops']:.0f}, optimal_seconds {cost['optimal_seconds']:.3g}, "
        f"code {code} bytes"
    )
    costs.add((cost["flops"], cost["optimal_seconds"]))
    codes.add(code)
if len(costs) != 1:
    sys.exit("changed: the cost analysis tells precisions apart now")
if len(codes) == 1:
    sys.exit("changed: the programs no longer differ by precision")
PY
cd "$room"
JAX_PLATFORMS=cpu ALLOW_MULTIPLE_LIBTPU_LOAD=1 "$room/venv/bin/python" -I probe.py 2> log ||
  { tail -n 5 log >&2; exit 1; }
