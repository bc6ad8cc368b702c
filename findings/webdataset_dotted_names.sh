#!/usr/bin/env bash
# Question: a tar holds cat.1.jpg, cat.2.jpg and dog.1.jpg. Which samples does WebDataset read?
#
# Guess, written before the run: three, with the keys cat.1, cat.2 and dog.1 and a `jpg` each.
#
# Seen (webdataset 1.0.2): two. A key ends at the *first* dot of the file's name, so that the cats
# are one sample with the fields `1.jpg` and `2.jpg`; nothing is called `jpg`. Names that begin with
# a dot or have none are left out. Dots in folders are kept.
#
#     cat: 1.jpg 2.jpg
#     dog: 1.jpg
#     v1.5/bird: jpg txt
#
# Why it matters: numbers, sizes and versions stand in names of pictures ("cat.256.jpg",
# "v1.5_cat"), and tars are made with `tar cf` from a folder of them. Samples with the same beginning melt into
# one, those that remain lack the field that a pipeline picks, and the count of the set is wrong.
# Replace dots before packing.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  webdataset==1.0.2 braceexpand==0.1.7 numpy==2.4.6 PyYAML==6.0.4
cat > "$room/probe.py" <<'PY'
import io
import sys
import tarfile

import webdataset

NAMES = ("cat.1.jpg", "cat.2.jpg", "dog.1.jpg", "v1.5/bird.jpg", "v1.5/bird.txt", ".fox.jpg", "owl")
with tarfile.open("pictures.tar", "w") as tar:
    for name in NAMES:
        member = tarfile.TarInfo(name)
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
seen = {}
for sample in webdataset.WebDataset("pictures.tar", shardshuffle=False):
    fields = sorted(field for field in sample if not field.startswith("__"))
    print(f"{sample['__key__']}:", *fields)
    seen[sample["__key__"]] = fields
if seen != {"cat": ["1.jpg", "2.jpg"], "dog": ["1.jpg"], "v1.5/bird": ["jpg", "txt"]}:
    sys.exit("changed: names with dots no longer become samples as recorded")
PY
cd "$room"
"$room/venv/bin/python" -I probe.py
