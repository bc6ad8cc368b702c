#!/usr/bin/env bash
# Trains a small MAR host with its own head and with Drift-AR on real digits, samples both, and
# writes runs/quickstart/report.md: what was gained, beside the baselines. Last, a checkpoint of
# models/ draws emoji. Safe to run twice: a stopped run goes on, a finished one is only measured again.
set -euo pipefail
source "$(dirname "$0")/environment.sh" requirements.txt

out=runs/quickstart
started=$SECONDS

step() { echo; echo "== $1 ($((SECONDS - started)) s)"; }

step "1/5 judge: a small classifier whose features measure the samples"
python -m driftar_jax.train --config=configs/classifier.py:digits8 --workdir=$out/judge
step "2/5 baseline: MAR with its own many-step head"
python -m driftar_jax.train --config=configs/mar_small.py:digits8 --workdir=$out/own \
  --config.train.steps=1200
step "3/5 Drift-AR on that backbone: one head evaluation per AR step"
python -m driftar_jax.train --config=configs/drift_mar_small.py:digits8 --workdir=$out/drift \
  --config.init_from=$out/own --config.train.steps=1000
step "4/5 both sampled, timed and judged"
python -m driftar_jax.evaluate --workdir=$out/drift --baseline=$out/own --judge=$out/judge \
  --out=$out --num=768 --seeds=2 --batch_sizes=128 --overwrite
step "5/5 pictures of 64 pixels from captions, by a checkpoint that lies here"
python -m driftar_jax.sample --workdir=models/nextstep_emoji64 --prompts=launch/prompts_emoji64.txt \
  --guidance=2 --out=$out/emoji
step "done; the pictures are in $out/emoji/prompts.png, everything is in $out/report.md"
