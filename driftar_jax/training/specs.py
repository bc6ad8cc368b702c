"""The `ImageSpec` of a config: from its data, or assumed where latents lie on another machine.

A checkpoint has its spec in its manifest; that one is read where checkpoints are.
"""

from typing import Any

from driftar_jax.config import CONVERTED, wrong
from driftar_jax.data import captions, is_latents
from driftar_jax.data.pipeline import open_data
from driftar_jax.model import ImageSpec
from driftar_jax.storage import hub
from driftar_jax.storage.checkpoints import read_config

# What a class-conditional set of latents is taken for: KL-16's channels, the classes of ImageNet.
LATENT_CHANNELS, LATENT_CLASSES = 16, 1000

# And the words of captions: those of the released 14B host, with the seven ids of a size prompt
# such as `16*16`.
_WORDS, _SIZE_PROMPT = 152064, 7


def image_spec(settings: Any) -> ImageSpec:
    """Build the spec of a checked config; a set of latents is assumed, not opened.

    Raises:
      ValueError, OSError: the data cannot be opened, or its captions do not fit; one line.
    """
    if not is_latents(settings.data.name):
        source = open_data(settings, "train")
        return of_source(settings, source, fit_text(settings, source))
    side = settings.data.image_size
    return ImageSpec(
        image_shape=(side, side, LATENT_CHANNELS),
        class_names=tuple(str(k) for k in range(LATENT_CLASSES)),
        patch_size=settings.data.patch_size,
        text=_assumed_text(settings.text.length) if "text" in settings else None,
    )


def of_source(settings: Any, source: Any, fitted: captions.Fitted | None) -> ImageSpec:
    """Build the spec of an open image set; `fitted` is of `fit_text`."""
    return ImageSpec(
        image_shape=tuple(source.image_shape),
        class_names=tuple(source.class_names),
        patch_size=settings.data.patch_size,
        text=fitted and fitted.spec,
    )


def fit_text(settings: Any, source: Any) -> captions.Fitted | None:
    """Fit vocabulary and rows to the captions, for hosts that read text; None for others.

    A run that starts from a converted checkpoint speaks its language: the host's embedding is
    bound to it.

    Raises:
      ValueError: the set has no captions, or too long ones; or source pictures, which nobody reads.
    """
    edits = getattr(source, "originals", None) is not None
    if "text" not in settings:
        if edits:
            allowed = "a set without source pictures: hosts of text alone learn edits"
            raise wrong("data.name", settings.data.name, allowed)
        return None
    side = settings.data.image_size // settings.data.patch_size
    texts = getattr(source, "captions", None)
    grid, length = (side, side), settings.text.length
    inherited = _inherited(settings.init_from)
    return captions.fit(settings.data.name, texts, grid, length, inherited, edits=edits)


def _inherited(init_from: str) -> captions.Inherited | None:
    """Return the vocabulary of a converted checkpoint; None where `init_from` is none."""
    if not init_from:
        return None
    try:
        folder = hub.local(init_from)
        config = read_config(folder)
    except ValueError:  # said where its weights are read
        return None
    if config.get("task") != CONVERTED:
        return None
    return captions.read_inherited(folder, config["host"]["vocab_size"])


def _assumed_text(length: int) -> captions.TextSpec:
    marks = dict(pad=0, unknown=1, end_image=2, placeholder=3)
    return captions.TextSpec(_WORDS, length, **marks, suffix=tuple(range(_SIZE_PROMPT)))
