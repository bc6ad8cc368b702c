#!/usr/bin/env bash
# Trains a small MAR host with its own head and with Drift-AR on real digits, samples both, and
# writes runs/quickstart/report.md: what was gained, beside the baselines. Safe to run twice: a
# stopped run goes on, a finished one is only measured again.
set -euo pipefail
source "$(dirname "$0")/environment.sh" requirements.txt

out=runs/quickstart
started=$SECONDS

step() { echo; echo "== $1 ($((SECONDS - started)) s)"; }

step "1/4 judge: a small classifier whose features measure the samples"
python -m driftar_jax.train --config=configs/classifier.py:digits8 --workdir=$out/judge
step "2/4 baseline: MAR with its own many-step head"
python -m driftar_jax.train --config=configs/mar_small.py:digits8 --workdir=$out/own \
  --config.train.steps=1200
step "3/4 Drift-AR on that backbone: one head evaluation per AR step"
python -m driftar_jax.train --config=configs/drift_mar_small.py:digits8 --workdir=$out/drift \
  --config.init_from=$out/own --config.train.steps=1000
step "4/4 both sampled, timed and judged"
python -m driftar_jax.evaluate --workdir=$out/drift --baseline=$out/own --judge=$out/judge \
  --out=$out --num=768 --seeds=2 --batch_sizes=128 --overwrite
step "done; everything is in $out/report.md"
