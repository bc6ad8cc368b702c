#!/usr/bin/env bash
# Question: does `worker_count` of Grain's `DataLoader` change what is in a batch?
#
# Guess, written before the run: no. It changes the speed; the batches and their order are those of
# the sampler, as the loader is advertised as deterministic.
#
# Seen (grain 0.2.18), 16 records in order, `Batch(4, drop_remainder=True)`: every worker batches
# its own share. Two workers give other batches; three workers also lose a quarter of the epoch,
# since each drops a remainder of its own. With `MapDataset.batch` before `mp_prefetch` the batches
# stay what they were.
#
#     0 workers: 0 1 2 3 | 4 5 6 7 | 8 9 10 11 | 12 13 14 15
#     1 workers: 0 1 2 3 | 4 5 6 7 | 8 9 10 11 | 12 13 14 15
#     2 workers: 0 2 4 6 | 1 3 5 7 | 8 10 12 14 | 9 11 13 15
#     3 workers: 0 3 6 9 | 1 4 7 10 | 2 5 8 11
#     MapDataset.batch, 2 workers: 0 1 2 3 | 4 5 6 7 | 8 9 10 11 | 12 13 14 15
#
# Why it matters: a run that is repeated on a machine with another number of cores sees other
# batches, and losses that depend on the batch (contrastive, drifting, batch norm) move with it.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  grain==0.2.18 numpy==2.4.6 absl-py==2.5.1
cat > "$room/probe.py" <<'PY'
import sys

import grain
import grain.python as classic
from absl import flags

RECORDS = 16


def shown(name, batches):
    batches = [batch.tolist() for batch in batches]
    print(f"{name}:", " | ".join(" ".join(map(str, batch)) for batch in batches))
    return batches


def loader(workers):
    return classic.DataLoader(
        data_source=classic.RangeDataSource(0, RECORDS, 1),
        sampler=classic.IndexSampler(num_records=RECORDS, shuffle=False, num_epochs=1),
        operations=[classic.Batch(4, drop_remainder=True)],
        worker_count=workers,
    )


def main():
    flags.FLAGS(["probe"])
    found = [shown(f"{workers} workers", loader(workers)) for workers in range(4)]
    options = grain.multiprocessing.MultiprocessingOptions(num_workers=2)
    data = grain.MapDataset.range(RECORDS).batch(4).to_iter_dataset().mp_prefetch(options)
    steady = shown("MapDataset.batch, 2 workers", data)
    same = found[0] == found[1] == steady
    if not same or found[2][0] != [0, 2, 4, 6] or len(found[3]) != 3:
        sys.exit("changed: the workers no longer shape the batches as recorded")


if __name__ == "__main__":
    main()
PY
cd "$room"
"$room/venv/bin/python" -I probe.py
