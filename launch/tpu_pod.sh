#!/usr/bin/env bash
# A TPU slice from nothing to results, through gcloud:
#
#   bash launch/tpu_pod.sh [--dry-run] VERB --config=configs/mar_base.py --workdir=/mnt/runs/base ...
#
# VERB is create, install, run, collect, delete, or all (the first four). What follows goes to
# driftar_jax.train. All workers train as one run, so they need one folder: NFS is mounted at
# /mnt/runs. SIGTERM at a worker (maintenance) saves; `run` again goes on.
#
#   TPU_NAME  ZONE  TPU_TYPE     name, zone and type of the slice (driftar, us-central2-b, v4-32)
#   TPU_VERSION                  its software (tpu-ubuntu2204-base)
#   NFS                          HOST:/SHARE that all workers mount; required
#   OUT                          where `collect` copies the run to (runs/tpu)
set -euo pipefail
source "$(dirname "$0")/dry.sh"

name=${TPU_NAME:-driftar} zone=${ZONE:-us-central2-b} type=${TPU_TYPE:-v4-32}
version=${TPU_VERSION:-tpu-ubuntu2204-base} out=${OUT:-runs/tpu} nfs=${NFS:-}
verb=${1:-}
[ $# -gt 0 ] && shift
workdir=
for word in "$@"; do
  case $word in --workdir=*) workdir=${word#--workdir=} ;; esac
done

everywhere() {
  run gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

create() {
  run gcloud compute tpus tpu-vm create "$name" --zone="$zone" --accelerator-type="$type" \
    --version="$version"
}

install() {
  [ -n "$nfs" ] || refuse NFS "" "HOST:/SHARE that every worker can mount"
  local archive
  archive=${TMPDIR:-/tmp}/driftar_jax.tar.gz
  run git -C "$(dirname "$0")/.." archive --format=tar.gz --prefix=driftar_jax/ -o "$archive" HEAD
  run gcloud compute tpus tpu-vm scp "$archive" "$name:" --zone="$zone" --worker=all
  everywhere "sudo apt-get -qq update && sudo apt-get -qq install -y nfs-common python3-venv \
&& sudo mkdir -p /mnt/runs && (mountpoint -q /mnt/runs || sudo mount -t nfs $nfs /mnt/runs) \
&& tar xzf driftar_jax.tar.gz && bash -c 'source driftar_jax/launch/environment.sh requirements-tpu.txt'"
}

train() {
  [ -n "$workdir" ] || refuse workdir "" "--workdir=/mnt/runs/NAME"
  local words
  words=$(printf '%q ' "$@")
  # One process a worker; they find each other through the runtime's own variables.
  everywhere "cd driftar_jax && source launch/environment.sh requirements-tpu.txt \
&& exec python -m driftar_jax.train --restore=whole --compile_cache=/mnt/runs/compiled $words"
}

collect() {
  [ -n "$workdir" ] || refuse workdir "" "--workdir=/mnt/runs/NAME"
  run mkdir -p "$out"
  run gcloud compute tpus tpu-vm scp --recurse "$name:$workdir" "$out" --zone="$zone" --worker=0
}

delete() {
  run gcloud compute tpus tpu-vm delete "$name" --zone="$zone" --quiet
}

case $verb in
  create | install | collect | delete) "$verb" ;;
  run) train "$@" ;;
  all)
    # Not joined by &&, under which a failing command inside a function goes unnoticed.
    create
    install
    train "$@"
    collect
    ;;
  *) refuse verb "$verb" "create | install | run | collect | delete | all" ;;
esac
