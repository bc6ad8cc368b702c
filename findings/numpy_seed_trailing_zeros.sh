#!/usr/bin/env bash
# Question: do `np.random.default_rng([seed, epoch])` and its likes, lists of whole numbers as
# seeds, give different streams for different lists?
#
# Guess, written before the run: yes. A list is mixed as a list: its length counts as much as its
# entries.
#
# Seen (numpy 2.4.6): lists of up to four entries are filled up with zeros. [7], [7, 0] and [7, 0,
# 0, 0] are one stream, and the stream of the plain seed 7; the fifth zero makes another one. And a
# number is cut into 32-bit words: 2**32 is the list [0, 1].
#
#     7: 944 625 684 897
#     [7]: 944 625 684 897
#     [7, 0]: 944 625 684 897
#     [7, 0, 0, 0]: 944 625 684 897
#     [7, 0, 0, 0, 0]: 305 797 203 53
#     [0, 7]: 796 38 225 777
#     7 * 2**32: 796 38 225 777
#
# Why it matters: epoch 0, host 0, worker 0 is where everybody starts: the augmentations of [seed,
# epoch] in epoch 0 repeat the draws of whatever else was seeded by the seed alone, such as the
# split or the shuffle, and worker 0 of [seed, host, worker] repeats what [seed, host] drew. Put a
# constant that is not 0 last, or use `SeedSequence(seed, spawn_key=...)`.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  numpy==2.4.6
cat > "$room/probe.py" <<'PY'
import sys

import numpy as np

LISTS = ("7", "[7]", "[7, 0]", "[7, 0, 0, 0]", "[7, 0, 0, 0, 0]", "[0, 7]", "7 * 2**32")


def draws(seed):
    return np.random.default_rng(seed).integers(0, 1000, 4).tolist()


seen = {}
for text in LISTS:
    seen[text] = draws(eval(text))
    print(f"{text}:", " ".join(map(str, seen[text])))
plain = seen["7"]
if any(seen[text] != plain for text in ("[7]", "[7, 0]", "[7, 0, 0, 0]")):
    sys.exit("changed: trailing zeros give other streams")
if seen["[7, 0, 0, 0, 0]"] == plain or seen["[0, 7]"] == plain:
    sys.exit("changed: five entries, or another order, are no longer as recorded")
if seen["[0, 7]"] != seen["7 * 2**32"]:
    sys.exit("changed: a large number is no longer the list of its words")
PY
cd "$room"
"$room/venv/bin/python" -I probe.py
