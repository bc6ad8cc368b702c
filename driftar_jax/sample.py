"""Generate images from a checkpoint.

python -m driftar_jax.sample --workdir=runs/drift --num=64 --out=runs/drift/images
python -m driftar_jax.sample --workdir=runs/mar_base --vae=runs/kl16 --num=4 --out=runs/images
python -m driftar_jax.sample --workdir=runs/drift --image=shoe.png --mask=heel.png --out=runs/heels
python -m driftar_jax.sample --workdir=runs/drift_next --prompt="red heart, heart" --out=runs/hearts
python -m driftar_jax.sample --workdir=runs/converted --vae=runs/f8 --image=fox.png \
    --prompt="<image> in the snow" --out=runs/edits
python -m driftar_jax.sample --workdir=runs/drift --num=8 --dry_run --target=tpu:v5e:1x1

The last one draws nothing: the compiler of that chip says what the sampler needs there.
"""

import dataclasses
import pathlib

import jax
import numpy as np
from absl import flags

from driftar_jax import seeds
from driftar_jax.cli import program as cli
from driftar_jax.cli import sampling_flags, target_flags
from driftar_jax.config import wrong
from driftar_jax.data import images, labels, pictures
from driftar_jax.sampling import dry_run, inpaint, load
from driftar_jax.sampling.conditions import Request
from driftar_jax.sharding import make_mesh
from driftar_jax.storage.checkpoints import write_json

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder written by train or convert.")
_OUT = flags.DEFINE_string("out", None, "New folder for grid.png, single files and counts.json.")
_VAE = flags.DEFINE_string("vae", None, "Folder of the autoencoder, where tokens are latents.")
_NUM = flags.DEFINE_integer("num", 64, "How many images; of prompts, one each by default.")
_LABELS = flags.DEFINE_string("labels", "", "Class numbers or names, in turn; all by default.")
_PROMPT = flags.DEFINE_multi_string("prompt", [], "Text of an image; may be given several times.")
_IMAGE = flags.DEFINE_multi_string(
    "image", [], "Source of an edit, one per --prompt; or with --mask."
)
_MASK = flags.DEFINE_string("mask", None, "Picture whose white part of --image is generated anew.")
_NEGATIVE = flags.DEFINE_string("negative", "", "Prompt that guidance leads away from.")
_POSITIVE = flags.DEFINE_string("positive", "", "Text put behind every prompt.")
_SEED = flags.DEFINE_integer("seed", 0, "Root of the randomness.")
_BATCH = flags.DEFINE_integer("batch_size", None, "Images per call; 256, of converted prompts 1.")
_FSDP = flags.DEFINE_integer("mesh_fsdp", 1, "Devices over which widths are split (converted).")
_TENSOR = flags.DEFINE_integer("mesh_tensor", 1, "Devices over which heads are split (converted).")
sampling_flags.define()
sampling_flags.define_size()
target_flags.define()
flags.mark_flag_as_required("workdir")


def main(_) -> None:
    with cli.user_errors():
        target = target_flags.described()
        out = None if target is not None else _new_folder(_OUT.value)
        for flag in (_NUM, _BATCH, _FSDP, _TENSOR):
            if flag.value is not None and flag.value < 1:
                raise wrong(flag.name, flag.value, "a whole number of at least 1")
        seeds.check_seed(_SEED.value)
        generator = _load()
        classes, texts = _asked(generator)
        asked = classes if texts is None else texts
        hole = _hole(generator)
        request = _request(len(asked))
        sized = generator.sized(request)
        settings = sized.checked(**sampling_flags.changes())
        condition = sized.conditions(asked, _SEED.value, settings, request)
    if target is not None:
        with cli.user_errors():
            few = jax.tree.map(lambda a: a[: sized.batch(_BATCH.value)], condition)
            print("\n".join(dry_run.lines(sized, settings, few, target)))
        return
    if settings.gamma and not settings.drafts:
        print("gamma: one AR step makes the whole image, so there is nothing to draft: plain")
    if hole is None:
        settings = sized.with_draft_count(settings, condition, _BATCH.value)
        samples = sized.collect(settings, condition, _SEED.value, _BATCH.value)
    else:
        with cli.user_errors():
            samples = inpaint.fill(
                sized, *hole, asked, _SEED.value, batch_size=_BATCH.value, settings=settings
            )
    _write(out, samples, classes, texts, generator.model.images.class_names)
    facts = {
        "per_image": dataclasses.asdict(samples.counts),
        "images": len(asked),
        **({} if texts is None else {"prompts": texts}),
        "settings": dataclasses.asdict(settings),
        "gamma": samples.gamma,
        "speculation": samples.speculation,
        "seed": _SEED.value,
        "step": generator.step,
    }
    write_json(out / "counts.json", facts)
    print(f"{out}: {len(asked)} images, {facts['per_image']}")


def _load():
    """Return the generator of the workdir, laid out over the mesh that is asked for."""
    split = flags.FLAGS["mesh_fsdp"].present or flags.FLAGS["mesh_tensor"].present
    mesh = make_mesh(fsdp=_FSDP.value, tensor=_TENSOR.value) if split else None
    generator = load.load(_WORKDIR.value, vae=_VAE.value, mesh=mesh)
    if split and generator.reader.takes != "prompts":
        name = "mesh_fsdp" if flags.FLAGS["mesh_fsdp"].present else "mesh_tensor"
        allowed = "none: this checkpoint lies on every device as a whole"
        raise wrong(name, flags.FLAGS[name].value, allowed)
    return generator


def _asked(generator) -> tuple[np.ndarray | None, list[str] | None]:
    """Return the classes that are asked for, or the texts; the other is None.

    Raises:
      ValueError: labels and prompts do not fit the checkpoint, or each other.
    """
    takes, texts = generator.reader.takes, _PROMPT.value
    if takes == "classes":
        for name in ("prompt",) if _MASK.present else ("prompt", "image"):
            if flags.FLAGS[name].present:
                allowed = "none: this checkpoint makes images of classes, by --labels"
                raise wrong(name, flags.FLAGS[name].value, allowed)
        return _labels(generator.model.images.class_names), None
    if takes == "prompts" and _LABELS.present:
        raise wrong("labels", _LABELS.value, "none: this checkpoint takes --prompt")
    if takes == "prompts" and not texts:
        raise wrong("prompt", None, "at least one --prompt")
    if takes == "captions" and not texts:
        classes = _labels(generator.model.images.class_names)
        return classes, generator.reader.texts(classes, _SEED.value)
    if _LABELS.present:
        raise wrong("labels", _LABELS.value, "none beside --prompt")
    for text in texts:
        if not text.strip():
            raise wrong("prompt", text, "text")
        if text.startswith("@") and len(text.split()) == 1:
            raise wrong("prompt", text, f"text; the prompts of a file by --prompts={text[1:]}")
    return None, [texts[i % len(texts)] for i in range(_count(texts))]


def _count(texts: list[str]) -> int:
    return _NUM.value if flags.FLAGS["num"].present else len(texts)


def _request(number: int) -> Request:
    """Return what is asked for beside labels and texts."""
    sources = [] if _MASK.present else [_picture(path) for path in _IMAGE.value]
    if sources and _PROMPT.value and len(sources) != len(_PROMPT.value):
        allowed = f"one per --prompt, {len(_PROMPT.value)}"
        raise wrong("image", f"{len(sources)} images", allowed)
    sources = [sources[i % len(sources)] for i in range(number)] if sources else []
    return Request(sampling_flags.size(), sources, _POSITIVE.value, _NEGATIVE.value)


def _picture(path: str) -> np.ndarray:
    """Return a source image as uint8 `[h, w, 3]`; ValueError where it is none."""
    try:
        return images.decode(path, channels=3, size=None, center_crop=False)
    except images.BadImage as error:
        raise wrong("image", path, f"a picture ({error})") from None


def _hole(generator) -> tuple[np.ndarray, np.ndarray] | None:
    """Return image and mask to fill in, or None."""
    if not _MASK.present:
        return None
    if len(_IMAGE.value) != 1:
        number = len(_IMAGE.value)
        raise ValueError(f"image: got {number} of them, allowed one together with --mask")
    inpaint.check(generator)
    return inpaint.read(_IMAGE.value[0], _MASK.value, inpaint.pixel_shape(generator)[-1])


def _new_folder(path: str | None) -> pathlib.Path:
    if path is None:
        raise ValueError("out: got nothing, allowed --out=VALUE")
    out = pathlib.Path(path)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise wrong("out", path, "a new or empty folder")
    return out


def _labels(names: tuple[str, ...]) -> np.ndarray:
    """Return `--num` class numbers, going round through `--labels` or all classes."""
    words = labels.words(_LABELS.value, names)
    numbers = labels.numbers(words, names) if words else range(len(names))
    return np.resize(np.asarray(numbers, np.int32), _NUM.value)


def _write(out: pathlib.Path, samples, classes, texts, names) -> None:
    """Write the pictures into the new folder `out`, each by itself before any of them together."""
    out.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(samples.images):
        said = "" if texts is not None else f"_{labels.for_file(classes[i], names[classes[i]])}"
        pictures.to_pil(image).save(out / f"{i:05d}{said}.png")
    if texts is None:
        pictures.save_by_class(out / "grid.png", samples.images, classes, names)
    else:
        pictures.save_grid(out / "grid.png", samples.images)
        pictures.save_captioned(out / "prompts.png", samples.images, texts)


if __name__ == "__main__":
    cli.run(main)
