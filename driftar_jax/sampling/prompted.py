"""The reader of a converted checkpoint: prompts, and source images for edits."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from driftar_jax import seeds
from driftar_jax.config import wrong
from driftar_jax.data import captions, prompts
from driftar_jax.data.pixels import patchify, to_unit_range
from driftar_jax.heads import randomness
from driftar_jax.hosts.base import Model
from driftar_jax.sampling.conditions import NOTHING_MORE, Request
from driftar_jax.sampling.settings import Settings
from driftar_jax.types import Prompt

# Seeds of source latents, apart from those of tokens.
_SOURCE = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Prompts of a converted checkpoint, and source images for edits.

    Attributes:
      tokenizer: of the checkpoint.
      marks: ids of its special tokens.
      vae: the autoencoder; `vae_params` its parameters.
      longest: most positions of a prompt and its image together.
      book: captions that classes are asked by, of a run that the checkpoint is compared with; None:
        it takes no classes.
    """

    tokenizer: prompts.Tokenizer
    marks: dict[str, int]
    vae: Any
    vae_params: dict
    longest: int = prompts.LONGEST
    book: captions.Book | None = None
    takes = "prompts"

    def sized(self, model: Model, request: Request) -> Model:
        """See `Reader.sized`."""
        if request.size is None:
            return model
        images, side = model.images, self._side(model)
        for name, value in zip(("height", "width"), request.size, strict=True):
            if value < side or value % side:
                raise wrong(name, value, f"a multiple of {side}")
        height, width = (pixels // self.vae.factor for pixels in request.size)
        images = dataclasses.replace(images, image_shape=(height, width, images.image_shape[2]))
        # The prompt needs room as well; how much is known only once it is cut into ids, and checked
        # there.
        if images.num_tokens >= self.longest:
            allowed = f"an image of fewer than {self.longest} tokens"
            raise wrong("height", request.size[0], allowed)
        return dataclasses.replace(model, images=images)

    def _side(self, model: Model) -> int:
        """Pixels that a token stands for, per side: sides of images are multiples of it."""
        return self.vae.factor * model.images.patch_size

    def texts(self, subjects: Sequence, seed: int) -> list[str]:
        """Return the prompts, drawn from the book for classes."""
        if self.book is None or any(isinstance(a, str) for a in subjects):
            return list(subjects)
        return self.book.drawn(np.asarray(subjects, np.int32), seed)

    def conditions(self, model, settings, subjects, seed, request=NOTHING_MORE) -> Prompt:
        """Return a `Prompt` whose rows hold every branch of guidance."""
        if isinstance(subjects, str) or not np.iterable(subjects):
            subjects = [subjects]
        if not (texts := self.texts(subjects, seed)):
            raise wrong("prompt", None, "at least one text")
        for text in texts:
            if not isinstance(text, str):
                raise wrong("labels", text, "none: this checkpoint takes prompts, by --prompt")
        sources, side = list(request.sources), self._side(model)
        self._check_sources(sources, len(texts), side)
        source = tuple(n // side for n in sources[0].shape[:2]) if sources else None
        rows = self._rows(
            model,
            texts,
            branches=settings.branches,
            positive=request.positive,
            negative=request.negative,
            source=source,
        )
        return Prompt(rows, self._encode(model, sources, seed) if sources else None)

    def _rows(self, model: Model, texts: Sequence[str], *, branches: int, **beside) -> np.ndarray:
        """Return `Prompt.rows` of the texts; `beside` as for `prompts.rows`."""
        rows = prompts.rows(
            self.tokenizer,
            self.marks,
            texts,
            model.images.grid,
            branches=branches,
            longest=self.longest,
            **beside,
        )
        # Rows come branch after branch; batches are cut from images, with all branches of each.
        padded = np.concatenate([rows.padding[:, None], rows.ids], axis=1)
        return np.moveaxis(padded.reshape(branches, len(texts), -1), 1, 0)

    def _check_sources(self, sources: list[np.ndarray], number: int, side: int) -> None:
        if not sources:
            return
        if len(sources) != number:
            raise wrong("image", f"{len(sources)} images", f"one for each of {number} prompts")
        sizes = {source.shape[:2] for source in sources}
        if len(sizes) > 1:
            got = ", ".join(f"{h}x{w}" for h, w in sorted(sizes))
            raise ValueError(f"image: got sizes {got}, allowed one size for all source images")
        for pixels in sources[0].shape[:2]:
            if pixels % side:
                raise wrong("image", f"a side of {pixels}", f"sides that {side} divides")

    def _encode(self, model: Model, sources: list[np.ndarray], seed: int) -> np.ndarray:
        """Return tokens `[n, M, C]` of source images, encoded one at a time."""
        patch = model.images.patch_size
        # One at a time: the activations of an encoder are much larger than what it returns.
        each = [
            _source_tokens(
                self.vae, patch, self.vae_params, source[None], np.int32([i]), seeds.argument(seed)
            )
            for i, source in enumerate(sources)
        ]
        return np.concatenate([np.asarray(tokens) for tokens in each])

    def of_real(self, model, labels: np.ndarray, captions: Sequence[str] | None) -> Prompt:
        """Return prompts of the captions, without the branches of guidance."""
        rows = self._rows(model, captions, branches=1)
        return Prompt(rows=rows)

    def trial(self, model: Model, settings: Settings, number: int) -> Prompt:
        """Return one prompt, so many times."""
        return self.conditions(model, settings, ["a photo"] * number, 0)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _source_tokens(vae: Any, patch: int, params, pixels, index, seed):
    moments = vae.apply({"params": params}, to_unit_range(pixels), method="encode")
    keys = randomness.image_keys(seed, index)
    shape = moments.shape[1:3] + (vae.latent_channels,)
    # A stream of its own: the image's key also makes the noise of what is generated.
    fold = lambda k: jax.random.fold_in(k, _SOURCE)  # noqa: E731
    noise = jax.vmap(lambda k: jax.random.normal(fold(k), shape, jnp.float32))(keys)
    return patchify(vae.latents(moments, noise), patch).astype(jnp.float32)
