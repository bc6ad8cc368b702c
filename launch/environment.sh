# Sourced by the scripts beside it: a virtual environment in .venv with one requirements file.
#
#   source launch/environment.sh requirements.txt
#
# PYTHON picks the interpreter (3.11 or newer; the first of python3, python3.12, python3.11 that
# is). A second run installs nothing unless a requirements file has changed.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

_interpreter() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.12 python3.11}; do
    if _new_enough "$candidate"; then echo "$candidate"; return; fi
  done
  echo "PYTHON: got '${PYTHON:-python3}', allowed an interpreter of Python 3.11 or newer" >&2
  return 2
}

_install() {
  local wanted=$1 stamp=.venv/installed
  local now
  now=$(cat requirements*.txt | cksum)" $wanted"
  [ -e .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$now" ] && return
  local python
  python=$(_interpreter) || return
  echo "Setting up .venv with $python and $wanted"
  [ -e .venv/bin/python ] || "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$wanted"
  echo "$now" > "$stamp"
}

_install "$1"
export PATH="$PWD/.venv/bin:$PATH"
# Prepared copies of the embedded image sets; somebody's own TFDS folder wins.
export TFDS_DATA_DIR="${TFDS_DATA_DIR:-$PWD/runs/data}"
