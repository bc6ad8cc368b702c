#!/usr/bin/env bash
# Makes what models/ shows of emoji64, from nothing: the autoencoder, its latents, then NextStep-1 on
# captions and MAR by class, each with its own head and with Drift-AR. Hours on two cores; the same
# command goes on where it was stopped. RUNS is the folder of the runs.
set -euo pipefail
source "$(dirname "$0")/environment.sh" requirements.txt

runs=${RUNS:-runs/showcase}
train() { python -m driftar_jax.train --config="configs/$1:emoji64" --workdir="$runs/$2" "${@:3}"; }

train autoencoder.py vae_emoji64
python -m driftar_jax.encode --config=configs/autoencoder.py:emoji64 --vae="$runs/vae_emoji64" \
  --splits=train,test --out="$runs/latents"
data=--config.data.name=latents:$runs/latents
train nextstep_small.py nextstep_emoji64 "$data"
train drift_nextstep.py drift_nextstep_emoji64 "$data" --config.init_from="$runs/nextstep_emoji64"
train mar_small.py mar_emoji64 "$data"
train drift_mar_small.py drift_mar_emoji64 "$data" --config.init_from="$runs/mar_emoji64"
train classifier.py judge_emoji64
