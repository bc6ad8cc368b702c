"""The frozen pytrees that cross rooms. No logic lives here.

Letters, everywhere: `B` batch, `N` tokens, `C` token channels, `D` width, `H` heads, `Q` query rows
of a chunk, `G` draws per context, `P`/`M` positives/negatives, `T` AR steps.
"""

import dataclasses
from collections.abc import Mapping

import flax.struct
import jax


@dataclasses.dataclass(frozen=True)
class TextSpec:
    """What the captions of a set decide of a host.

    Attributes:
      vocab_size: rows of the embedding.
      length: most words of a caption; rows are padded on the left to it.
      pad, unknown, end_image, placeholder: ids of special tokens.
      suffix: ids behind every caption: the size of the image and the begin-of-image mark.
      source: image tokens of the source picture that every caption holds; `length` has room for
        them and their marks. 0: captions are words alone.
    """

    vocab_size: int
    length: int
    pad: int
    unknown: int
    end_image: int
    placeholder: int
    suffix: tuple[int, ...]
    source: int = 0

    @property
    def prompt(self) -> int:
        """Return P, the positions before the first image token."""
        return self.length + len(self.suffix)

    @property
    def marks(self) -> dict[str, int]:
        """Return the ids of special tokens as `prompts.rows` asks for them."""
        named = {mark: getattr(self, mark) for mark in ("pad", "end_image", "placeholder")}
        return named | {"begin_image": self.suffix[-1]}

    @property
    def source_ids(self) -> tuple[int, ...]:
        """Return the ids of a source picture: its size, and placeholders between its marks.

        It is as large as the image to be made, so its size and first mark are those of `suffix`.
        """
        return (*self.suffix, *[self.placeholder] * self.source, self.end_image)

    def as_json(self) -> dict:
        """Make a record for a manifest; `from_json` reads it."""
        facts = {**dataclasses.asdict(self), "suffix": list(self.suffix)}
        # Runs without source pictures keep the record that they always had.
        return facts if self.source else {k: v for k, v in facts.items() if k != "source"}

    @classmethod
    def from_json(cls, facts: Mapping) -> "TextSpec":
        """Read what `as_json` gave."""
        return cls(**{**facts, "suffix": tuple(facts["suffix"])})


@flax.struct.dataclass
class Encoding:
    """What one backbone call returns, all of it from one forward.

    Attributes:
      z: `[B, N, D]` floating; features that condition the head.
      entropy: `[B, N]` float32 in [0, 1]; Eq. 4, of the same call's own attention.
    """

    z: jax.Array
    entropy: jax.Array


@flax.struct.dataclass
class Hole:
    """What stands around a hole of one image: tokens known from the start, of a whole batch.

    Attributes:
      tokens: `[N, C]` float32; unknown ones hold anything.
      known: `[N]` bool.
      unknown: how many are not known; static, for it decides the sizes of the AR steps.
    """

    tokens: jax.Array
    known: jax.Array
    unknown: int = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class Prompt:
    """Conditions of a host that reads prompts: what each branch of guidance reads.

    Attributes:
      rows: `[B, m, 1 + P]` int32 rows as of captions: conditional, image only (of three), none.
      sources: `[B, M, C]` tokens of source images at the placeholders of `rows`; None: none.
    """

    rows: jax.Array
    sources: jax.Array | None = None


@flax.struct.dataclass
class Trace:
    """How the tokens of a batch came to be; a second output of the program that made them.

    Attributes:
      tokens: `[B, N, C]` float32; none changes once it is made.
      turn: `[B, N]` int32; the backbone call that made each token, from 0; -1 where it was given.
      entropy: float32; `[B, T, N]`, of every token in every AR step, where the host sees the whole
        grid; else `[B, 1, N]`, of each token when it was made.
    """

    tokens: jax.Array
    turn: jax.Array
    entropy: jax.Array


@flax.struct.dataclass
class Counts:
    """What generating a batch cost, per image.

    Attributes:
      backbone_calls: int32 scalar; forwards of the backbone (a guided one counts once). A float
        where images share them.
      head_evaluations: int32 scalar; sequential evaluations of the head or decoder.
      draft_calls: int32 scalar; forwards of the draft head, or of a draft model.
      backbone_rows: int32 scalar; rows per image summed over backbone calls (two when guided).
    """

    backbone_calls: jax.Array
    head_evaluations: jax.Array
    draft_calls: jax.Array
    backbone_rows: jax.Array


@flax.struct.dataclass
class Speculation:
    """What generating a batch speculatively cost, and what was accepted.

    An image pays for the rounds it needs, the batch for those of its slowest image. A draft is a
    head evaluation as well as a draft call; a guided forward counts once.

    Attributes:
      backbone_calls, draft_calls, head_evaluations: `[B]` int32, per image.
      batch_calls, batch_draft_calls: int32 scalars; of the whole batch.
      batch_rows: int32 scalar; rows per image summed over the batch's backbone calls.
      lengths: `[B, gamma + 1]` int32; rounds by their number of accepted groups.
      judged, accepted: `[B, bins]` int32; tokens by the target's entropy, equal bins of [0, 1].
    """

    backbone_calls: jax.Array
    draft_calls: jax.Array
    head_evaluations: jax.Array
    batch_calls: jax.Array
    batch_draft_calls: jax.Array
    batch_rows: jax.Array
    lengths: jax.Array
    judged: jax.Array
    accepted: jax.Array
