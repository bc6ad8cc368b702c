#!/usr/bin/env bash
# Question: `load_dataset("imagefolder", data_dir=...)` of a folder with one folder of pictures for
# each class: bicycle, bus, train. How many classes, how many pictures?
#
# Guess, written before the run: three classes in one split. Splits are folders one level above
# those of the classes, and there are none here.
#
# Seen (datasets 5.2.0): one split named train with the pictures of trains, no label at all;
# bicycles and buses are gone. A folder name that holds a word for a split (train, training, test,
# testing, valid, dev, val, eval, between separators) makes the splits, and what matches none of
# them is dropped without a word.
#
#     bicycle, bus, train: {'train': 3}, no labels
#     cup, test tube: {'test': 3}, no labels
#     bicycle, bus, truck: {'train': 9}, labels bicycle bus truck
#
# Why it matters: "train" is a class of CIFAR-100 and of COCO; test tubes, eval boards and dev kits
# are others. A set for a conditional generator loses all its other classes and its labels, and an
# unconditional one trains on what is left. Put the whole tree into a folder `train` of its own, or
# give `data_files`.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  datasets==5.2.0 pillow==13.0.0 numpy==2.4.6
cat > "$room/probe.py" <<'PY'
import pathlib
import sys

import datasets
import numpy as np
from PIL import Image

datasets.disable_progress_bars()


def load(*classes):
    root = pathlib.Path("_".join(classes).replace("train", "t").replace("test", "t"))
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(root / name / f"{i}.png")
    splits = datasets.load_dataset("imagefolder", data_dir=str(root))
    sizes = {name: len(split) for name, split in splits.items()}
    label = next(iter(splits.values())).features.get("label")
    text = "no labels" if label is None else f"labels {' '.join(label.names)}"
    print(f"{', '.join(classes)}: {sizes}, {text}")
    return sizes, label is not None


trains = load("bicycle", "bus", "train")
tubes = load("cup", "test tube")
trucks = load("bicycle", "bus", "truck")
if trucks != ({"train": 9}, True):
    sys.exit("changed: a plain folder of classes is no longer read as one split")
if trains != ({"train": 3}, False) or tubes != ({"test": 3}, False):
    sys.exit("changed: a class named like a split no longer drops the others")
PY
cd "$room"
HF_HUB_OFFLINE=1 HF_HOME="$room" "$room/venv/bin/python" -I probe.py
