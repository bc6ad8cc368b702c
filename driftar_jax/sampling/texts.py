"""The reader of captions of a run's own vocabulary; that of free prompts is in `prompted.py`."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from driftar_jax.config import wrong
from driftar_jax.data import captions
from driftar_jax.data.pixels import patchify, to_unit_range
from driftar_jax.hosts.base import Model
from driftar_jax.sampling.conditions import NOTHING_MORE, Request, class_numbers
from driftar_jax.sampling.settings import Settings
from driftar_jax.types import Prompt


@dataclasses.dataclass(frozen=True)
class Captions:
    """Captions of a run's own vocabulary, or classes, whose captions are drawn.

    Attributes:
      book: captions and vocabulary; None for a model that nobody trained.
    """

    book: captions.Book | None
    takes = "captions"

    def sized(self, model: Model, request: Request) -> Model:
        """See `Reader.sized`."""
        sources = () if model.images.edits else request.sources
        other = dataclasses.replace(request, sources=sources)
        other.refuse("this checkpoint was trained without it")
        return model

    def texts(self, subjects: Sequence, seed: int) -> list[str] | None:
        """Return the captions that are asked for, drawn for classes."""
        if any(isinstance(a, str) for a in subjects):
            return list(subjects)
        return None if self.book is None else self.book.drawn(np.asarray(subjects, np.int32), seed)

    def conditions(self, model, settings, subjects, seed, request=NOTHING_MORE) -> Any:
        """Return rows `[n, 1 + P]` int32 of texts, of classes, or of such rows; of edits a `Prompt`
        with their source pictures, which those of the book have without being given.
        """
        if model.images.edits:
            return self._prompt(model, settings, subjects, seed, request)
        if settings.guidance_image > 1:
            allowed = "1: this checkpoint was trained without source images"
            raise wrong("guidance_image", settings.guidance_image, allowed)
        return self._rows(model, subjects, seed)

    def _rows(self, model: Model, subjects: Any, seed: int) -> np.ndarray:
        if isinstance(subjects, str):
            subjects = [subjects]
        if np.iterable(subjects) and any(isinstance(a, str) for a in subjects):
            for other in (a for a in subjects if not isinstance(a, str)):
                raise wrong("labels", other, "texts alone or classes alone")
            return self.book.rows(list(subjects))
        if getattr(subjects, "ndim", 1) == 2:
            return np.asarray(subjects, np.int32)
        labels = class_numbers(subjects, model.images)
        most = model.images.num_classes - 1
        for label in labels[(labels < -1) | (labels > most)]:
            raise wrong("labels", int(label), f"0 to {most}, or -1 for none")
        if self.book is None:
            return np.tile(captions.nothing(model.images.text), (len(labels), 1))
        return self.book.rows(self.book.drawn(labels, seed))

    def _prompt(self, model: Model, settings: Settings, subjects, seed, request: Request) -> Prompt:
        """Return rows of every branch of guidance, and the tokens of the source pictures."""
        subjects = [subjects] if isinstance(subjects, str) else subjects
        if getattr(subjects, "ndim", 1) != 1:
            # Rows alone would not say which pictures they are about.
            raise wrong("labels", f"shape {subjects.shape}", "texts or classes")
        rows, spec = self._rows(model, subjects, seed), model.images.text
        sources: Any = list(request.sources)
        if sources:
            if len(sources) != len(rows):
                raise wrong("image", f"{len(sources)} images", f"one for each of {len(rows)} texts")
            sources = [_fitted(source, model.images.image_shape) for source in sources]
        elif self.book is None:
            sources = np.zeros((len(rows), *model.images.image_shape), np.uint8)
        else:
            sources = self.book.sources_of(self.texts(subjects, seed))
        if sources is None:
            raise wrong("image", None, "a source picture for each text: this run makes edits")
        branches = [rows]
        if settings.branches > 2:
            branches.append(np.broadcast_to(captions.source_alone(spec), rows.shape))
        if settings.branches > 1:
            branches.append(np.broadcast_to(captions.nothing(spec), rows.shape))
        tokens = patchify(to_unit_range(jnp.asarray(np.stack(sources))), model.images.patch_size)
        return Prompt(np.stack(branches, axis=1), np.asarray(tokens))

    def unknown(self, texts: Sequence[str]) -> list[str]:
        """Return the words that no caption of the training set has; they are drawn as any other."""
        return self.book.unknown(texts)

    def of_real(self, model, labels: np.ndarray, captions: Sequence[str] | None) -> np.ndarray:
        """Return rows of the captions."""
        if model.images.edits:
            raise wrong("workdir", "a run on pairs", "runs without source pictures")
        return self.book.rows(captions)

    def trial(self, model: Model, settings: Settings, number: int) -> np.ndarray:
        """Return captions of the classes in turn."""
        return self.conditions(model, settings, np.arange(number) % model.images.num_classes, 0)


def _fitted(source: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Return a source picture `[h, w, 3]` as training would have read it, uint8 of `shape`."""
    from driftar_jax.data import images  # of edits alone

    return images.fitted(source, channels=shape[2], size=shape[0])
