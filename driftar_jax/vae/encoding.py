"""Images to moments, once for a whole set: each image and its mirror image."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from driftar_jax.config import wrong
from driftar_jax.data import latents
from driftar_jax.data.pixels import to_unit_range
from driftar_jax.data.source import ImageSource
from driftar_jax.sharding import make_mesh, over_rows, replicated, rows_over
from driftar_jax.vae import kl, stored


def encode_set(
    sources: Sequence[ImageSource],
    vae_dir: str,
    out: str,
    *,
    per_shard: int,
    batch_size: int,
    tell: Callable[[str], None] = print,
) -> None:
    """Write a set of latents; what an earlier call finished is kept.

    Args:
      sources: splits of one image set.
      vae_dir: folder written by `convert --family=vae-kl16` or by `train` of an autoencoder.
      out: new folder, or one that the same call began.
      per_shard: images per file.
      batch_size: images encoded at once, with their mirror images.
      tell: takes a line for each shard.

    Raises:
      ValueError: the images do not fit the autoencoder or have source pictures, or `out` belongs to
        another set.
      OSError: `out` cannot be written.
    """
    # Of an edit the target alone would be encoded, and its text would become a caption.
    if any(getattr(source, "originals", None) is not None for source in sources):
        raise wrong("data.name", sources[0].name, "a set without source pictures")
    vae, params = stored.load(vae_dir)
    params = jax.device_put(params, replicated(make_mesh()))
    height, width, channels = sources[0].image_shape
    if height % vae.factor or width % vae.factor:
        raise wrong("data.image_size", height, f"a multiple of {vae.factor}")
    if channels != vae.image_channels:
        raise wrong("data.name", sources[0].name, f"images of {vae.image_channels} channels")
    # All that decides the numbers of a shard: a call that differs in any of it must not add to the
    # set.
    facts = {
        "shape": [height // vae.factor, width // vae.factor, 2 * vae.latent_channels],
        "class_names": list(sources[0].class_names),
        "splits": {source.split: len(source) for source in sources},
        "per_shard": per_shard,
        "vae": str(vae_dir),
        "vae_fingerprint": stored.fingerprint(params),
        "source": [source.fingerprint for source in sources],
    }
    folder = latents.begin(out, facts)
    for source in sources:
        items = functools.partial(_items, vae, params, source, batch_size)
        with tqdm(total=len(source), unit="image", disable=None, leave=False) as bar:
            latents.write_shards(folder, source.split, functools.partial(_shown, bar, items), tell)
    texts = {source.split: source.captions for source in sources}
    latents.finish(folder, None if None in texts.values() else texts)


def _shown(bar: tqdm, items: Callable[[range], Iterable[dict]], numbers: range) -> Iterator[dict]:
    """Yield `items(numbers)`, each on the bar, which jumps over shards that are there."""
    bar.update(numbers.start - bar.n)
    for item in items(numbers):
        yield item
        bar.update()


def _items(vae, params, source: ImageSource, batch_size: int, numbers: range):
    rows = rows_over(params)
    for first in range(numbers.start, numbers.stop, batch_size):
        wanted = np.arange(first, min(first + batch_size, numbers.stop))
        images, labels = source.gather(np.resize(wanted, batch_size))  # padded: one compilation
        moments, mirrored = (np.asarray(a) for a in _both(vae, params, over_rows(images, rows)))
        for i in range(len(wanted)):
            yield {"moments": moments[i], "mirrored": mirrored[i], "label": int(labels[i])}


@functools.partial(jax.jit, static_argnums=0)
def _both(vae: kl.KLVAE, params, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Moments of uint8 `[B, H, W, 3]`, and of the images mirrored left to right."""
    x = to_unit_range(images)
    encode = lambda y: vae.apply({"params": params}, y, method="encode")  # noqa: E731
    # The mirrored image is encoded, not its latent mirrored: convolutions of the encoder are not
    # symmetric.
    return encode(x), encode(jnp.flip(x, axis=2))
