"""Tokenizers, and prompts as rows of ids: text, size, sources, negative prompts, left padding.

Source: `pipeline_nextstep.py` and `tokenization_nextstep.py` of stepfun-ai/NextStep-1 at 6e49bae.
Text is cut into ids by the checkpoint's own `tokenizer.json`: the ids of the special tokens collide
with those of its base model's successors, so no other tokenizer will do. For captions of one's own
a vocabulary of pieces of words is made, to which no word is unknown.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from driftar_jax.config import wrong
from driftar_jax.storage.reasons import reason

FILE = "tokenizer.json"
AREA = "<|image_area|>"
# What `marks` are called in the vocabulary.
TOKENS = {
    "begin_image": "<|begin_of_image|>",
    "end_image": "<|end_of_image|>",
    "placeholder": "<|image_placeholder|>",
    "pad": "[PAD]",
}
# Where a caption says that its source image stands.
IMAGE = "<image>"
# The released models were trained on sequences up to this length.
LONGEST = 8192
# Most pieces of words in a vocabulary of `subwords_of`; 256 of them are single bytes.
SUBWORDS = 2048


class Tokenizer(Protocol):
    """Text to ids; the ids of special tokens come from the same vocabulary."""

    def encode(self, text: str) -> list[int]:
        """Return ids of `text`, special tokens in it recognised, nothing added around it."""

    def id_of(self, token: str) -> int | None:
        """Return the id of a special token, None where the vocabulary lacks it."""


def subwords_of(captions: Sequence[str], special: Sequence[str]) -> dict:
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
        vocab_size=SUBWORDS,
        min_frequency=2,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(captions), trainer)
    return json.loads(tokenizer.to_str())


class SubwordTokenizer:
    """A `Tokenizer` of pieces of words."""

    def __init__(self, file: Mapping):
        """Take a file of `subwords_of`; raises ValueError where it is of another kind."""
        import tokenizers

        if file["model"]["type"] != "BPE":
            raise ValueError(f"model: got {file['model']['type']!r}, allowed 'BPE'")
        try:
            self._library = tokenizers.Tokenizer.from_str(json.dumps(file))
        except Exception as error:  # the library raises bare exceptions of its own
            raise ValueError(reason(error)) from None
        self.vocabulary: dict[str, int] = self._library.get_vocab(with_added_tokens=True)
        if sorted(self.vocabulary.values()) != list(range(len(self.vocabulary))):
            raise ValueError("the pieces are not numbered from 0 on")

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        return list(self._library.encode(text, add_special_tokens=False).ids)

    def id_of(self, token: str) -> int | None:
        """See `Tokenizer.id_of`."""
        return self._library.token_to_id(token)


class _FromFile:
    def __init__(self, path: pathlib.Path):
        try:
            import tokenizers
        except ImportError:
            allowed = "an environment with the library tokenizers (requirements.txt)"
            raise wrong("tokenizers", None, allowed) from None
        try:
            self._library = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare exceptions of its own
            raise _unfit(path, error) from None
        self._path = path
        # A file may hold the last user's truncation and padding; the length is checked here, aloud.
        self._library.no_truncation()
        self._library.no_padding()

    def encode(self, text: str) -> list[int]:
        try:
            return list(self._library.encode(text, add_special_tokens=False).ids)
        except Exception as error:  # as above: a vocabulary may lack what its model asks for
            raise _unfit(self._path, error) from None

    def id_of(self, token: str) -> int | None:
        return self._library.token_to_id(token)


def _unfit(path: pathlib.Path, error: Exception) -> ValueError:
    why = reason(error)
    return wrong(FILE, str(path), f"a tokenizer file of the checkpoint ({why})")


def load_tokenizer(folder: str | pathlib.Path, marks: Mapping[str, int]) -> Tokenizer:
    """Read the tokenizer of a checkpoint.

    Args:
      folder: holds `tokenizer.json`.
      marks: ids of the special tokens as the checkpoint's config gives them.

    Raises:
      ValueError: the file or the library is missing, or it is the tokenizer of another model.
    """
    path = pathlib.Path(folder) / FILE
    if not path.is_file():
        raise wrong(FILE, None, f"the checkpoint's own {FILE} in {folder}")
    tokenizer = _FromFile(path)
    check_tokenizer(tokenizer, marks)
    return tokenizer


def check_tokenizer(tokenizer: Tokenizer, marks: Mapping[str, int]) -> None:
    """Raise ValueError where the tokenizer knows a special token by another id."""
    for mark, token in TOKENS.items():
        if tokenizer.id_of(token) != marks[mark]:
            allowed = f"{marks[mark]} for {token}, as the checkpoint's config says"
            raise wrong(FILE, tokenizer.id_of(token), allowed)
    if tokenizer.id_of(AREA) is None:
        raise wrong(FILE, None, f"a vocabulary with {AREA}")


@dataclasses.dataclass(frozen=True)
class Rows:
    """Prompts of a batch, branch after branch.

    Attributes:
      ids: `[m * n, P]` int32; every row ends with the begin-of-image mark.
      padding: `[m * n]` int32, leading positions that hold nothing.
    """

    ids: np.ndarray
    padding: np.ndarray


def rows(
    tokenizer: Tokenizer,
    marks: Mapping[str, int],
    captions: Sequence[str],
    grid: tuple[int, int],
    *,
    branches: int,
    positive: str = "",
    negative: str = "",
    source: tuple[int, int] | None = None,
    longest: int = LONGEST,
) -> Rows:
    """Turn all captions into rows.

    Args:
      tokenizer: of the checkpoint.
      marks: ids of the special tokens.
      captions: n texts; with a source image each says once where it stands, by `<image>`.
      grid: rows and columns of tokens of the image to be made.
      branches: 1 conditional rows alone, 2 and rows of the negative prompt, 3 and between them
        rows of source image and negative prompt.
      positive: put behind every caption, after a space.
      negative: of the unconditional rows; may be empty.
      source: rows and columns of tokens of the source image; None: none.
      longest: most positions of a prompt and its image together.

    Returns:
      Rows: text, padded on the left to the longest, then the size and the begin-of-image mark, so
      that all images begin at the same slot.

    Raises:
      ValueError: a caption is empty, says `<image>` the wrong number of times or is too long, or
        three branches are asked for without a source image.
    """
    if branches == 3 and source is None:
        raise wrong("guidance_image", "above 1", "1 without a source image")
    held = [] if source is None else _image(tokenizer, marks, source)
    texts = []
    for caption in captions:
        if not caption.strip():
            raise wrong("prompt", caption, "text")
        count = caption.count(IMAGE)
        if count != (0 if source is None else 1):
            allowed = f"{IMAGE} once" if source else f"no {IMAGE} without a source image"
            raise wrong("prompt", caption, allowed)
        text = f"{caption} {positive}" if positive else caption
        before, _, after = text.partition(IMAGE)
        if source is None:
            texts.append(tokenizer.encode(text))
        else:
            texts.append(_encode(tokenizer, before) + held + _encode(tokenizer, after))
    unwanted = _encode(tokenizer, negative)
    if branches == 3:
        texts += [held + unwanted] * len(captions)
    if branches >= 2:
        texts += [unwanted] * len(captions)
    suffix = _area(tokenizer, grid) + [marks["begin_image"]]
    width = max(map(len, texts))
    room = longest - len(suffix) - grid[0] * grid[1]
    if width > room:
        which = captions[[len(t) for t in texts].index(width) % len(captions)]
        got = f"{which[:40]!r} of {width} tokens"
        raise ValueError(f"prompt: got {got}, allowed at most {room} beside this image")
    ids = [[marks["pad"]] * (width - len(text)) + text + suffix for text in texts]
    padding = [width - len(text) for text in texts]
    return Rows(np.asarray(ids, np.int32), np.asarray(padding, np.int32))


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text) if text else []


def _area(tokenizer: Tokenizer, grid: tuple[int, int]) -> list[int]:
    """The size prompt: rows and columns in tokens."""
    return tokenizer.encode(f"{AREA}{grid[0]}*{grid[1]}")


def _image(tokenizer: Tokenizer, marks: Mapping[str, int], grid: tuple[int, int]) -> list[int]:
    """A source image: its size, and placeholders between its marks."""
    inside = [marks["placeholder"]] * (grid[0] * grid[1])
    return _area(tokenizer, grid) + [marks["begin_image"], *inside, marks["end_image"]]
