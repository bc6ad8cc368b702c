#!/usr/bin/env bash
# Question: are Grain's shuffles of different seeds different in every epoch?
#
# Guess, written before the run: yes. Seed and epoch are mixed, so that epoch 1 of seed 0 has
# nothing to do with epoch 0 of seed 1.
#
# Seen (grain 0.2.18): the seed of an epoch is seed + epoch. Epoch 1 of `shuffle(seed=0)` is epoch 0
# of `shuffle(seed=1)`, record for record, and so on along the diagonal. A seed given to the data
# set (`MapDataset.seed(0).shuffle()`) is mixed first and does not do this.
#
#     shuffle(seed=0), epoch 1: 11 7 6 0 4 8 9 2 10 3 1 5
#     shuffle(seed=1), epoch 0: 11 7 6 0 4 8 9 2 10 3 1 5
#     seed(0).shuffle(), epoch 1 is seed(1).shuffle(), epoch 0: False
#
# Why it matters: "three seeds" of a run are mostly given as 0, 1, 2. Here they see the same orders,
# an epoch apart, so that the spread over seeds leaves out nearly all of the data order.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  grain==0.2.18 numpy==2.4.6
cat > "$room/probe.py" <<'PY'
import sys

import grain

RECORDS = 12


def epoch(data, number):
    data = data.repeat(3)
    return [data[i] for i in range(number * RECORDS, (number + 1) * RECORDS)]


def direct(seed):
    return grain.MapDataset.range(RECORDS).shuffle(seed=seed)


def mixed(seed):
    return grain.MapDataset.range(RECORDS).seed(seed).shuffle()


one, two = epoch(direct(0), 1), epoch(direct(1), 0)
print("shuffle(seed=0), epoch 1:", *one)
print("shuffle(seed=1), epoch 0:", *two)
later = epoch(direct(5), 2) == epoch(direct(7), 0)
apart = epoch(mixed(0), 1) == epoch(mixed(1), 0)
print("seed(0).shuffle(), epoch 1 is seed(1).shuffle(), epoch 0:", apart)
if sorted(one) != list(range(RECORDS)) or one != two or not later or apart:
    sys.exit("changed: seeds and epochs of Grain's shuffle no longer add up as recorded")
PY
cd "$room"
"$room/venv/bin/python" -I probe.py
