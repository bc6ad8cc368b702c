#!/usr/bin/env bash
# Runs the checks and the tests: bash launch/test.sh [pytest arguments]; `-m slow` for the slow ones.
set -euo pipefail
source "$(dirname "$0")/environment.sh" requirements-dev.txt

ruff check .
ruff format --check .
# Two workers, a file in one of them, so that its runs and programs are made once; the tests of
# several devices run in processes of their own.
python -m pytest -q -n 2 --dist loadgroup --no-loadscope-reorder -m "not slow" "$@"
