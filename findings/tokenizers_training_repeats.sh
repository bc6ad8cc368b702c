#!/usr/bin/env bash
# Question: does training a tokenizer twice on the same text give the same tokenizer?
#
# Guess, written before the run: yes, for every trainer: the text is in memory, nothing is sampled
# and ties are broken by the tokens themselves.
#
# Seen (tokenizers 0.23.3), ten processes, forty words of equal frequency: WordLevel and BPE give
# one vocabulary. WordPiece and Unigram give several: other tokens and other ids each time, and no
# seed to set.
#
#     WordLevel: 1 vocabulary
#     BPE: 1 vocabulary
#     WordPiece: several vocabularies
#     Unigram: several vocabularies
#
# Why it matters: ids are the rows of an embedding. A tokenizer that is trained anew on another
# host, or in a rerun with "the same seed", no longer fits the checkpoint; keep the file with the
# weights.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  tokenizers==0.23.3
cat > "$room/probe.py" <<'PY'
import json
import subprocess
import sys

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

KINDS = {
    "WordLevel": (models.WordLevel(unk_token="[UNK]"), trainers.WordLevelTrainer, 60),
    "BPE": (models.BPE(), trainers.BpeTrainer, 60),
    "WordPiece": (models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer, 60),
    "Unigram": (models.Unigram(), trainers.UnigramTrainer, 40),
}


def vocabularies():
    text = " ".join(f"w{i}" for i in range(40) for _ in range(3))
    for name, (model, trainer, size) in KINDS.items():
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.train_from_iterator([text], trainer(show_progress=False, vocab_size=size))
        yield name, json.dumps(tokenizer.get_vocab(), sort_keys=True)


if len(sys.argv) > 1:
    print(json.dumps(dict(vocabularies())))
    sys.exit()
command = [sys.executable, "-I", __file__, "once"]
runs = [
    json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(10)
]
counts = {name: len({run[name] for run in runs}) for name in KINDS}
for name, count in counts.items():
    print(f"{name}:", "1 vocabulary" if count == 1 else "several vocabularies")
if counts["WordLevel"] != 1 or counts["BPE"] != 1:
    sys.exit("changed: WordLevel or BPE training no longer repeats")
if counts["WordPiece"] == 1 or counts["Unigram"] == 1:
    sys.exit("changed: WordPiece or Unigram training repeats now")
PY
cd "$room"
"$room/venv/bin/python" -I probe.py
