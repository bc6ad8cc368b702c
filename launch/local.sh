#!/usr/bin/env bash
# Several processes on this machine's CPU that train together, as on a cluster, for trying things out:
#
#   bash launch/local.sh [--dry-run] 2 --config=configs/classifier.py:tiny --workdir=runs/two
#
# PORT (12345) is the one they meet at, DEVICES (1) what each of them simulates. Output of process I
# beyond the first goes to WORKDIR.I.log.
set -euo pipefail
source "$(dirname "$0")/dry.sh"

count=${1:-}
[[ "$count" =~ ^[1-9][0-9]*$ ]] || refuse processes "$count" "a whole number of at least 1"
shift
workdir=
for word in "$@"; do
  case "$word" in --workdir=?*) workdir=${word#--workdir=} ;; esac
done
[ -n "$workdir" ] || refuse workdir "" "--workdir=W among the flags of driftar_jax.train"
[ -n "$DRY_RUN" ] || source "$(dirname "$0")/environment.sh" requirements.txt

# XLA's CPU pool needs a live thread per simulated device.
run export JAX_PLATFORMS=cpu NPROC="${NPROC:-32}" \
  XLA_FLAGS="--xla_force_host_platform_device_count=${DEVICES:-1}"
start() {
  run python -m driftar_jax.train --coordinator=127.0.0.1:"${PORT:-12345}" \
    --num_processes="$count" --process_id="$1" "${@:2}"
}
run mkdir -p "$(dirname "$workdir")"
# One that ends takes the others with it: they wait for each other in every step.
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
for ((index = count - 1; index > 0; index--)); do
  if [ -n "$DRY_RUN" ]; then start "$index" "$@"; else start "$index" "$@" >"$workdir.$index.log" 2>&1 & fi
done
start 0 "$@"
wait
