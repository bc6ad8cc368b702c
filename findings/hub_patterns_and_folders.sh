#!/usr/bin/env bash
# Question: which files of a repository do `allow_patterns="*.json"` and other patterns of
# `huggingface_hub.snapshot_download` take, if they are read as a shell or git reads them?
#
# Guess, written before the run: "*.json" the ones at the top, "vae" what is in the folder vae,
# "**/*.json" those of all folders and the top.
#
# Seen (huggingface_hub 2.4.0): a star goes through slashes, and the whole path has to match. So
# "*.json" takes those of every folder, "vae" nothing (a closing slash takes the folder), and
# "**/*.json" all but those at the top. "./" in front takes nothing. There is no pattern for "at the
# top only" but the name. (The filter is called here as the download calls it; no network.)
#
#     *.json: config.json vae/config.json text/tokens/vocab.json
#     **/*.json: vae/config.json text/tokens/vocab.json
#     vae: nothing
#     vae/: vae/config.json vae/model.safetensors vae/ema/model.safetensors
#     vae/*.safetensors: vae/model.safetensors vae/ema/model.safetensors
#     ./config.json: nothing
#
# Why it matters: repositories of image models hold a folder for each part, often with copies (ema,
# fp16) in folders below. "*.safetensors" of the top, meant for one file, fetches all of them: tens
# of GB. A pattern that takes nothing is no error either; the download ends with an empty folder.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  huggingface_hub==2.4.0
cat > "$room/probe.py" <<'PY'
import sys

from huggingface_hub.utils import filter_repo_objects

TOP, VAE, WORDS = "config.json", "vae/config.json", "text/tokens/vocab.json"
WEIGHTS, EMA = "vae/model.safetensors", "vae/ema/model.safetensors"
RECORDED = {
    "*.json": [TOP, VAE, WORDS],
    "**/*.json": [VAE, WORDS],
    "vae": [],
    "vae/": [VAE, WEIGHTS, EMA],
    "vae/*.safetensors": [WEIGHTS, EMA],
    "./config.json": [],
}
for pattern, recorded in RECORDED.items():
    files = [TOP, VAE, WEIGHTS, EMA, WORDS]
    taken = list(filter_repo_objects(files, allow_patterns=pattern))
    print(f"{pattern}:", *(taken or ["nothing"]))
    if taken != recorded:
        sys.exit(f"changed: {pattern} no longer takes what was recorded")
PY
cd "$room"
"$room/venv/bin/python" -I probe.py
