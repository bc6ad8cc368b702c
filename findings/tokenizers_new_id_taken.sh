#!/usr/bin/env bash
# Question: which id does a token get that is added to a vocabulary with a gap in its ids?
#
# Guess, written before the run: the largest id plus one. No two tokens share an id.
#
# Seen (tokenizers 0.23.3): the *number* of tokens. Added to {"cat": 0, "dog": 2} the token
# "<image>" gets id 2, which is "dog"'s. "dog" then encodes to 2, decodes as "<image>", and is left
# out where special tokens are skipped. Nothing is said on adding, saving or loading.
#
#     "<image>" gets id 2, "dog" has id 2
#     "dog <image>" encodes to 2 2, decodes to "<image> <image>"
#     the same without special tokens decodes to ""
#
# Why it matters: vocabularies with gaps are usual (ids reserved, rows of the embedding padded to a
# multiple of 128, pruned words), and image models add marks for pictures to a text model's file.
# The caption loses a word and the picture's mark stands where it was. Check `token_to_id` of what
# was added against all other ids.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  tokenizers==0.23.3
cat > "$room/probe.py" <<'PY'
import sys

from tokenizers import Tokenizer, models, pre_tokenizers

tokenizer = Tokenizer(models.WordLevel({"cat": 0, "dog": 2}, unk_token="cat"))
tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer.add_special_tokens(["<image>"])
tokenizer = Tokenizer.from_str(tokenizer.to_str())
mark, dog = tokenizer.token_to_id("<image>"), tokenizer.get_vocab()["dog"]
print(f'"<image>" gets id {mark}, "dog" has id {dog}')
ids = tokenizer.encode("dog <image>").ids
whole = tokenizer.decode(ids, skip_special_tokens=False)
words = tokenizer.decode(ids)
print(f'"dog <image>" encodes to {ids[0]} {ids[1]}, decodes to "{whole}"')
print(f'the same without special tokens decodes to "{words}"')
if (mark, dog, ids, whole, words) != (2, 2, [2, 2], "<image> <image>", ""):
    sys.exit("changed: an added token no longer takes a used id as recorded")
PY
cd "$room"
"$room/venv/bin/python" -I probe.py
