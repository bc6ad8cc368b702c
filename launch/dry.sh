# Sourced by the scripts beside it, without arguments: with --dry-run as the script's first word,
# `run` prints each command, quoted so that it can be pasted, and runs none.

DRY_RUN=
if [ "${1:-}" = "--dry-run" ]; then DRY_RUN=1; shift; fi

run() {
  printf '%q ' "$@"
  echo
  if [ -z "$DRY_RUN" ]; then "$@"; fi
}

# Says what is wrong in the form of the programs, and ends.
refuse() {
  echo "$(basename "$0"): $1: got '$2', allowed $3" >&2
  exit 2
}
