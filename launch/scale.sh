#!/usr/bin/env bash
# Prints the tables of docs/scale.md. Nothing is run on the devices, which are simulated.
#
#   bash launch/scale.sh [--dry-run] [quick]
#
# quick: the scaling table of the small config alone, a minute; all presets take much longer.
set -euo pipefail
source "$(dirname "$0")/dry.sh"
run source "$(dirname "$0")/environment.sh" requirements.txt

measure() { run python -m driftar_jax.scale "$@"; }

for devices in 1 2 4 8; do
  measure --configs=configs/mar_small.py:fashion28 --devices=$devices
  if [ $devices -gt 1 ]; then
    measure --configs=configs/mar_small.py:fashion28 --devices=$devices \
      --set=mesh.data=1,mesh.fsdp=$devices
  fi
done
[ "${1:-}" != quick ] || exit 0
for config in configs/{mar,drift_mar,transdiff}_{base,large,huge}.py \
  configs/nextstep_14b.py configs/drift_nextstep_14b.py; do
  measure --devices=8 --set=mesh.data=1,mesh.fsdp=8 --configs=$config
done
# What fits: activations made again, and a sixteenth of the batch at a time.
for config in configs/{mar,drift_mar,transdiff}_base.py; do
  measure --devices=8 --set=mesh.data=1,mesh.fsdp=8,host.remat=full,optim.accumulate=16 \
    --configs=$config
done
# Its features come from a trained network; here, from the identity.
for size in base large huge; do
  measure --devices=8 --set=mesh.data=1,mesh.fsdp=8,drift.features=identity \
    --configs=configs/drift_transdiff.py:$size
done
