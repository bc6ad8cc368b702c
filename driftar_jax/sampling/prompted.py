"""Images from prompts: a converted NextStep-1, its tokenizer and its autoencoder, ready to sample.

`prompted.load(workdir, vae).sample(["a red fox"], seed=0)`. Source images make an edit.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from driftar_jax.checkpoints import Checkpoints, abstract_like, read_config
from driftar_jax.config import wrong
from driftar_jax.conversion import nextstep as conversion
from driftar_jax.data import images, prompts
from driftar_jax.data.patches import patchify, unpatchify
from driftar_jax.data.pixels import to_uint8, to_unit_range
from driftar_jax.heads import randomness
from driftar_jax.heads.flow_token import FlowTokenHead
from driftar_jax.hosts.nextstep import NextStep
from driftar_jax.sampling import causal_sampler
from driftar_jax.sharding import make_mesh, replicated, state_shardings
from driftar_jax.types import Counts
from driftar_jax.vae import kl, stored
from driftar_jax.vae.f8 import F8VAE

# Seeds of source latents, apart from those of tokens.
_SOURCE = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Samples:
    """uint8 `images [n, H, W, 3]` and what one image cost."""

    images: np.ndarray
    counts: Counts


@dataclasses.dataclass(frozen=True)
class Prompted:
    """A text-conditioned checkpoint with all that it needs.

    Attributes:
      config: of the workdir.
      host, head, params: backbone, flow head and their trees `host` and `head`.
      vae, vae_params: autoencoder.
      tokenizer: of the checkpoint.
      longest: most positions of a prompt and its image together.
    """

    config: dict
    host: NextStep
    head: FlowTokenHead
    params: dict[str, Any]
    vae: F8VAE
    vae_params: dict
    tokenizer: prompts.Tokenizer
    longest: int = prompts.LONGEST

    @property
    def step(self) -> int:
        """Sides of images are multiples of this: pixels that a token stands for, per side."""
        return self.vae.factor * self.config["patch_size"]

    def settings(self, size: tuple[int, int], **changes) -> causal_sampler.Settings:
        """Checked sampling settings for images of `size` (height, width); None leaves a field.

        Raises:
          ValueError: one line.
        """
        for name, value in zip(("height", "width"), size, strict=True):
            if value < self.step or value % self.step:
                raise wrong(name, value, f"a multiple of {self.step}")
        grid = (size[0] // self.step, size[1] // self.step)
        given = {name: value for name, value in changes.items() if value is not None}
        made = causal_sampler.Settings(grid, **{**self.config["sample"], **given})
        made.check()
        if made.num_tokens >= self.longest:
            raise wrong("height", size[0], f"an image of fewer than {self.longest} tokens")
        return made

    def rows(
        self,
        captions: Sequence[str],
        settings: causal_sampler.Settings,
        *,
        positive: str = "",
        negative: str = "",
        source: tuple[int, int] | None = None,
    ) -> prompts.Rows:
        """Rows of ids for `captions`; `source` is the size of source images in pixels."""
        if source is not None:
            source = (source[0] // self.step, source[1] // self.step)
        return prompts.rows(
            self.tokenizer,
            self.config["marks"],
            captions,
            settings.grid,
            branches=settings.branches,
            positive=positive,
            negative=negative,
            source=source,
            longest=self.longest,
        )

    def sample(
        self,
        captions: Sequence[str],
        sources: Sequence[np.ndarray] = (),
        *,
        size: tuple[int, int] = (512, 512),
        seed: int = 0,
        positive: str = "",
        negative: str = "",
        batch_size: int = 1,
        **changes,
    ) -> Samples:
        """Generate one image per caption, or edit one source image per caption.

        Args:
          captions: n texts.
          sources: none, or n uint8 images `[h, w, 3]` of one size; see `read_sources`.
          size: height and width of the images.
          seed: 0..2**31-1; the same seed and captions give the same images.
          positive, negative: as in `prompts.rows`.
          batch_size: images per call; changes the speed, not the images (up to rounding).
          **changes: fields of `causal_sampler.Settings` but `grid`.

        Returns:
          Samples.

        Raises:
          ValueError: a setting, prompt or source does not fit, before any compilation.
        """
        settings = self.settings(size, **changes)
        n, branches = len(captions), settings.branches
        if not n:
            raise wrong("prompt", None, "at least one text")
        self._check_sources(sources, n)
        shape = sources[0].shape[:2] if len(sources) else None
        made = self.rows(captions, settings, positive=positive, negative=negative, source=shape)
        ids = made.ids.reshape(branches, n, -1)
        padding = made.padding.reshape(branches, n)
        out = []
        for first in range(0, n, batch_size):
            # The last batch is filled up with its first image: one compilation.
            index = np.arange(first, first + batch_size)
            index = np.where(index < n, index, first)
            tokens = None
            if len(sources):
                tokens = self._encode(np.stack([sources[i] for i in index]), index, seed)
            grid, counts = _generate(
                self.host,
                self.head,
                settings,
                self.config["patch_size"],
                self.params,
                jnp.asarray(ids[:, index].reshape(branches * batch_size, -1)),
                jnp.asarray(padding[:, index].reshape(-1)),
                tokens,
                jnp.asarray(index, jnp.int32),
                jnp.uint32(seed),
            )
            pixels = _decode(self.vae, self.vae_params, grid)
            out.append(np.asarray(pixels)[: min(batch_size, n - first)])
        return Samples(np.concatenate(out), jax.tree.map(int, counts))

    def _check_sources(self, sources: Sequence[np.ndarray], n: int) -> None:
        if not len(sources):
            return
        if len(sources) != n:
            raise wrong("image", f"{len(sources)} images", f"one for each of {n} prompts")
        sizes = {source.shape[:2] for source in sources}
        if len(sizes) > 1:
            got = ", ".join(f"{h}x{w}" for h, w in sorted(sizes))
            raise ValueError(f"image: got sizes {got}, allowed one size for all source images")
        for side in sources[0].shape[:2]:
            if side % self.step:
                raise wrong("image", f"a side of {side}", f"sides that {self.step} divides")

    def _encode(self, pixels: np.ndarray, index: np.ndarray, seed: int) -> jax.Array:
        """Tokens `[n, M, C]` of source images."""
        return _source_tokens(
            self.vae,
            self.config["patch_size"],
            self.vae_params,
            jnp.asarray(pixels),
            jnp.asarray(index, jnp.int32),
            jnp.uint32(seed),
        )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _source_tokens(vae: F8VAE, patch: int, params, pixels, index, seed):
    moments = vae.apply({"params": params}, to_unit_range(pixels), method="encode")
    keys = randomness.image_keys(seed, index)
    shape = moments.shape[1:3] + (vae.latent_channels,)
    noise = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, _SOURCE), shape))(keys)
    return patchify(vae.latents(moments, noise), patch)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _generate(host, head, settings, patch, params, ids, padding, sources, index, seed):
    """Latents `[n, h, w, c]` and costs; `sources [n, M, C]` go to all rows that hold them."""
    if sources is not None:
        # Rows without placeholders never read theirs.
        sources = jnp.tile(sources, (settings.branches, 1, 1))
    noise = causal_sampler.own_noise(index, seed, settings.num_tokens, host.token_dim)
    made = causal_sampler.generate(host, head, settings, params, ids, padding, sources, noise)
    height, width = (side * patch for side in settings.grid)
    return unpatchify(made.tokens, height, width, patch), made.counts


@functools.partial(jax.jit, static_argnums=0)
def _decode(vae: F8VAE, params, latents: jax.Array) -> jax.Array:
    return to_uint8(kl.decode(vae, params, vae.from_latents(latents), tile=1))


def is_prompted(workdir: str | pathlib.Path) -> bool:
    """Whether a workdir is sampled by prompts; ValueError where it is no workdir."""
    return read_config(workdir).get("task") == conversion.TASK


def load(
    workdir: str | pathlib.Path,
    vae: str | pathlib.Path | None,
    *,
    mesh: Mesh | None = None,
    dtype: str | None = None,
) -> Prompted:
    """Read a converted NextStep-1.

    Args:
      workdir: folder written by `convert --family=nextstep`.
      vae: folder written by `convert --family=vae-f8`.
      mesh: where the parameters lie, by their logical axes; None: copies on all devices.
      dtype: of the matrix products; None: that of the stored embedding.

    Returns:
      Prompted.

    Raises:
      ValueError: a folder, the tokenizer or the library for it is missing, or the autoencoder does
        not fit; one line, before the weights are read.
    """
    config = read_config(workdir)
    fields = conversion.fields_of(config)
    if vae is None:
        raise wrong("vae", None, "--vae=FOLDER written by convert --family=vae-f8")
    autoencoder, vae_params = stored.load(vae, kind="vae-f8")
    latent, patch = config["latent_channels"], config["patch_size"]
    if autoencoder.latent_channels != latent:
        raise wrong("vae", str(vae), f"an autoencoder of {latent} latent channels")
    tokenizer = prompts.load_tokenizer(workdir, config["marks"])
    opened = Checkpoints(workdir, create=False)
    step = opened.latest_step()
    if step is None:
        raise wrong("workdir", str(workdir), "one with a finished checkpoint")
    if dtype is None:
        dtype = opened.stored(step, "ema")["host"]["embed_tokens"].dtype
    host, head = conversion.modules(fields, dtype=jnp.dtype(dtype))
    assert host.token_dim == latent * patch**2
    mesh = make_mesh() if mesh is None else mesh
    params = read_params(opened, step, host, head, mesh)
    vae_params = jax.device_put(vae_params, replicated(mesh))
    said = opened.restore(step)["manifest"]["official"].get("max_position_embeddings")
    opened.close()
    longest = min(said or prompts.LONGEST, prompts.LONGEST)
    return Prompted(config, host, head, params, autoencoder, vae_params, tokenizer, longest)


def read_params(
    opened: Checkpoints, step: int, host: NextStep, head: FlowTokenHead, mesh: Mesh
) -> dict[str, Any]:
    """`{"host": ..., "head": ...}` with stacked layers, in the stored types, laid out over `mesh`.

    Layers are read one at a time into the stack, so that beside it only one is held.
    """
    shardings = state_shardings(conversion.abstract_params(host, head, boxed=True), mesh)
    stack_shardings = shardings["host"]["stack"].pop("layers")
    first, *layers = conversion.trees(conversion.unstacked(conversion.abstract_params(host, head)))
    params = opened.restore(step, ema=abstract_like(opened.stored(step, first), shardings))[first]

    def apart(sharding):
        return NamedSharding(mesh, PartitionSpec(*sharding.spec[1:]))

    row_shardings = jax.tree.map(apart, stack_shardings)
    stack = None
    for index, name in enumerate(layers):
        stored_row = _inner(opened.stored(step, name), index)
        wanted = abstract_like(stored_row, row_shardings)
        row = _inner(opened.restore(step, **{name: _outer(wanted, index)})[name], index)
        if stack is None:
            stack = jax.tree.map(
                lambda a, s: jnp.zeros((len(layers), *a.shape), a.dtype, device=s),
                row,
                stack_shardings,
            )
        stack = _put(stack, row, index)
    params["host"]["stack"]["layers"] = stack
    return params


@functools.partial(jax.jit, donate_argnums=0)
def _put(stack, row, index):
    return jax.tree.map(lambda s, r: s.at[index].set(r), stack, row)


def _inner(tree, index: int):
    return tree["host"]["stack"]["layers"][str(index)]


def _outer(layer, index: int) -> dict:
    return {"host": {"stack": {"layers": {str(index): layer}}}}


def read_sources(paths: Sequence[str], step: int) -> list[np.ndarray]:
    """Source images as uint8 `[h, w, 3]`.

    Raises:
      ValueError: a file is no picture, or its sides are no multiples of `step`.
    """
    read = []
    for path in paths:
        try:
            picture = images.decode(path, channels=3, size=None, center_crop=False)
        except images.BadImage as error:
            raise wrong("image", path, f"a picture ({error})") from None
        if any(side % step for side in picture.shape[:2]):
            height, width = picture.shape[:2]
            raise wrong("image", f"{path} of {height}x{width}", f"sides that {step} divides")
        read.append(picture)
    return read
