"""A tokenizer of single characters, for prompts without a file or a library."""

from driftar_jax.data import prompts

MARKS = {"begin_image": 90, "end_image": 91, "placeholder": 92, "pad": 93}
AREA = 94
VOCABULARY = 97


class Words:
    """Ids below 64 for characters, and the special tokens of `MARKS`."""

    special = {token: MARKS[mark] for mark, token in prompts.TOKENS.items()} | {prompts.AREA: AREA}

    def encode(self, text):
        """See `prompts.Tokenizer`."""
        found = []
        while text:
            token = next((t for t in self.special if text.startswith(t)), text[0])
            found.append(self.special[token] if token in self.special else ord(token) % 64)
            text = text[len(token) :]
        return found

    def id_of(self, token):
        """See `prompts.Tokenizer`."""
        return self.special.get(token)


def ids(string):
    """Ids of plain text."""
    return [ord(c) % 64 for c in string]
