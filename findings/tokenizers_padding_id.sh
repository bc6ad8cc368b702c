#!/usr/bin/env bash
# Question: a vocabulary holds "[PAD]" with id 3. Which id does `enable_padding(pad_token="[PAD]")`
# pad with?
#
# Guess, written before the run: 3, or it is refused where the vocabulary has no such token.
#
# Seen (tokenizers 0.23.3): 0, whose token is "cat". `pad_id` has a default of its own and is
# compared with nothing; `Encoding.tokens` says "[PAD]" for these positions all the same.
#
#     "[PAD]" has id 3, padded ids 1 0 0 0
#     tokens dog [PAD] [PAD] [PAD], decoded "dog cat cat cat"
#     with pad_id=3: padded ids 1 3 3 3 -> "dog"
#
# Why it matters: a text encoder without a mask, or one that finds its end by the padding id, reads
# the first word of the vocabulary behind every prompt, and printing the tokens shows nothing wrong.
# Pass `pad_id=tokenizer.token_to_id("[PAD]")`.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  tokenizers==0.23.3
cat > "$room/probe.py" <<'PY'
import sys

from tokenizers import Tokenizer, models, pre_tokenizers

words = {"cat": 0, "dog": 1, "[UNK]": 2, "[PAD]": 3}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer.add_special_tokens(["[PAD]"])
known = tokenizer.token_to_id("[PAD]")
tokenizer.enable_padding(pad_token="[PAD]", length=4)
found = tokenizer.encode("dog")
decoded = tokenizer.decode(found.ids)
print(f'"[PAD]" has id {known}, padded ids', *found.ids)
print(f"tokens {' '.join(found.tokens)}, decoded \"{decoded}\"")
tokenizer.enable_padding(pad_id=known, pad_token="[PAD]", length=4)
right = tokenizer.encode("dog").ids
print("with pad_id=3: padded ids", *right, f'-> "{tokenizer.decode(right)}"')
if (known, found.ids, decoded) != (3, [1, 0, 0, 0], "dog cat cat cat"):
    sys.exit("changed: the padding id is no longer 0 whatever the token")
if found.tokens != ["dog", "[PAD]", "[PAD]", "[PAD]"] or right != [1, 3, 3, 3]:
    sys.exit("changed: padding no longer reads as recorded")
PY
cd "$room"
"$room/venv/bin/python" -I probe.py
