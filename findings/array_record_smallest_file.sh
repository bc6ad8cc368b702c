#!/usr/bin/env bash
# Question: how large is an ArrayRecord file that holds ten records of 100 bytes?
#
# Guess, written before the run: under 4 KB: 1,000 bytes of data, some headers, an index of a few
# numbers; and a thousand equal records, which zstd reduces to nearly nothing, not much more.
#
# Seen (array_record 0.8.6): 131,072 bytes, and the same for one record. Blocks are filled up to
# 64 KiB and the index has a block of its own, so sizes come in steps of 64 KiB. With one record in
# a group, as random access wants, a thousand equal records take twice their raw size.
#
#     1 record of 100 bytes: 131072 bytes
#     10 records of 100 bytes: 131072 bytes
#     1000 records of 100 random bytes: 262144 bytes
#     1000 equal records of 100 bytes: 196608 bytes
#
# Why it matters: a small set that somebody wrote in 1,024 shards, as large sets are, takes 128 MB
# before the first picture; and a size limit or a progress estimate by bytes is wrong for small
# sets.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  array_record==0.8.6
cat > "$room/probe.py" <<'PY'
import os
import random
import sys

from array_record.python import array_record_module as array_record

draw = random.Random(0)


def written(name, records, options="group_size:1"):
    path = "records"
    writer = array_record.ArrayRecordWriter(path, options)
    for record in records:
        writer.write(record)
    writer.close()
    size = os.path.getsize(path)
    print(f"{name}: {size} bytes")
    return size


one = written("1 record of 100 bytes", [draw.randbytes(100)])
ten = written("10 records of 100 bytes", [draw.randbytes(100) for _ in range(10)])
many = written("1000 records of 100 random bytes", [draw.randbytes(100) for _ in range(1000)])
equal = written("1000 equal records of 100 bytes", [b"x" * 100] * 1000)
if (one, ten, many, equal) != (131072, 131072, 262144, 196608):
    sys.exit("changed: small ArrayRecord files are no longer of the recorded sizes")
PY
cd "$room"
"$room/venv/bin/python" -I probe.py
