#!/usr/bin/env bash
# Training steps and samplers of the presets, compiled for chips that are not here; nothing is run.
#
#   bash launch/chips.sh [--dry-run] [FOLDER]
#
# A file of FOLDER (runs/chips) for each program, with its command and what its compiler said, and
# table.md of all files. Programs whose file is there are left out, so the same command goes on where
# it was stopped. All of it takes hours; variables choose:
#
#   TARGETS="tpu:v5e:2x4 tpu:v5p:2x2x4 gpu:h100:8"
#                 slices of any shape: a training step is split over all devices of each, a sampler
#                 is compiled for one device, once for each kind of chip
#   CONFIGS="configs/mar_base.py configs/drift_transdiff.py:base"
#   PROGRAMS="sample train"
#   FIELDS="drift.features=identity optim.accumulate=4"
#                 fields of the config to change in every program; they stand in the files' names
#   LIMIT=3600    seconds after which a program is given up; the others go on
set -euo pipefail
source "$(dirname "$0")/dry.sh"
cd "$(dirname "$0")/.."

FOLDER=${1:-runs/chips}
TARGETS=(${TARGETS:-tpu:v5e:4x4 tpu:v5p:2x2x4 tpu:v6e:4x4})
CONFIGS=(${CONFIGS:-$(echo configs/{drift_mar,mar}_{base,large,huge}.py \
  configs/transdiff_{base,large,huge}.py configs/{,drift_}nextstep_14b.py)})
PROGRAMS=(${PROGRAMS:-sample train})
FIELDS=(${FIELDS:-})
LIMIT=${LIMIT:-0}  # as `timeout` says it: without end

for target in "${TARGETS[@]}"; do
  [[ $target =~ ^(tpu:[a-z0-9]+:[1-9][0-9]*(x[1-9][0-9]*){1,2}|gpu:[a-z0-9]+:[1-9][0-9]*)$ ]] ||
    refuse TARGETS "$target" "tpu:v5e:4x4 | tpu:v5p:2x2x4 | gpu:h100:8 | ..."
done
for config in "${CONFIGS[@]}"; do
  [ -f "${config%%:*}" ] || refuse CONFIGS "$config" "FILE.py[:SIZE] with an existing file"
done
for program in "${PROGRAMS[@]}"; do
  [[ $program == sample || $program == train ]] || refuse PROGRAMS "$program" "sample | train"
done
for field in ${FIELDS[@]+"${FIELDS[@]}"}; do
  [[ $field =~ ^[a-z_]+\.[a-z0-9_.]+=. ]] || refuse FIELDS "$field" "SECTION.FIELD=VALUE"
done
[[ $LIMIT =~ ^[0-9]+$ ]] || refuse LIMIT "$LIMIT" "a whole number of seconds; 0 is without end"

# Of training steps; FIELDS come after them, and win. Micro-batches and remat make most of them fit.
STEP=(mesh.data=1 mesh.fsdp=-1 host.remat=full optim.accumulate=16 ${FIELDS[@]+"${FIELDS[@]}"})
run source launch/environment.sh requirements-aot.txt
run python -m launch.check_chips "${TARGETS[*]}" "${CONFIGS[*]}" "${STEP[*]}"
run mkdir -p "$FOLDER"

# one TARGET: the smallest slice of its kind.
one() { echo "${1%:*}:$(sed -E 's/[0-9]+/1/g' <<< "${1##*:}")"; }

# says NAME PROGRAM...: what the program prints, kept once it has ended with status 0.
seen=" "
says() {
  local file=$FOLDER/$1.txt status=0
  [[ $seen != *" $1 "* ]] || return 0
  seen+="$1 "
  [ ! -e "$file" ] || return 0
  [ -z "$DRY_RUN" ] || { run "${@:2}"; return; }
  echo "$file"
  echo "command            ${*:2}" > "$file.part"
  timeout --foreground "$LIMIT" "${@:2}" >> "$file.part" 2> "$file.err" || status=$?
  case $status in
    0) mv "$file.part" "$file"; rm "$file.err" ;;
    124) echo "given up after $LIMIT s" | tee -a "$file.err" ;;
    *) tail -1 "$file.err" ;;
  esac
}

# table: a row for each file, in the columns of docs/scale.md, and what did not compile.
table() {
  echo "| program | target | float32 products | peak GiB | of GiB | code GiB | collectives a device" \
    "| matrix products | compiled, s of CPU |"
  echo "|---|---|---|---|---|---|---|---|---|"
  local file name
  for file in "$FOLDER"/*.txt; do
    [ -e "$file" ] || continue
    name=$(basename "$file")
    awk -v name="${name%_?pu_*}" '
      function after(word) { return substr($0, index($0, word) + length(word)) }
      /^compiled for / { target = $3; sub(/,$/, "", target); products = after("products as ") }
      /^peak / { peak = $2; of = $5; if (/NOT fit/) peak = peak " **does not fit**" }
      /^code / { code = $2 == "not" ? "-" : $2 }
      /^collectives / { moved = $0; sub(/^collectives +/, "", moved); sub(/ a device$/, "", moved) }
      /^lowered in / { dots = $(NF - 2) }
      /^compiled in / {
        cpu = $5; sub(/^\(/, "", cpu)
        print "| " name " | " target " | " products " | " peak " | " of " | " code " | " moved " | " \
          dots " | " cpu " |"
      }' "$file"
  done
  for file in "$FOLDER"/*.txt.err; do
    [ ! -e "$file" ] || [ -e "${file%.err}" ] ||
      printf '\nNot compiled: %s: %s\n' "$(basename "$file" .txt.err)" "$(tail -1 "$file")"
  done
}

changed=${FIELDS[*]+,${FIELDS[*]}}
changed=${changed//[ \/]/,}
for target in "${TARGETS[@]}"; do
  for config in "${CONFIGS[@]}"; do
    name=$(basename "${config/.py/}")
    name=${name//:/_}$changed
    for program in "${PROGRAMS[@]}"; do
      if [ "$program" = sample ]; then
        single=$(one "$target")
        says "sample_${name}_${single//:/_}" python -m driftar_jax.benchmark --config="$config" \
          --batch_sizes=8 --dry_run --target="$single" ${FIELDS[@]+"${FIELDS[@]/#/--config.}"}
      else
        fields=("${STEP[@]}")
        # NextStep-1's layers are a loop already.
        [[ $config == *nextstep* ]] || fields=(host.scan=true "${STEP[@]}")
        says "train_${name}_${target//:/_}" python -m driftar_jax.train --config="$config" \
          --dry_run --target="$target" "${fields[@]/#/--config.}"
      fi
    done
  done
done
[ -n "$DRY_RUN" ] || table > "$FOLDER/table.md"
