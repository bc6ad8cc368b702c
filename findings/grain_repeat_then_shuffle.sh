#!/usr/bin/env bash
# Question: `MapDataset.range(10).repeat().shuffle(seed=0)`: is every record drawn once in each ten?
#
# Guess, written before the run: yes: whole epochs, each in an order of its own.
#
# Seen (grain 0.2.18): no. The endless repetition is shuffled as one, so that each draw is one of
# ten at random, with replacement: the first ten draws hold six of the records, and of 50,000
# records 37 % are missing from the first 50,000 draws. With `repeat(3)` each comes three times, but
# anywhere in the thirty. `shuffle` before `repeat` does what was guessed.
#
#     repeat().shuffle(): 6 of 10 records in the first ten draws
#     repeat().shuffle(): 63.2 % of 50,000 records in the first 50,000 draws
#     repeat(3).shuffle(): 8 of 10 records in the first ten draws
#     shuffle().repeat(): 10 of 10 records in the first ten draws
#
# Why it matters: both orders of the two words read alike and run alike. "Epoch" in the log of such
# a run is a number of draws; a third of the data has not been seen when the first one ends.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  grain==0.2.18 numpy==2.4.6
cat > "$room/probe.py" <<'PY'
import sys

import grain


def seen(data, count):
    return len({int(data[i]) for i in range(count)})


ten, many = grain.MapDataset.range(10), grain.MapDataset.range(50_000)
loose = seen(ten.repeat().shuffle(seed=0), 10)
part = 100 * seen(many.repeat().shuffle(seed=0), 50_000) / 50_000
thrice = seen(ten.repeat(3).shuffle(seed=0), 10)
whole = seen(ten.shuffle(seed=0).repeat(), 10)
print(f"repeat().shuffle(): {loose} of 10 records in the first ten draws")
print(f"repeat().shuffle(): {part:.1f} % of 50,000 records in the first 50,000 draws")
print(f"repeat(3).shuffle(): {thrice} of 10 records in the first ten draws")
print(f"shuffle().repeat(): {whole} of 10 records in the first ten draws")
if loose == 10 or thrice == 10 or not 62 < part < 65:
    sys.exit("changed: repeat before shuffle no longer draws with replacement")
if whole != 10:
    sys.exit("changed: shuffle before repeat no longer draws whole epochs")
PY
cd "$room"
"$room/venv/bin/python" -I probe.py
