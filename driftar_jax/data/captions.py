"""Captions of an image set as a text host reads them: a vocabulary, and rows of ids.

The vocabulary is made from the training captions and kept in the workdir as `tokenizer.json`, in
the format of the library `tokenizers`: whole words for sets that TFDS prepares, the embedded ones
among them, which this file reads without that library, and pieces of words for one's
own.
"""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from driftar_jax.config import wrong
from driftar_jax.data import OWN, prompts
from driftar_jax.storage import jsons
from driftar_jax.storage.reasons import reason
from driftar_jax.types import TextSpec

UNKNOWN = "[UNK]"
_SPECIAL = (prompts.TOKENS["pad"], UNKNOWN, prompts.AREA) + tuple(
    prompts.TOKENS[mark] for mark in ("begin_image", "end_image", "placeholder")
)
# What a size prompt such as `8*8` consists of.
_OF_SIZES = tuple("0123456789*")
_WORDS = re.compile(r"\d|[^\W\d]+|[^\w\s]+")


def vocabulary_of(captions: Sequence[str]) -> dict:
    """Make a `tokenizer.json` for these captions; the same whatever their order.

    Special tokens come first, then what sizes are written with, then words, the frequent first.
    """
    counts = collections.Counter(word for text in captions for word in _words(text.lower()))
    # Ties by the alphabet: the ids, and with them the checkpoint, must not depend on the captions'
    # order.
    words = sorted(counts.keys() - set(_OF_SIZES), key=lambda word: (-counts[word], word))
    vocabulary = {word: i for i, word in enumerate((*_SPECIAL, *_OF_SIZES, *words))}
    added = [
        {
            "id": vocabulary[token],
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token in _SPECIAL
    ]
    cut = [{"type": "Whitespace"}, {"type": "Digits", "individual_digits": True}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": cut},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": UNKNOWN},
    }


def _words(text: str) -> list[str]:
    return _WORDS.findall(text)


class WordTokenizer:
    """A `prompts.Tokenizer` of whole words; ids as the library gives for the same file."""

    def __init__(self, file: Mapping):
        """Of `vocabulary_of`; raises ValueError or KeyError where it is of another kind."""
        model = file["model"]
        if model["type"] != "WordLevel":
            raise ValueError(f"model: got {model['type']!r}, allowed 'WordLevel'")
        self.vocabulary: dict[str, int] = model["vocab"]
        ids = list(self.vocabulary.values())
        if not all(type(i) is int for i in ids) or sorted(ids) != list(range(len(ids))):
            raise ValueError("the words are not numbered from 0 on")
        self.unknown = self.vocabulary[UNKNOWN]
        self._special = re.compile("(" + "|".join(map(re.escape, _SPECIAL)) + ")")

    def encode(self, text: str) -> list[int]:
        """See `prompts.Tokenizer`; words that no caption has become `[UNK]`."""
        ids = []
        # A group in the pattern keeps the special tokens among the parts; they are not put into
        # lower case.
        for part in self._special.split(text):
            words = [part] if part in _SPECIAL else _words(part.lower())
            ids += [self.vocabulary.get(word, self.unknown) for word in words]
        return ids

    def id_of(self, token: str) -> int | None:
        """See `prompts.Tokenizer`."""
        return self.vocabulary.get(token)


Vocabulary = WordTokenizer | prompts.SubwordTokenizer


def tokenizer_of(file: Mapping) -> Vocabulary:
    """Read the tokenizer of a `tokenizer.json`; ValueError or LookupError where it is none."""
    kinds = {"WordLevel": WordTokenizer, "BPE": prompts.SubwordTokenizer}
    kind = file["model"]["type"]
    if kind not in kinds:
        raise ValueError(f"model: got {str(kind)[:40]!r}, allowed {' | '.join(kinds)}")
    return kinds[kind](file)


def read_tokenizer(folder: str | pathlib.Path, spec: TextSpec) -> Vocabulary:
    """Read the tokenizer of a run.

    Raises:
      ValueError: the file is missing, damaged or another run's.
    """
    path = pathlib.Path(folder) / prompts.FILE
    if not path.is_file():
        raise wrong(prompts.FILE, None, f"the run's own {prompts.FILE} in {folder}")
    try:
        tokenizer = tokenizer_of(jsons.parse(path.read_bytes()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        why = reason(error)
        raise wrong(prompts.FILE, str(path), f"the file that the run wrote ({why})") from None
    words = len(tokenizer.vocabulary)
    # The table of a converted checkpoint has more rows than its tokenizer has pieces.
    if words > spec.vocab_size or (
        isinstance(tokenizer, WordTokenizer) and words < spec.vocab_size
    ):
        allowed = f"{spec.vocab_size} words, as the run has them"
        raise wrong(prompts.FILE, f"{len(tokenizer.vocabulary)} words", allowed)
    prompts.check_tokenizer(tokenizer, spec.marks)
    return tokenizer


def spec_of(
    tokenizer: Vocabulary,
    grid: tuple[int, int],
    length: int,
    rows: int | None = None,
    *,
    edits: bool = False,
) -> TextSpec:
    """Return what a vocabulary, a grid of image tokens and a room for words make of a host.

    `rows` of the embedding, where it has more than the vocabulary has words. With `edits` captions
    hold a source picture as well, beside as many words.
    """
    marks = {mark: tokenizer.id_of(token) for mark, token in prompts.TOKENS.items()}
    size = tokenizer.encode(f"{prompts.AREA}{grid[0]}*{grid[1]}")
    spec = TextSpec(
        vocab_size=len(tokenizer.vocabulary) if rows is None else rows,
        length=length,
        pad=marks["pad"],
        # Pieces of words leave nothing unknown, and have no mark for it.
        unknown=marks["pad"] if (unknown := tokenizer.id_of(UNKNOWN)) is None else unknown,
        end_image=marks["end_image"],
        placeholder=marks["placeholder"],
        suffix=(*size, marks["begin_image"]),
        source=grid[0] * grid[1] if edits else 0,
    )
    return dataclasses.replace(spec, length=length + len(spec.source_ids)) if edits else spec


def rows(
    tokenizer: prompts.Tokenizer, spec: TextSpec, captions: Sequence[str], grid: tuple[int, int]
) -> np.ndarray:
    """Turn captions into the conditions of images, all of one length.

    Args:
      tokenizer, spec: of the run.
      captions: n texts.
      grid: rows and columns of image tokens.

    Returns:
      `[n, 1 + P]` int32: how many leading positions hold nothing, then the ids.

    Raises:
      ValueError: a caption is empty, has more than `spec.length` words or none that is known.
    """
    longest = spec.prompt + grid[0] * grid[1]
    source = None
    if spec.source:
        source = grid
        captions = [placed(caption) for caption in captions]
    prompt = prompts.rows(
        tokenizer, spec.marks, captions, grid, branches=1, source=source, longest=longest
    )
    more = spec.prompt - prompt.ids.shape[1]
    # Padded on the left to the run's own length: all prompts have one shape, and images begin at
    # one slot.
    ids = np.pad(prompt.ids, ((0, 0), (more, 0)), constant_values=spec.pad)
    said = (ids[:, : spec.length] != spec.unknown) & (ids[:, : spec.length] != spec.pad)
    # The ids of a source picture are no words.
    for caption, known in zip(captions, said.sum(axis=1) > len(_source(spec)), strict=True):
        if not known:
            raise wrong("prompt", caption, "at least one word of the training captions")
    return np.concatenate([prompt.padding[:, None] + more, ids], axis=1, dtype=np.int32)


def placed(caption: str) -> str:
    """Return the text of an edit, which begins with its source picture unless it says where."""
    return caption if prompts.IMAGE in caption else f"{prompts.IMAGE} {caption}"


def _source(spec: TextSpec) -> tuple[int, ...]:
    return spec.source_ids if spec.source else ()


def nothing(spec: TextSpec) -> np.ndarray:
    """Return the row `[1 + P]` int32 of an image without a caption."""
    return np.asarray([spec.length, *[spec.pad] * spec.length, *spec.suffix], np.int32)


def source_alone(spec: TextSpec) -> np.ndarray:
    """Return the row `[1 + P]` int32 of an edit without words, of captions that hold a source."""
    padding = spec.length - len(spec.source_ids)
    ids = (*[spec.pad] * padding, *spec.source_ids, *spec.suffix)
    return np.asarray([padding, *ids], np.int32)


@dataclasses.dataclass(frozen=True)
class Book:
    """Captions to draw from, by class, and the means to read new ones.

    Attributes:
      tokenizer, spec, grid: as for `rows`.
      by_class: texts of each class, none of them empty.
      sources: uint8 `[K, H, W, C]`, the source picture of each text of the only class, where the
        texts are edits; None: they are not.
    """

    tokenizer: Vocabulary
    spec: TextSpec
    grid: tuple[int, int]
    by_class: tuple[tuple[str, ...], ...]
    sources: np.ndarray | None = None

    def known_words(self) -> list[str] | None:
        """List the captions' words, the frequent first; None where pieces of words are read."""
        if not isinstance(self.tokenizer, WordTokenizer):
            return None
        return [word for word in self.tokenizer.vocabulary if word.isalpha()]

    def drawn(self, labels: np.ndarray, seed: int) -> list[str]:
        """Draw a caption for each class of `labels [n]`; "" for -1.

        Caption i depends on `seed`, i and its class alone, so that methods that are compared are
        asked the same.
        """
        # A stream of its own: the same seed draws labels elsewhere, and captions must not follow
        # them.
        draws = np.random.default_rng([seed, 7]).random(len(labels))
        return [
            "" if label < 0 else self.by_class[label][int(u * len(self.by_class[label]))]
            for label, u in zip(np.asarray(labels).tolist(), draws, strict=True)
        ]

    def sources_of(self, captions: Sequence[str]) -> np.ndarray | None:
        """Return the source pictures `[n, H, W, C]` of edits of the book; None if one is not in it.

        A text that several pictures share stands for each of them in turn, "" for any.
        """
        if self.sources is None:
            return None
        places: dict[str, list[int]] = {"": [0]}
        for place, text in enumerate(text for texts in self.by_class for text in texts):
            places.setdefault(text, []).append(place)
        if not places.keys() >= set(captions):
            return None
        turns = collections.Counter()
        chosen = []
        for text in captions:
            chosen.append(places[text][turns[text] % len(places[text])])
            turns[text] += 1
        return self.sources[chosen]

    def unknown(self, captions: Sequence[str]) -> list[str]:
        """List the words that the vocabulary does not have, each once; pieces of words know them
        all.
        """
        if not isinstance(self.tokenizer, WordTokenizer):
            return []
        words = dict.fromkeys(w for text in captions for w in _words(_said(text).lower()))
        return [word for word in words if self.tokenizer.encode(word) == [self.tokenizer.unknown]]

    def rows(self, captions: Sequence[str]) -> np.ndarray:
        """Return conditions `[n, 1 + P]` of captions; "" is none.

        Raises:
          ValueError: as `rows`.
        """
        table = np.tile(nothing(self.spec), (len(captions), 1))
        said = [i for i, caption in enumerate(captions) if caption]
        if said:
            table[said] = rows(self.tokenizer, self.spec, [captions[i] for i in said], self.grid)
        return table


# Captions by class, beside `tokenizer.json`.
FILE = "captions.json"
# And the source pictures of edits, in their order.
SOURCES = "sources.npz"


def by_class(
    captions: Sequence[str], labels: np.ndarray, num_classes: int
) -> tuple[tuple[str, ...], ...]:
    """Return each class's different captions in the order of the alphabet."""
    of_class: list[set[str]] = [set() for _ in range(num_classes)]
    for caption, label in zip(captions, np.asarray(labels).tolist(), strict=True):
        of_class[label].add(caption)
    return tuple(tuple(sorted(texts)) for texts in of_class)


def read_book(folder: str | pathlib.Path, spec: TextSpec, grid: tuple[int, int]) -> Book:
    """Read the tokenizer and the captions of a run.

    Raises:
      ValueError: a file is missing or damaged.
    """
    tokenizer, path = read_tokenizer(folder, spec), pathlib.Path(folder) / FILE
    try:
        texts = jsons.parse(path.read_bytes())
        if not isinstance(texts, list) or not all(map(_captions, texts)):
            raise ValueError("no list of captions for each class")
    except (OSError, ValueError) as error:
        why = reason(error)
        raise wrong(FILE, str(path), f"the file that the run wrote ({why})") from None
    count = sum(map(len, texts))
    sources = _read_sources(path.with_name(SOURCES), count) if spec.source else None
    return Book(tokenizer, spec, grid, tuple(map(tuple, texts)), sources)


def _read_sources(path: pathlib.Path, count: int) -> np.ndarray:
    from driftar_jax.data import npz  # of edits alone

    try:
        (sources,) = npz.read(path, ["sources"])
        if sources.dtype != np.uint8 or sources.ndim != 4 or len(sources) != count:
            raise ValueError(f"{sources.dtype} {list(sources.shape)} for {count} texts")
    except Exception as error:  # of whatever kind a damaged archive makes
        allowed = f"the file that the run wrote ({reason(error)})"
        raise wrong(SOURCES, str(path), allowed) from None
    return sources


def write_sources(folder: str | pathlib.Path, sources: np.ndarray) -> None:
    """Write the source pictures `[K, H, W, C]` that `read_book` reads, uint8."""
    np.savez(pathlib.Path(folder) / SOURCES, sources=sources)


def _captions(group) -> bool:
    """Whether these are captions of a class, at least one."""
    return isinstance(group, list) and bool(group) and all(isinstance(t, str) for t in group)


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What the captions of a training split make: `tokenizer.json`, ids, a row for each image."""

    tokenizer: dict
    spec: TextSpec
    rows: np.ndarray


def fresh_vocabulary(name: str, captions: Sequence[str]) -> dict:
    """Make a `tokenizer.json` for the captions of a set."""
    captions = [_said(caption) for caption in captions]
    if name.startswith(OWN):
        return prompts.subwords_of(captions, _SPECIAL)
    return vocabulary_of(captions)


def longest_of(tokenizer: Vocabulary, captions: Sequence[str]) -> int:
    """Count the ids of the longest caption."""
    return max(len(tokenizer.encode(_said(caption))) for caption in captions)


def _said(caption: str) -> str:
    """Return the words of a caption, without the mark of its source picture."""
    return caption.replace(prompts.IMAGE, " ")


@dataclasses.dataclass(frozen=True)
class Inherited:
    """Hold the vocabulary of a converted checkpoint that a run starts from.

    Attributes:
      file: its `tokenizer.json`.
      rows: of its embedding.
    """

    file: dict
    rows: int


def read_inherited(folder: str | pathlib.Path, rows: int) -> Inherited:
    """Read the vocabulary of a converted checkpoint; ValueError where it has none."""
    path = pathlib.Path(folder) / prompts.FILE
    if not path.is_file():
        raise wrong(prompts.FILE, None, f"the checkpoint's own {prompts.FILE} in {folder}")
    return Inherited(jsons.parse(path.read_bytes()), rows)


def fit(
    name: str,
    captions: Sequence[str] | None,
    grid: tuple[int, int],
    length: int,
    inherited: Inherited | None = None,
    *,
    edits: bool = False,
) -> Fitted:
    """Return vocabulary and rows of a training split.

    Args:
      name: of the set.
      captions: one for each image; None: the set has none.
      grid: rows and columns of image tokens.
      length: most words of a caption.
      inherited: vocabulary to use; None: one is made of the captions.
      edits: the captions are those of source pictures.

    Raises:
      ValueError: the set has no captions, or one that is empty or too long.
    """
    if captions is None:
        raise wrong("data.name", name, "a set with captions, such as emoji32")
    if empty := [i for i, caption in enumerate(captions) if not caption.strip()]:
        more = f" and {len(empty) - 1} others" if len(empty) > 1 else ""
        raise wrong("data.name", name, f"a caption for every image (image {empty[0]}{more}: none)")
    file = fresh_vocabulary(name, captions) if inherited is None else inherited.file
    tokenizer = tokenizer_of(file)
    longest = longest_of(tokenizer, captions)
    if longest > length:
        raise wrong("text.length", length, f"at least {longest} (words of the longest caption)")
    spec = spec_of(tokenizer, grid, length, inherited and inherited.rows, edits=edits)
    return Fitted(file, spec, rows(tokenizer, spec, captions, grid))
