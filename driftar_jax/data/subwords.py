"""A vocabulary of pieces of words, by the library `tokenizers`: no word is unknown to it."""

import json
from collections.abc import Mapping, Sequence

from driftar_jax.storage.reasons import reason

SIZE = 2048  # of the vocabulary at most; 256 of them are single bytes


def vocabulary_of(captions: Sequence[str], special: Sequence[str]) -> dict:
    """Make a `tokenizer.json` for these captions: byte pairs of lower-case text, digits one by one.

    Args:
      captions: of the training split; their order makes no difference.
      special: tokens that are never cut, in the order of their ids, from 0.
    """
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        min_frequency=2,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(captions), trainer)
    return json.loads(tokenizer.to_str())


class SubwordTokenizer:
    """A `prompts.Tokenizer` of pieces of words."""

    def __init__(self, file: Mapping):
        """Of `vocabulary_of`; raises ValueError where it is of another kind."""
        import tokenizers

        if file["model"]["type"] != "BPE":
            raise ValueError(f"model: got {file['model']['type']!r}, allowed 'BPE'")
        try:
            self._made = tokenizers.Tokenizer.from_str(json.dumps(file))
        except Exception as error:  # the library raises bare exceptions of its own
            raise ValueError(reason(error)) from None
        self.vocabulary: dict[str, int] = self._made.get_vocab(with_added_tokens=True)
        if sorted(self.vocabulary.values()) != list(range(len(self.vocabulary))):
            raise ValueError("the pieces are not numbered from 0 on")

    def encode(self, text: str) -> list[int]:
        """See `prompts.Tokenizer`."""
        return list(self._made.encode(text, add_special_tokens=False).ids)

    def id_of(self, token: str) -> int | None:
        """See `prompts.Tokenizer`."""
        return self._made.token_to_id(token)
