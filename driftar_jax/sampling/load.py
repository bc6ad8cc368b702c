"""From a workdir to a `Generator`: runs, exports, published models, converted NextStep-1."""

import contextlib
import dataclasses
import os
import pathlib
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from driftar_jax import model as models
from driftar_jax.config import CONVERTED, PUBLISHED, check_stored, wrong
from driftar_jax.data import is_latents
from driftar_jax.heads import early_stop
from driftar_jax.hosts.base import ImageSpec, Model
from driftar_jax.sampling import batches, conditions
from driftar_jax.sampling.generator import Generator
from driftar_jax.sharding import make_mesh, replicated
from driftar_jax.storage import compiled, paths
from driftar_jax.storage.checkpoints import Checkpoints, abstract_like, read_config
from driftar_jax.types import TextSpec

# Height and width of images that a converted checkpoint makes if nothing else is asked for.
SIDE = 512
TYPES = ("float32", "bfloat16")
# In the manifest of an export that has no host: the `projections` of the one it needs.
APART, _SUMS = "apart", 8
# Groups of parameters: a host, and its adapters (`layers/low_rank.py`).
_HOST, _ADAPTER = "host", "adapter"


def load(
    workdir: str | pathlib.Path,
    step: int | None = None,
    vae: str | pathlib.Path | None = None,
    *,
    mesh: Mesh | None = None,
    dtype: str | None = None,
) -> Generator:
    """Read the averaged parameters of a run or of a converted checkpoint.

    Args:
      workdir: folder written by `train`, `export` or `convert`, or `hf://OWNER/NAME[@REVISION]`.
      step: a kept step; None is the newest.
      vae: folder of the autoencoder, for checkpoints whose tokens are latents; None takes the one
        that the training set was encoded with.
      mesh: where the parameters of a converted NextStep-1 lie, by their logical axes; None: copies
        on all devices.
      dtype: `float32` or `bfloat16`, of activations and matrix products. None: what the run was
        trained in; of a converted NextStep-1 that of the stored embedding.

    Returns:
      `Generator`.

    Raises:
      ValueError: no checkpoint there, one of another task, or one that does not fit its config;
        `vae` is missing, does not fit, or is not wanted.
    """
    if dtype is not None and dtype not in TYPES:
        raise wrong("dtype", dtype, " | ".join(TYPES))
    if line := compiled.keep():
        warnings.warn(line, stacklevel=2)
    workdir = _folder(workdir)
    config = stored_config(workdir)
    if config.task == CONVERTED:
        return _converted(workdir, config, step, vae, mesh, dtype)
    known = ("host", "drift", "draft", PUBLISHED, CONVERTED)
    if config.task not in known:
        allowed = f"{' | '.join(known)} ({workdir})"
        raise ValueError(f"workdir: got task {config.task!r}, allowed {allowed}")
    if dtype is not None:
        config = _typed(config, dtype)
    params, manifest, step = read_weights(workdir, step)
    with _written_by_a_run(workdir):
        to_pixels = pixels_of(config, manifest, vae, pathlib.Path(workdir).parent)
        return of_run(workdir, config, params, manifest, step, to_pixels)


def _typed(config: Any, dtype: str) -> Any:
    """Return the config with activations of another type; its parameters are float32 in any."""
    changed = ml_collections.ConfigDict(config.to_dict())
    if config.task == PUBLISHED:
        changed.dtype = dtype
    else:
        changed.host.dtype = dtype
    return changed


def of_run(workdir, config: Any, params, manifest: dict, step: int, to_pixels) -> Generator:
    """Put together the generator of a run from what was read of its workdir."""
    tracked = manifest.get("tracked", {})
    # Runs of other tasks keep no statistics of the entropy; without them `stop=auto` is refused.
    if {"entropy_mean", "entropy_square"} <= tracked.keys():
        statistics = tracked["entropy_mean"], tracked["entropy_square"]
        # Beside the parameters, for drafting reads it inside the compiled program.
        params = params | {"tracker": early_stop.of_training(*statistics)}
    images = image_spec(manifest)
    reader, modules = reader_of(workdir, images), models.build(config, images)
    params = _placed(modules, _merged(params))
    return Generator(config, modules, params, step, manifest, to_pixels, reader)


def reader_of(workdir: str | pathlib.Path, images: ImageSpec) -> conditions.Reader:
    """Return what reads requests to a run; ValueError where its captions are not there."""
    if images.text is None:
        return conditions.Classes()
    from driftar_jax.data import captions
    from driftar_jax.sampling import texts

    return texts.Captions(captions.read_book(workdir, images.text, images.grid))


def stored_config(workdir: str | pathlib.Path) -> Any:
    """Read the config of a workdir, whose values are such as a run can have had.

    Raises:
      ValueError: there is none, or a value is not; one line.
    """
    config = read_config(workdir)
    with _written_by_a_run(workdir):
        if config["task"] not in (PUBLISHED, CONVERTED):
            check_stored(config)
        return ml_collections.ConfigDict(config)


_WRONG_KINDS = (LookupError, AttributeError, TypeError, ArithmeticError)


@contextlib.contextmanager
def _written_by_a_run(workdir: str | pathlib.Path):
    """Turn any error while reading a workdir's files into a one-line ValueError."""
    try:
        yield
    except (*_WRONG_KINDS, RecursionError, ValueError) as error:
        lines = str(error).strip().splitlines() or [""]
        # A message that names field and value already says more than the general one.
        if isinstance(error, ValueError) and len(lines) == 1 and ": got " in lines[0]:
            raise
        raise ValueError(
            f"workdir: got {str(workdir)!r}, allowed one whose config.json and manifest were "
            f"written by train or convert ({type(error).__name__}: {lines[0][:200]})"
        ) from error


def pixels_of(
    config: Any,
    manifest: dict,
    vae: str | pathlib.Path | None = None,
    folder: pathlib.Path | None = None,
):
    """Return `Generator.to_pixels` of a run: with the autoencoder `vae`, else its training set's.

    That is looked for where it was, and under its name in `folder`: exports lie beside each other.

    Raises:
      ValueError: `vae` is not wanted or does not fit.
    """
    if not is_latents(config.data.name):
        if vae is not None:
            raise wrong("vae", str(vae), "none: the tokens of this checkpoint are pixels")
        return batches.as_pixels
    known = pathlib.Path(manifest.get("vae") or "")
    if vae is None and not (manifest.get("vae") and known.exists()):
        if folder is None or not known.name or not (folder / known.name).is_dir():
            return None
        known = folder / known.name
    from driftar_jax.vae import stored

    fingerprint = manifest.get("vae_fingerprint")
    return stored.to_pixels(vae or known, manifest["image_shape"][-1], fingerprint)


def random(config: Any, images: ImageSpec, seed: int = 0) -> Generator:
    """Return a checkpoint that nobody trained: small normal arrays, good for timing alone."""
    rng = np.random.default_rng(seed)

    def draw(shape):
        # By NumPy: on the device every shape of a parameter would be a program to compile.
        return jax.device_put(0.02 * rng.standard_normal(shape.shape, np.float32))

    generator = shapes(config, images)
    params = jax.tree.map(draw, generator.params)
    return dataclasses.replace(generator, params=_placed(generator.model, params))


def shapes(config: Any, images: ImageSpec) -> Generator:
    """Return a generator whose parameters are shapes: good for compiling alone."""
    reader = conditions.Classes()
    if images.text is not None:
        from driftar_jax.sampling import texts

        reader = texts.Captions(None)
    params = models.shapes(config, images)
    if _ADAPTER in params:
        params = jax.eval_shape(_merged, params)
    modules = models.build(config, images)
    return Generator(config, modules, params, 0, {}, batches.as_pixels, reader)


def _placed(modules: Model, params: Any) -> Any:
    """Return `params` as what this process computes on wants them."""
    if jax.default_backend() != "cpu":
        return models.looped(modules, params)
    # On a CPU a loop over blocks would copy their weights in every call.
    return models.apart(modules, params) if jax.device_count() == 1 else params


def image_spec(manifest: dict) -> ImageSpec:
    """Return what the run's data decided, from its manifest.

    Raises:
      ValueError: a fact is missing, or of another kind.
    """
    shape, names = manifest.get("image_shape"), manifest.get("class_names")
    patch = manifest.get("patch_size")
    for field, value, allowed, fits in (
        ("image_shape", shape, "three whole numbers", _counts(shape) and len(shape) == 3),
        ("class_names", names, "a list of names", _names(names)),
        ("patch_size", patch, "a whole number of at least 1", _counts([patch])),
    ):
        if not fits:
            raise wrong(f"manifest {field}", value, allowed)
    text = manifest.get("text")
    if text and not _is_text(text):
        raise wrong("manifest text", text, "numbers of a prompt, as train writes them")
    return ImageSpec(
        text=TextSpec.from_json(text) if text else None,
        image_shape=tuple(manifest["image_shape"]),
        class_names=tuple(manifest["class_names"]),
        patch_size=manifest["patch_size"],
    )


def _counts(value: Any) -> bool:
    """Say whether these are whole numbers of at least 1, none larger than an image can be."""
    return isinstance(value, list | tuple) and all(
        type(n) is int and 1 <= n <= 2**16 for n in value
    )


def _is_text(value: Any) -> bool:
    """Say whether this is a `TextSpec`, as JSON holds it."""
    fields = {field.name for field in dataclasses.fields(TextSpec)}
    # Runs whose captions have no source picture do not say so.
    if not isinstance(value, dict) or value.keys() | {"source"} != fields:
        return False
    suffix = value["suffix"]
    numbers = [number for name, number in value.items() if name != "suffix"]
    return isinstance(suffix, list) and all(type(n) is int for n in numbers + suffix)


def _names(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(isinstance(n, str) for n in value)
    )


def read_weights(
    workdir: str | pathlib.Path,
    step: int | None = None,
    *,
    host: str | pathlib.Path | None = None,
    merged: bool = True,
):
    """Read averaged parameters, manifest and step of a workdir, replicated over the devices.

    Args:
      workdir: folder of a run or an export.
      step: a kept step; None is the newest.
      host: workdir of the host that an export without one was trained on.
      merged: whether adapters are merged into the host, or stay a group of their own.

    Raises:
      ValueError: there is no such checkpoint, or it does not fit the workdir's config.
    """
    workdir = _folder(workdir)
    config = stored_config(workdir)
    checkpoints, step = _open(workdir, step)
    manifest = checkpoints.restore(step)["manifest"]
    if config.task == CONVERTED:
        from driftar_jax.hosts import nextstep_stored

        host, head = nextstep_stored.modules(config.host.to_dict(), dtype=jnp.float32)
        params = nextstep_stored.read_params(checkpoints, step, host, head, make_mesh())
        params = jax.tree.map(lambda a: a.astype(np.float32), params)
        checkpoints.close()
        return params, manifest, step
    with _written_by_a_run(workdir):
        shapes = models.shapes(config, image_spec(manifest))
    apart = APART in manifest
    if apart:
        shapes.pop(_HOST)
        if host is None:
            allowed = "one that has its host (export --host=HOST --out=NEW puts both together)"
            raise wrong("workdir", str(workdir), allowed)
    elif host is not None:
        raise wrong("host", str(host), "none: this workdir has its own")
    # Averages are float32 in every run, whatever the type of its parameters.
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, np.float32), shapes)
    everywhere = replicated(make_mesh())
    placed = abstract_like(shapes, jax.tree.map(lambda _: everywhere, shapes))
    params = checkpoints.restore(step, widen=True, ema=placed)["ema"]
    checkpoints.close()
    if apart:
        sums = manifest.pop(APART)
        params[_HOST] = _host_of(host, sums, models.shapes(config, image_spec(manifest)))
    return _merged(params) if merged else params, manifest, step


def _host_of(workdir: str | pathlib.Path, sums: Any, shapes: dict[str, Any]) -> Any:
    """Read the host that adapters were trained on; ValueError where it is another."""
    # Sums that are no numbers would differ from none.
    if not isinstance(sums, list) or not all(type(n) is float and np.isfinite(n) for n in sums):
        raise wrong(f"manifest {APART}", sums, "the sums that export wrote")
    try:
        host = read_weights(workdir)[0].get(_HOST)
    except ValueError as error:
        allowed = f"a workdir of the host that the adapters were trained on ({error})"
        raise wrong("host", str(workdir), allowed) from error
    have, want = (jax.tree.map(np.shape, t) for t in (host, shapes[_HOST]))
    # bfloat16, to which an export may have rounded it, moves these by some thousandths.
    other = have != want or len(sums) != _SUMS
    if other or np.abs(np.subtract(projections(host), sums)).max() > 1e-2:
        raise wrong("host", str(workdir), "the host that the adapters were trained on")
    return host


def projections(tree: Any) -> list[float]:
    """Return eight sums of all numbers with fixed random signs, over their norm.

    Trees of nearly the same numbers have nearly the same ones, others have not.
    """
    rng, sums, square = np.random.default_rng(0), np.zeros(_SUMS), 0.0
    for leaf in jax.tree.leaves(tree):
        flat = np.asarray(leaf, np.float64).ravel()
        # A bit a sign: eight projections at the cost of one random byte for each number.
        bits = np.unpackbits(rng.integers(0, 256, flat.size, np.uint8)[:, None], axis=1)
        sums += flat @ (1.0 - 2.0 * bits)
        square += flat @ flat
    return (sums / np.sqrt(square)).tolist()


def _merged(params: dict[str, Any]) -> dict[str, Any]:
    """Return the groups of a run with its adapters, where it has some, in the host's kernels."""
    if _ADAPTER not in params:
        return params
    from driftar_jax.layers import low_rank

    return jax.jit(low_rank.merged)(params)


def stored_trees(workdir: str | pathlib.Path, params: Any) -> dict[str, Any]:
    """Return parameters of `read_weights` in the trees that such a workdir stores, `ema` first."""
    if stored_config(workdir).task != CONVERTED:
        return {"ema": params}
    from driftar_jax.hosts import nextstep_stored

    return nextstep_stored.trees(nextstep_stored.unstacked(params))


def _folder(workdir: str | pathlib.Path) -> str:
    """Return the folder on this machine of a workdir, or of an address on the hub."""
    if not paths.is_hub(os.fspath(workdir)):
        return paths.local("workdir", workdir)
    from driftar_jax.storage import hub

    return hub.local(workdir)


def _open(workdir: str | pathlib.Path, step: int | None) -> tuple[Any, int]:
    """Return the checkpoints of a workdir, and the step that is asked for or the newest."""
    if paths.is_released(workdir):
        from driftar_jax.storage import hub

        checkpoints = hub.Released(workdir)
    else:
        if lacking := paths.half_released(workdir):
            raise wrong("workdir", str(workdir), f"one that is whole (it has no {lacking})")
        checkpoints = Checkpoints(workdir, create=False)
    newest = checkpoints.latest_step()
    if newest is None:
        raise wrong("workdir", str(workdir), "one with a finished checkpoint")
    return checkpoints, newest if step is None else step


def _converted(workdir, config: Any, step, vae, mesh: Mesh | None, dtype: str | None) -> Generator:
    """Return the generator of a converted NextStep-1; its layers are read one at a time."""
    from driftar_jax import hosts
    from driftar_jax.data import prompts
    from driftar_jax.hosts import nextstep_stored
    from driftar_jax.sampling.prompted import Prompts
    from driftar_jax.vae import stored

    if vae is None:
        raise wrong("vae", None, "--vae=FOLDER written by convert --family=vae-f8")
    autoencoder, vae_params = stored.load(vae, kind="vae-f8")
    latent, patch = config["latent_channels"], config["patch_size"]
    if autoencoder.latent_channels != latent:
        raise wrong("vae", str(vae), f"an autoencoder of {latent} latent channels")
    marks = config.marks.to_dict()
    tokenizer = prompts.load_tokenizer(workdir, marks)
    checkpoints, step = _open(workdir, step)
    if dtype is None:
        dtype = checkpoints.stored(step, "ema")["host"]["embed_tokens"].dtype
    host, head = nextstep_stored.modules(config.host.to_dict(), dtype=jnp.dtype(dtype))
    mesh = make_mesh() if mesh is None else mesh
    params = nextstep_stored.read_params(checkpoints, step, host, head, mesh)
    # On every device of the mesh: the autoencoder is small beside the host.
    vae_params = jax.device_put(vae_params, replicated(mesh))
    manifest = checkpoints.restore(step)["manifest"]
    checkpoints.close()
    most = manifest["official"].get("max_position_embeddings")
    longest = min(most or prompts.LONGEST, prompts.LONGEST)
    reader = Prompts(tokenizer, marks, autoencoder, vae_params, longest)
    # The size if nothing is asked for; `Prompts.sized` puts the request's in its place.
    side = SIDE // autoencoder.factor
    images = ImageSpec((side, side, latent), (), patch)
    modules = Model(images, host, hosts.family("nextstep"), head=head)
    to_pixels = stored.ToPixels(autoencoder, vae_params, tile=1)
    params = _placed(modules, params)
    return Generator(config, modules, params, step, manifest, to_pixels, reader)
