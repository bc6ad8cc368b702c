"""What images are asked for, as a model reads it: classes here, captions in `texts.py`, prompts of
converted checkpoints in `prompted.py`.

Each kind of checkpoint has one reader; the other kinds' requests are refused by it in one line.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from driftar_jax.config import wrong
from driftar_jax.hosts.base import ImageSpec, Model
from driftar_jax.sampling.settings import Settings


@dataclasses.dataclass(frozen=True)
class Request:
    """What may be asked for beside the labels or texts.

    Attributes:
      size: height and width of the images in pixels; None: those of the model.
      sources: uint8 source images `[h, w, 3]` of one size, one for each text.
      positive: put behind every prompt.
      negative: prompt that guidance leads away from.
    """

    size: tuple[int, int] | None = None
    sources: Sequence[np.ndarray] = ()
    positive: str = ""
    negative: str = ""

    def refuse(self, why: str) -> None:
        """Raise ValueError where anything is asked for; `why` says why it is not read."""
        height = self.size and self.size[0]
        images = f"{len(self.sources)} images" if len(self.sources) else None
        for name, value in (
            ("height", height),
            ("image", images),
            ("positive", self.positive),
            ("negative", self.negative),
        ):
            if value:
                raise wrong(name, value, f"none: {why}")


NOTHING_MORE = Request()


class Reader(Protocol):
    """Makes conditions of what is asked.

    Attributes:
      takes: `classes`, `captions` (and classes, whose captions are drawn) or `prompts`.
    """

    takes: str

    def sized(self, model: Model, request: Request) -> Model:
        """Return the model for images of the request's size, refusing what is not read."""

    def texts(self, subjects: Sequence, seed: int) -> list[str] | None:
        """Return the texts that are asked for, drawn for classes; None where none are read."""

    def conditions(
        self, model: Model, settings: Settings, subjects: Any, seed: int, request: Request
    ) -> Any:
        """Return conditions, leaves `[n, ...]`; ValueError (field, value, allowed) if none fit."""

    def of_real(self, model: Model, labels: np.ndarray, captions: Sequence[str] | None) -> Any:
        """Return the conditions of real images: their classes `[n]`, or their captions."""

    def trial(self, model: Model, settings: Settings, number: int) -> Any:
        """Return `number` conditions to time with."""


@dataclasses.dataclass(frozen=True)
class Classes:
    """Class numbers or names."""

    takes = "classes"

    def sized(self, model: Model, request: Request) -> Model:
        """See `Reader.sized`."""
        request.refuse("this checkpoint makes images of classes, of one size")
        return model

    def texts(self, subjects: Sequence, seed: int) -> None:
        """Return None: no text is read."""

    def conditions(self, model, settings, subjects, seed, request=NOTHING_MORE) -> np.ndarray:
        """Return `[n]` int32 of class numbers, -1 for none, or names of classes."""
        return class_numbers(subjects, model.images)

    def of_real(self, model, labels: np.ndarray, captions: Sequence[str] | None) -> np.ndarray:
        """Return the classes."""
        return labels

    def trial(self, model: Model, settings: Settings, number: int) -> np.ndarray:
        """Return the classes in turn."""
        return np.arange(number, dtype=np.int32) % model.images.num_classes


def class_numbers(subjects: Sequence, images: ImageSpec) -> np.ndarray:
    """Return `[n]` int32 of numbers and names.

    Raises:
      ValueError: a name that no class has (the nearest one is offered), no whole number, or no
        list of them.
    """
    # One name is no list of letters.
    subjects = [subjects] if isinstance(subjects, str) else subjects
    try:
        array = np.asarray(subjects)
    except ValueError:  # lists of several lengths
        raise wrong("labels", subjects, "a list of classes") from None
    if array.ndim != 1:
        raise wrong("labels", subjects, "a list of classes")
    # What lies beyond 32 bits would come out as another class.
    if array.dtype.kind in "iu" and np.array_equal(array, array.astype(np.int32)):
        return array.astype(np.int32)  # their range is the family's business
    from driftar_jax.data import labels  # of names alone

    return np.asarray(labels.numbers(list(subjects), images.class_names), np.int32)
