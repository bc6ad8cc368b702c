"""A model ready to sample: `driftar_jax.load(workdir).sample(labels, seed)`.

The file to read first: `Generator.sample` is the whole way from a request to images.
"""

import dataclasses
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from driftar_jax import seeds
from driftar_jax.config import wrong
from driftar_jax.heads import early_stop
from driftar_jax.hosts.base import Model
from driftar_jax.sampling import batches, conditions
from driftar_jax.sampling.conditions import Request
from driftar_jax.sampling.settings import Settings, refuse_unread
from driftar_jax.storage.jsons import write_json
from driftar_jax.types import Counts, Trace

if TYPE_CHECKING:
    from PIL import Image

_SHOWN = 10  # class names in a `repr`
# AR steps that a draft model makes before the model checks them, as CSpD's demo has it.
DRAFT_STEPS = 4


@dataclasses.dataclass(frozen=True)
class Samples:
    """uint8 `images [n, H, W, C]`, what one image cost, and what was drafted, if anything was.

    `speculation` is a `batches.summary`, `gamma` or `lookahead` what was used for it, `trace` how
    the tokens came to be, if it was asked for (`traces.py` makes pictures of it); `seconds` the
    wall's, a first call's compilation included.
    """

    images: np.ndarray
    counts: Counts
    gamma: int = 0
    speculation: dict | None = None
    lookahead: int = 0
    trace: Trace | None = None
    seconds: float = 0.0

    def __repr__(self) -> str:
        n, height, width, channels = self.images.shape
        return f"<{n} images of {height}x{width}x{channels}, {self.seconds:.1f} s, {self.counts}>"

    def grid(self, columns: int | None = None) -> "Image.Image":
        """Return all images on one sheet, small ones enlarged; a notebook shows it.

        Args:
          columns: images in a row; None: as many as there are rows.
        """
        from driftar_jax.data import pictures

        scale = max(1, 64 // self.images.shape[1])
        return pictures.to_pil(pictures.grid(self.images, columns), scale)

    def save(self, folder: str | os.PathLike) -> None:
        """Write `grid.png`, `00000.png` and so on, and `counts.json`; the folder is made.

        Raises:
          OSError: it cannot be written.
        """
        from driftar_jax.data import pictures

        out = pathlib.Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(self.images):
            pictures.to_pil(image).save(out / f"{number:05d}.png")
        self.grid().save(out / "grid.png")
        facts = {"per_image": dataclasses.asdict(self.counts), "images": len(self.images)}
        if self.speculation:
            facts |= {"gamma": self.gamma, "lookahead": self.lookahead}
            facts |= {"speculation": self.speculation}
        write_json(out / "counts.json", facts | {"seconds": round(self.seconds, 3)})


@dataclasses.dataclass(frozen=True, repr=False)
class Generator:
    """A checkpoint ready to sample, whatever it reads: labels, class names, captions or prompts.

    Attributes:
      config: resolved config of its run, or of a converted checkpoint.
      model: modules, and the family of the host.
      params: averaged parameters by group; `tracker` is the entropy's, where training kept it.
      step: the training step they are from.
      manifest: facts stored beside them.
      to_pixels: makes uint8 images of the token grids; None where these are latents and no
        autoencoder was given.
      reader: makes conditions of what is asked.
      windows: what `lookahead=auto` chose, by model, settings and batch size. Kept with the
        parameters, for a window settles more with one checkpoint than with another.
    """

    config: Any
    model: Model
    params: Mapping[str, Any]
    step: int
    manifest: dict
    to_pixels: Callable[[jax.Array], jax.Array] | None = batches.as_pixels
    reader: conditions.Reader = conditions.Classes()
    windows: dict = dataclasses.field(default_factory=dict, compare=False)

    def __repr__(self) -> str:
        """Return five lines: checkpoint, images, what it takes, its size, how it samples."""
        images, settings = self.model.images, self._recommended()
        names = ", ".join(images.class_names[:_SHOWN])
        more = ", ..." if len(images.class_names) > _SHOWN else ""
        takes = [] if self.reader.takes == "classes" else [self.reader.takes]
        takes += [f"{len(images.class_names)} classes: {names}{more}"] if names else []
        sizes = {
            group: sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(tree))
            for group, tree in self.params.items()
            # Statistics of the training's entropy, which nobody would count as parameters.
            if group != "tracker"
        }
        parts = ", ".join(f"{group} {size:,}" for group, size in sizes.items())
        head = f"head evaluations a step {settings.evaluations:g}"
        shape = "x".join(map(str, images.image_shape))
        host = self.model.family.name
        return "\n".join(
            [
                f"driftar_jax model: {host}, task {self.config.task}, step {self.step}",
                f"makes       {shape}, {images.num_tokens} tokens of {images.token_dim} numbers",
                f"takes       {'; '.join(takes)}",
                f"parameters  {sum(sizes.values()):,} ({parts})",
                f"samples     method {settings.method}, AR steps {settings.ar_steps}, {head}, "
                f"guidance {settings.guidance:g}",
            ]
        )

    @seeds.fixed()
    def sample(
        self,
        labels: Sequence,
        seed: int = 0,
        *,
        batch_size: int | None = None,
        size: tuple[int, int] | None = None,
        sources: Sequence[np.ndarray] = (),
        positive: str = "",
        negative: str = "",
        trace: bool = False,
        **changes,
    ) -> Samples:
        """Generate one image per label, caption or prompt.

        Args:
          labels: n integers, classes, -1 for none; n class names; or n texts, where the host reads
            text.
          seed: 0 to 2**63 - 1; the same seed and requests give the same images. What lies beyond
            32 bits is folded into the key of the rest (`seeds.key`).
          batch_size: images per call; changes the speed, not the images. None: 256, of prompts 1.
          size: height and width, of checkpoints that make images of any size.
          sources: uint8 source images `[h, w, 3]` of one size for edits, one per prompt.
          positive, negative: put behind every prompt; what guidance leads away from.
          trace: also return tokens and entropy after every AR step; images are the same up to
            rounding, for the program is another one.
          **changes: fields of `Settings`.

        Returns:
          `Samples`.

        Raises:
          ValueError: a request or setting is out of range or is not read by this model, before any
            compilation.
        """
        seed = seeds.check_seed(seed)
        request = Request(size, sources, positive, negative)
        sized = self.sized(request)
        # Everything is refused before the first compilation: settings here, requests in the next
        # line.
        settings = sized.checked(**changes)
        if trace:
            from driftar_jax.sampling import traces  # where one is asked for

            traces.check(sized.model, settings)
        condition = sized.conditions(labels, seed, settings, request)
        settings = sized.with_draft_count(settings, condition, batch_size)
        started = time.perf_counter()
        samples = sized.collect(settings, condition, seed, batch_size, trace=trace)
        return dataclasses.replace(samples, seconds=time.perf_counter() - started)

    def sized(self, request: Request) -> "Generator":
        """Return this generator for images of the request's size."""
        return dataclasses.replace(self, model=self.reader.sized(self.model, request))

    def with_drafter(self, other: "Generator") -> "Generator":
        """Return this generator with another one that drafts AR steps for it (CSpD).

        Args:
          other: a generator of the same tokens whose host is of the same family, with its own head.

        Raises:
          ValueError: one of both cannot do it, or they make other tokens.
        """
        from driftar_jax.sampling import two_models  # of a rival alone

        return two_models.paired(self, other)

    def settings(self, **changes) -> Settings:
        """Return the sampling settings of the config, with the given fields changed.

        Raises:
          ValueError: a field that this model does not read; the early stop of the checkpoint is
            asked for, and it has no statistics.
        """
        base = self._recommended()
        refuse_unread(self.model, base, changes)
        settings = base.changed(**changes)
        self._check_stop(settings)
        return settings

    def _recommended(self) -> Settings:
        """Return what the config says of sampling; fields that older runs lack are the defaults."""
        recommended = dict(self.config.sample)
        if self.model.family.order == "raster":
            # A host that reads tokens in turn has as many steps as tokens, whatever size is asked
            # for.
            recommended["ar_steps"] = self.model.images.num_tokens
            recommended.setdefault("guidance_schedule", "constant")
        names = {field.name for field in dataclasses.fields(Settings)}
        kept = {name: value for name, value in recommended.items() if name in names}
        floats = ("guidance", "guidance_image", "temperature", "drift_scale", "delta", "shift")
        kept |= {name: float(kept[name]) for name in floats if name in kept}
        kept.setdefault("nfe_last", 1)
        return Settings(
            method="drift" if self.model.prior is not None else "own",
            guidance_form="trained" if self._learned_guidance else "extrapolate",
            stop=early_stop.TRAINED if "tracker" in self.params else 0.0,
            draft_steps=DRAFT_STEPS if self.model.drafter is not None else 0,
            **kept,
        )

    def _check_stop(self, settings: Settings) -> None:
        if settings.stop == early_stop.TRAINED and "tracker" not in self.params:
            allowed = "0 to 1 (no statistics of the entropy in this checkpoint)"
            raise wrong("stop", "auto", allowed)

    @property
    def _learned_guidance(self) -> bool:
        return self.model.decoder is not None and self.model.decoder.guidance

    def checked(self, **changes) -> Settings:
        """Return `settings` once it is sure that images can be made with them; else ValueError."""
        settings = self.settings(**changes)
        self.check(settings)
        return settings

    def check(self, settings: Settings) -> None:
        """Raise ValueError (field, value, allowed) where images cannot be made with `settings`."""
        settings.check(self.model)
        self._check_stop(settings)
        if settings.guidance_form == "trained" and settings.method == "drift":
            most = self.config.drift.guidance_max
            if settings.guidance > most:
                raise wrong("guidance", settings.guidance, f"1 to {most:g} (what was trained)")
        if self.to_pixels is None:
            allowed = "--vae=FOLDER written by convert --family=vae-kl16 (these tokens are latents)"
            raise wrong("vae", None, allowed)

    def can(self, settings: Settings) -> bool:
        """Say whether images can be made with `settings`."""
        try:
            settings.check(self.model)
        except ValueError:
            return False
        return True

    def conditions(
        self,
        subjects: Sequence,
        seed: int,
        settings: Settings | None = None,
        request: Request | None = None,
    ) -> Any:
        """Return what the model is given for a request, leaves `[n, ...]`.

        Args:
          subjects: as for `sample`; or rows of this method, where the host reads captions.
          seed: chooses among the captions of a class, of images that no model was trained on.
          settings: of the request; None: those of the config. Prompts have a row for each branch.
          request: what is asked for beside; None: nothing.

        Raises:
          ValueError: this model does not read what is asked, or it does not fit.
        """
        settings = self.settings() if settings is None else settings
        request = Request() if request is None else request
        return self.reader.conditions(self.model, settings, subjects, seed, request)

    def with_draft_count(
        self, settings: Settings, condition: Any, batch_size: int | None
    ) -> Settings:
        """Return settings with a number for `gamma` and `lookahead`: the fastest, where open."""
        if settings.drafts >= 0 and settings.lookahead >= 0:
            return settings
        from driftar_jax.sampling import draft_count, window_size

        # Measured with the batch that will run: what a draft is worth depends on its size.
        batch = min(self.batch(batch_size), batches.size(condition))
        if settings.lookahead < 0:
            key = self.model, settings, batch
            if key not in self.windows:
                choice = window_size.choose(self.model, settings, self.params, batch, condition)
                self.windows[key] = choice.settings
            return self.windows[key]
        choice = draft_count.choose(self.model, settings, self.params, batch, condition)
        return choice.settings

    def collect(
        self,
        settings: Settings,
        condition: Any,
        seed: int,
        batch_size: int | None = None,
        *,
        trace: bool = False,
    ) -> Samples:
        """Generate the images of checked settings and conditions, batch by batch."""
        parts = list(self.stream(settings, condition, seed, batch_size, trace=trace))
        images = np.concatenate([part.images for part in parts])
        counts, speculation = self.summary([part.counts for part in parts], len(images), settings)
        record = None
        if trace:
            from driftar_jax.sampling import traces

            record = traces.joined([part.trace for part in parts])
        if speculation is None:
            return Samples(images, counts, trace=record)
        return Samples(images, counts, settings.gamma, speculation, settings.lookahead, record)

    def stream(
        self,
        settings: Settings,
        condition: Any,
        seed: int,
        batch_size: int | None = None,
        numbers: Sequence[int] | None = None,
        *,
        trace: bool = False,
    ) -> Iterator[batches.Part]:
        """Generate the images of checked settings and conditions one batch after the other.

        Args:
          settings, condition: of this generator; gamma is chosen.
          seed: as for `sample`.
          batch_size: as for `sample`.
          numbers: of the images that are wanted; None: all. An image is the same whatever else is
            made, so that a request may be split, stopped and gone on with.
          trace: also how the tokens came to be; checked by `traces.check`.

        Yields:
          `batches.Part`, in the order of their numbers.
        """
        rest = {"batch_size": self.batch(batch_size), "to_pixels": self.to_pixels}
        args = self.model, settings, self.params, condition, seed
        return batches.stream(*args, numbers=numbers, trace=trace, **rest)

    def compile_ahead(
        self, settings: Settings, condition: Any, seed: int, batch_size: int | None = None
    ) -> None:
        """Compile what `stream` would run with the same arguments; no image is made."""
        rest = {"batch_size": self.batch(batch_size), "to_pixels": self.to_pixels}
        batches.compile_ahead(self.model, settings, self.params, condition, seed, **rest)

    def summary(
        self, counts: Sequence, number: int, settings: Settings
    ) -> tuple[Counts, dict | None]:
        """Return counts and speculation of `Samples`, from the parts of `number` images."""
        if settings.draft_steps:
            from driftar_jax.sampling import two_models

            passed = two_models.joined(counts, number)
            return two_models.counts(settings), two_models.summary(self.model, settings, passed)
        if not settings.speculates:
            return counts[0], None
        speculation = batches.joined(counts, number)
        return batches.drafted_counts(speculation), batches.summary(speculation)

    def batch(self, batch_size: int | None) -> int:
        """Return the images per call: what is asked for, or 256, of prompts 1."""
        if batch_size is not None:
            whole = isinstance(batch_size, int | np.integer) and not isinstance(batch_size, bool)
            if not whole or batch_size < 1:
                raise wrong("batch_size", batch_size, "a whole number of at least 1")
            return int(batch_size)
        return 1 if self.reader.takes == "prompts" else 256
