"""Sizes that a config leaves to one's own pictures: the fields that are 0 in a config `:own`."""

from typing import Any

from driftar_jax.config import wrong
from driftar_jax.data import OWN, captions, pipeline

# In pixels a token is at most 8x8: larger pictures want an autoencoder.
LARGEST, _PATCH, _GRID = 64, 8, 8
_BATCH = 64
# Ids of a caption: room for prompts that are longer than any caption, or of rarer words.
_ROOM, _LONGEST = 32, 128


def fit(settings: Any) -> list[str]:
    """Fill in the sizes that are 0, from the training pictures and their captions.

    Pictures that all have one square size up to 64 keep it; others become the largest multiple of 8
    up to 64 that the short side of the smallest holds. Tokens are at most 8 x 8 a picture.

    Args:
      settings: a config with `data`; changed.

    Returns:
      A line for each thing that was decided; none where no size is 0.

    Raises:
      ValueError: no set is named, or it cannot be read.
    """
    data = settings.data
    if data.image_size:
        return []
    if not data.name:
        kinds = " | ".join(f"{kind}PATH" for kind in OWN)
        raise wrong("data.name", data.name, f"--config.data.name= with one of {kinds}")
    # No set is kept in memory at this size: only the headers are read.
    source = pipeline.load_source(
        data.name, "train", data_dir=data.data_dir or None, image_size=2**14
    )
    if source.sizes is None:
        allowed = f"a number: {data.name!r} does not say how large its pictures are"
        raise wrong("data.image_size", 0, allowed)
    small, large = source.sizes
    data.image_size = _side(small, large)
    if not data.patch_size:
        data.patch_size = _patch(data.image_size)
    grid = data.image_size // data.patch_size
    span = " to ".join(f"{height}x{width}" for height, width in sorted({small, large}))
    lines = [
        f"{data.name}: {len(source)} pictures of {source.num_classes} class(es), {span}, trained "
        f"at data.image_size={data.image_size} with data.patch_size={data.patch_size}: "
        f"{grid * grid} tokens"
    ]
    if min(small) > 2 * LARGEST:
        lines.append(f"pixels above {LARGEST} want an autoencoder: driftar encode")
    if not settings.train.batch_size:
        settings.train.batch_size = min(_BATCH, len(source))
        lines.append(f"train.batch_size={settings.train.batch_size}")
    if "text" in settings and not settings.text.length:
        settings.sample.ar_steps = grid * grid
        settings.text.length = _length(data.name, source.captions)
        lines.append(f"text.length={settings.text.length}: most pieces of words in a prompt")
    return lines


def _side(small: tuple[int, int], large: tuple[int, int]) -> int:
    if small == large and small[0] == small[1] <= LARGEST and _patch(small[0]) < small[0]:
        return small[0]
    return max(_PATCH, min(LARGEST, min(small)) // _PATCH * _PATCH)


def _patch(side: int) -> int:
    """Side of a token: of all that give at most 8 x 8, and are 2 or more, the smallest."""
    return next(p for p in range(2, side + 1) if side % p == 0 and side // p <= _GRID)


def _length(name: str, texts: list[str] | None) -> int:
    if texts is None:
        raise wrong("data.name", name, "a set with captions (metadata.jsonl, or picture.txt)")
    file = captions.fresh_vocabulary(name, texts)
    longest = captions.longest_of(captions.tokenizer_of(file), texts)
    if longest > _LONGEST:
        raise wrong("data.name", name, f"captions of at most {_LONGEST} pieces, not {longest}")
    return min(_LONGEST, max(_ROOM, 2 * longest))
