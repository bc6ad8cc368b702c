#!/usr/bin/env bash
# Trains on all NVIDIA GPUs of this machine, in one process:
#
#   bash launch/cuda.sh [--dry-run] --config=configs/mar_base.py --workdir=runs/base ...
#
# Several machines: MACHINES=4 MACHINE=0..3 COORDINATOR=HOST:PORT of machine 0, the same command on
# each, and a workdir that all of them see.
set -euo pipefail
source "$(dirname "$0")/dry.sh"

[ $# -gt 0 ] || refuse flags "" "those of driftar_jax.train: --config=FILE.py[:SIZE] --workdir=W"
cluster=()
if [ -n "${MACHINES:-}" ]; then
  [ -n "${COORDINATOR:-}" ] || refuse COORDINATOR "" "HOST:PORT of machine 0"
  cluster=(--coordinator="$COORDINATOR" --num_processes="$MACHINES" --process_id="${MACHINE:-}")
fi
run source "$(dirname "$0")/environment.sh" requirements-cuda.txt
# The rest of the memory is for cuDNN and NCCL.
run export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"
run exec python -m driftar_jax.train --restore=whole --compile_cache=runs/compiled \
  ${cluster[@]+"${cluster[@]}"} "$@"
