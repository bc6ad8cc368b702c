#!/usr/bin/env bash
# Question: `WebDataset(shards, shardshuffle=10)` is read for two epochs, then the same with
# `.shuffle(100, seed=0)` for its samples. Do the orders of the two epochs differ?
#
# Guess, written before the run: yes. The shuffles go on drawing; a seed makes two runs agree, not
# two epochs.
#
# Seen (webdataset 1.0.2): no. The shards come in the order of the first epoch in every epoch, with
# a seed or without; `seed=` of `.shuffle` starts the generator anew with each epoch. Only
# `detshuffle=True` counts epochs, and `.shuffle` without `seed=` or with `rng=` draws on.
#
#     shards, two epochs: no seed: equal True; seed=0: equal True; detshuffle=True: equal False
#     samples: no seed: equal False; seed=0: equal True; rng=: equal False
#
# Why it matters: with more samples than the buffer holds the order of the shards is most of what
# shuffling does. All epochs go through the data in one order, batches repeat, and what was learned
# last is the same each time. With `seed=` the batches are the very same in all epochs.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  webdataset==1.0.2 numpy==2.4.6
cat > "$room/probe.py" <<'PY'
import random
import sys

import webdataset

for shard in range(10):
    with webdataset.TarWriter(f"{shard}.tar") as writer:
        for i in range(10):
            writer.write({"__key__": f"{shard}_{i}", "txt": "x"})


def shards(**kwargs):
    return webdataset.WebDataset("{0..9}.tar", shardshuffle=10, **kwargs)


def samples(**kwargs):
    return webdataset.WebDataset("0.tar", shardshuffle=False).shuffle(100, **kwargs)


def equal(data):
    return [sample["__key__"] for sample in data] == [sample["__key__"] for sample in data]


by_shard = [equal(shards()), equal(shards(seed=0)), equal(shards(detshuffle=True))]
by_sample = [equal(samples()), equal(samples(seed=0)), equal(samples(rng=random.Random(0)))]
text = "shards, two epochs: no seed: equal {}; seed=0: equal {}; detshuffle=True: equal {}"
print(text.format(*by_shard))
print("samples: no seed: equal {}; seed=0: equal {}; rng=: equal {}".format(*by_sample))
if by_shard != [True, True, False]:
    sys.exit("changed: the order of shards is no longer that of the first epoch as recorded")
if by_sample != [False, True, False]:
    sys.exit("changed: the orders of samples are no longer as recorded")
PY
cd "$room"
"$room/venv/bin/python" -I probe.py
