#!/usr/bin/env bash
# Makes what models/ shows of emoji64, from nothing: the autoencoder, its latents, then NextStep-1 on
# captions and MAR by class, each with its own head and with Drift-AR; then what was measured of them
# (results/), what is given away (models/) and the pictures of docs/. Hours on two cores; the same
# command goes on where it was stopped. RUNS is the folder of the runs, SHOW where results/, models/
# and docs/figures/ are, NUM the samples per method; SIZE=tiny tries all of it in minutes.
set -euo pipefail
source "$(dirname "$0")/environment.sh" requirements.txt

runs=${RUNS:-runs/showcase} show=${SHOW:-.} num=${NUM:-384} size=${SIZE:-emoji64}
real=emoji64 seeds=2 batches=1,32 window=8 steps=4,16,32,64 latents=() judge=(--config.train.steps=600)
if [ "$size" = tiny ]; then
  real=emoji32 num=${NUM:-16} seeds=1 batches=4 window=4 steps=2
  latents=(--config.data.image_size=4 --config.data.patch_size=1)
  judge=(--config.data.name=emoji32 --config.data.image_size=16)
fi
train() { python -m driftar_jax.train --config="configs/$1:$size" --workdir="$runs/$2" "${@:3}"; }
run() { python -m "driftar_jax.$1" "${@:2}"; }

train autoencoder.py vae_emoji64
[ -e "$runs/latents/dataset_info.json" ] || run encode --config="configs/autoencoder.py:$size" \
  --vae="$runs/vae_emoji64" --splits=train,test --out="$runs/latents"
data=(--config.data.name="latents:$runs/latents" "${latents[@]}")
turns=()
[ "$size" != tiny ] || turns=(--config.sample.ar_steps=16)
train nextstep_small.py nextstep_emoji64 "${data[@]}" "${turns[@]}"
train drift_nextstep.py drift_nextstep_emoji64 "${data[@]}" "${turns[@]}" \
  --config.init_from="$runs/nextstep_emoji64"
train mar_small.py mar_emoji64 "${data[@]}"
train drift_mar_small.py drift_mar_emoji64 "${data[@]}" --config.init_from="$runs/mar_emoji64"
train classifier.py judge_emoji64 "${judge[@]}"

# What was measured: a table each, which stays once it is there.
mkdir -p "$show/results" "$show/models" "$show/docs/figures"
measure() {
  [ -e "$runs/report_$1/report.json" ] || run evaluate --workdir="$runs/drift_$1_emoji64" \
    --baseline="$runs/$1_emoji64" --judge="$runs/judge_emoji64" --out="$runs/report_$1" \
    --num="$num" --seeds="$seeds" --batch_sizes="$batches" "${@:2}"
  cp "$runs/report_$1/report.json" "$show/results/emoji64_$1.json"
}
measure nextstep --lookahead="$window" --delta=0.05 --guidance=2
measure mar --ar_steps="$steps" --guidance=2

# What is given away: averaged parameters in bfloat16, each with its model card.
give() { # RUN NAME FLAGS
  [ -e "$show/models/$2/config.json" ] || run export --workdir="$runs/$1" --out="$show/models/$2" "${@:3}"
}
give vae_emoji64 vae_emoji64
for host in nextstep mar; do
  give "drift_${host}_emoji64" "${host}_emoji64" --report="$runs/report_$host/report.json"
  give "${host}_emoji64" "${host}_emoji64_own" --report="$runs/report_$host/report.json"
done

# What is shown: twelve samples beside held-out pictures, and both heads growing side by side.
picture() { # NAME FILE FLAGS: a folder of sample, and the picture of it that is kept
  rm -rf "$runs/shown_$1"
  run sample --out="$runs/shown_$1" "${@:3}"
  cp "$runs/shown_$1/$2" "$show/docs/figures/$1.${2##*.}"
}
given="$show/models"
for name in nextstep_emoji64 nextstep_emoji64_own mar_emoji64 mar_emoji64_own; do
  picture "sheet_$name" sheet.png --workdir="$given/$name" --sheet --real="$real" --guidance=2
done
picture growth growth.gif --workdir="$given/nextstep_emoji64" --baseline="$given/nextstep_emoji64_own" \
  --trace --prompts=launch/prompts_growth.txt --guidance=2 --seed=3
picture nextstep_emoji64 prompts.png --workdir="$given/nextstep_emoji64" \
  --prompts=launch/prompts_emoji64.txt --guidance=2
