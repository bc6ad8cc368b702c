#!/usr/bin/env bash
# Question: what does pandas' `read_json(lines=True)` make of strings of digits, such as
# {"id": "000123", "text": "7", "seed": "12345678901234567891"}?
#
# Guess, written before the run: strings. JSON says what is a number and what is not.
#
# Seen (pandas 3.1.1): a column of strings becomes numbers if all of them look like some: ids lose
# their zeros, long ones their last digits, the prompt "1e5" is 100000.0. One string in the column
# that is no number, and all stay strings. `dtype=False` leaves everything as it is written.
#
#     id "000123", "000010": 123, 10
#     seed "12345678901234567890", "12345678901234567891": 1.2345678901234567e+19, the same again
#     text "1e5", "7": 100000.0, 7.0
#     text "1e5", "a cat": '1e5', 'a cat'
#
# Why it matters: captions and metadata of pictures lie in JSON lines, with ids as zero-padded
# strings that name the files. Which kind comes out depends on the other rows: it works on the whole
# set and fails on a shard of it, a join of two files finds nothing, and two seeds become one.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  pandas==3.1.1 numpy==2.4.6
cat > "$room/probe.py" <<'PY'
import io
import json
import sys

import pandas as pd


def read(key, values, **options):
    lines = "\n".join(json.dumps({key: value}) for value in values)
    found = pd.read_json(io.StringIO(lines), lines=True, **options)[key].tolist()
    if not options:
        written = ", ".join(f'"{value}"' for value in values)
        same = len(set(found)) < len(found)
        seen = f"{found[0]!r}, the same again" if same else ", ".join(map(repr, found))
        print(f"{key} {written}: {seen}")
    return found


seeds = ["12345678901234567890", "12345678901234567891"]
if read("id", ["000123", "000010"]) != [123, 10]:
    sys.exit("changed: zero-padded ids no longer become numbers")
if len(set(read("seed", seeds))) != 1:
    sys.exit("changed: two long seeds no longer become one number")
if read("text", ["1e5", "7"]) != [100000.0, 7.0]:
    sys.exit("changed: prompts of digits no longer become numbers")
if read("text", ["1e5", "a cat"]) != ["1e5", "a cat"]:
    sys.exit("changed: one word no longer keeps its column strings")
if read("seed", seeds, dtype=False) != seeds:
    sys.exit("changed: dtype=False no longer keeps strings")
PY
cd "$room"
"$room/venv/bin/python" -I probe.py
