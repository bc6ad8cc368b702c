#!/usr/bin/env bash
# Builds the image of a target and runs a program in it:
#
#   bash launch/docker.sh [--dry-run] cpu|cuda [PROGRAM FLAGS...]
#
# PROGRAM is train, sample, evaluate, ...; ./runs is the container's runs.
set -euo pipefail
source "$(dirname "$0")/dry.sh"
cd "$(dirname "$0")/.."

target=${1:-}
case $target in
  cpu) gpus=() ;;
  cuda) gpus=(--gpus all) ;;
  *) refuse target "$target" "cpu | cuda" ;;
esac
shift
run docker build --target "$target" --tag "driftar_jax:$target" --file launch/Dockerfile .
[ $# -gt 0 ] || exit 0
program=$1
shift
run mkdir -p runs
# Compiled kernels and NCCL use shared memory; Docker's 64 MB would end a run on several GPUs.
run docker run --rm --init --shm-size=8g ${gpus[@]+"${gpus[@]}"} \
  --volume "$PWD/runs:/driftar_jax/runs" "driftar_jax:$target" "driftar_jax.$program" "$@"
