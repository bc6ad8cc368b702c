#!/usr/bin/env bash
# Measures the fashion28 tables of docs/results.md: both heads under both mask laws, three training
# seeds each. About an hour and a half on two cores; a stopped run goes on.
set -euo pipefail
source "$(dirname "$0")/environment.sh" requirements.txt

out=runs/fashion28
python -m driftar_jax.train --config=configs/classifier.py:fashion28 --workdir=$out/judge
for law in generation mar; do
  for seed in 0 1 2; do
    for head in mar drift_mar; do
      python -m driftar_jax.train --config=configs/${head}_small.py:fashion28 \
        --config.seed=$seed --config.mask.law=$law --workdir=$out/${head}_${law}_$seed
    done
  done
  runs() { echo "$out/$1_${law}_0,$out/$1_${law}_1,$out/$1_${law}_2"; }
  python -m driftar_jax.evaluate --workdir="$(runs drift_mar)" --baseline="$(runs mar)" \
    --judge=$out/judge --out=$out/report_$law --num=1024 --seeds=1 --overwrite
done
