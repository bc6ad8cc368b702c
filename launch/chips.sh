#!/usr/bin/env bash
# Training steps and samplers of the presets, compiled for chips that are not here; nothing is run.
#
#   bash launch/chips.sh [--dry-run] [FOLDER]
#
# A file of FOLDER (runs/chips) for each program, with what its compiler said, and table.md of all
# files. Programs whose file is there are left out, so the same command goes on where it was stopped.
# All of it takes hours; TARGETS and CONFIGS say less: TARGETS=gpu:h100:8 CONFIGS=configs/mar_base.py
set -euo pipefail
source "$(dirname "$0")/dry.sh"
run source "$(dirname "$0")/environment.sh" requirements-aot.txt
FOLDER=${1:-runs/chips}
TARGETS=${TARGETS:-"tpu:v5e:4x4 tpu:v5p:2x2x4 tpu:v6e:4x4"}
CONFIGS=${CONFIGS:-$(echo configs/{drift_mar,mar}_{base,large,huge}.py \
  configs/transdiff_{base,large,huge}.py configs/{,drift_}nextstep_14b.py)}
run mkdir -p "$FOLDER"

# says NAME PROGRAM...: what the program prints, kept once it has ended with status 0.
says() {
  local file=$FOLDER/$1.txt
  [ ! -e "$file" ] || return 0
  if [ -n "$DRY_RUN" ]; then run "${@:2}"; return; fi
  echo "$file"
  if "${@:2}" > "$file.part" 2> "$file.err"; then mv "$file.part" "$file"; else tail -1 "$file.err"; fi
}

# table: a row for each file, in the columns of docs/scale.md.
table() {
  echo "| program | target | float32 products | peak GiB | of GiB | code GiB | collectives a device" \
    "| matrix products | compiled, s of CPU |"
  echo "|---|---|---|---|---|---|---|---|---|"
  awk '
    function after(word) { return substr($0, index($0, word) + length(word)) }
    FNR == 1 { name = FILENAME; sub(/.*\//, "", name); sub(/_(tpu|gpu)_.*/, "", name) }
    /^compiled for / { target = $3; sub(/,$/, "", target); products = after("products as ") }
    /^peak / { peak = $2; of = $5; if (/NOT fit/) peak = peak " **does not fit**" }
    /^code / { code = $2 == "not" ? "-" : $2 }
    /^collectives / { moved = $0; sub(/^collectives +/, "", moved); sub(/ a device$/, "", moved) }
    /^lowered in / { dots = $(NF - 2) }
    /^compiled in / {
      cpu = $5; sub(/^\(/, "", cpu)
      print "| " name " | " target " | " products " | " peak " | " of " | " code " | " moved " | " \
        dots " | " cpu " |"
    }' "$FOLDER"/*.txt
}

for target in $TARGETS; do
  devices=16
  [[ $target != gpu:* ]] || devices=${target##*:}
  one=$(sed -E 's/(tpu:v5p):.*/\1:2x2x1/; s/(tpu:[^:]*):[0-9]+x[0-9]+$/\1:1x1/; s/(gpu:[^:]*):.*/\1:1/' <<< "$target")
  for config in $CONFIGS; do
    name=$(basename "$config" .py)_${target//:/_}
    says "sample_$name" python -m driftar_jax.benchmark --config="$config" --batch_sizes=8 \
      --dry_run --target="$one"
    loop=(--config.host.scan=true)  # NextStep-1's layers are a loop already
    [[ $config != *nextstep* ]] || loop=()
    says "train_$name" python -m driftar_jax.train --config="$config" --dry_run --target="$target" \
      --config.mesh.data=1 --config.mesh.fsdp="$devices" --config.host.remat=full "${loop[@]}" \
      --config.optim.accumulate=16
  done
done
[ -n "$DRY_RUN" ] || table > "$FOLDER/table.md"
