"""The part of `sample` that takes prompts: its flags, its checks and its pictures.

python -m driftar_jax.sample --workdir=runs/nextstep --vae=runs/f8 --prompt="a red fox" --out=W
python -m driftar_jax.sample ... --image=fox.png --prompt="<image> in the snow" --out=W
"""

import dataclasses
import pathlib

from absl import flags

from driftar_jax.checkpoints import write_json
from driftar_jax.cli import program as cli
from driftar_jax.config import wrong
from driftar_jax.data import pictures
from driftar_jax.sampling import prompted
from driftar_jax.sharding import make_mesh

_PROMPT = flags.DEFINE_multi_string("prompt", [], "Text of an image; may be given several times.")
_IMAGE = flags.DEFINE_multi_string("image", [], "Source image of an edit, one per --prompt.")
_NEGATIVE = flags.DEFINE_string("negative", "", "Prompt that guidance leads away from.")
_POSITIVE = flags.DEFINE_string("positive", "", "Text put behind every prompt.")
_HEIGHT = flags.DEFINE_integer("height", 512, "Height of the images made from prompts.")
_WIDTH = flags.DEFINE_integer("width", 512, "Width of the images made from prompts.")
_GUIDANCE_IMAGE = flags.DEFINE_float("guidance_image", None, "Guidance scale of --image.")
_SCHEDULE = flags.DEFINE_string("guidance_schedule", None, "constant | linear | rising (prompts).")
_SHIFT = flags.DEFINE_float("shift", None, "Shift of the flow head's times (prompts).")
_NORMALISE = flags.DEFINE_bool("normalise", None, "Normalise each token, as for guidance 7.5.")
_FSDP = flags.DEFINE_integer("mesh_fsdp", 1, "Devices over which widths are split (prompts).")
_TENSOR = flags.DEFINE_integer("mesh_tensor", 1, "Devices over which heads are split (prompts).")
# Flags of `sample` that a host of prompts does not know.
_OTHERS = ("labels", "method", "ar_steps", "nfe_schedule", "nfe_last", "guidance_form")
_OTHERS += ("temperature", "gamma", "rule", "delta")
# Flags that a converted checkpoint knows, and a run of this project does not.
_CONVERTED = ("image", "negative", "positive", "height", "width", "guidance_image")
_CONVERTED += ("guidance_schedule", "shift", "normalise", "mesh_fsdp", "mesh_tensor")


def refuse() -> None:
    """Raises ValueError where a flag was given that only prompts know."""
    for name in ("prompt",) if flags.FLAGS["mask"].present else ("prompt", "image"):
        if flags.FLAGS[name].present:
            allowed = "none: this checkpoint makes images of classes, by --labels"
            raise wrong(name, flags.FLAGS[name].value, allowed)


def texts(loaded, labels) -> list[str] | None:
    """What a run of this project that reads text is asked; None where it reads none.

    Args:
      loaded: `generator.Loaded`.
      labels: classes that captions are drawn from where no --prompt is given.

    Raises:
      ValueError: a flag does not belong to such a run.
    """
    given = flags.FLAGS
    if loaded.book is None:
        refuse()
        return None
    for name in _CONVERTED:
        if given[name].present:
            raise wrong(name, given[name].value, "none: this checkpoint was trained without it")
    captions = _PROMPT.value
    if not captions:
        return loaded.book.drawn(labels, given.seed)
    if given["labels"].present:
        raise wrong("labels", given["labels"].value, "none beside --prompt")
    for caption in captions:
        if not caption.strip():
            raise wrong("prompt", caption, "text")
    count = given.num if given["num"].present else len(captions)
    return [captions[i % len(captions)] for i in range(count)]


def main(out: pathlib.Path) -> None:
    """Sample what the flags ask for into the new folder `out`."""
    given = flags.FLAGS
    with cli.user_errors():
        for name in _OTHERS:
            if given[name].present:
                raise wrong(name, given[name].value, "none: this checkpoint takes --prompt")
        captions = _PROMPT.value
        if not captions:
            raise wrong("prompt", None, "at least one --prompt")
        for name in ("mesh_fsdp", "mesh_tensor"):
            if given[name].value < 1:
                raise wrong(name, given[name].value, "a whole number of at least 1")
        mesh = make_mesh(fsdp=_FSDP.value, tensor=_TENSOR.value)
        loaded = prompted.load(given.workdir, given.vae, mesh=mesh)
        changes = {
            "nfe": given.nfe,
            "guidance": given.guidance,
            "guidance_image": _GUIDANCE_IMAGE.value,
            "guidance_schedule": _SCHEDULE.value,
            "shift": _SHIFT.value,
            "normalise": _NORMALISE.value,
        }
        size = (_HEIGHT.value, _WIDTH.value)
        settings = loaded.settings(size, **changes)
        sources = prompted.read_sources(_IMAGE.value, loaded.step)
        count = given.num if given["num"].present else len(captions)
        if sources and len(sources) != len(captions):
            raise wrong("image", f"{len(sources)} images", f"one per --prompt, {len(captions)}")
        order = [i % len(captions) for i in range(count)]
        made = loaded.sample(
            [captions[i] for i in order],
            [sources[i] for i in order] if sources else (),
            size=size,
            seed=given.seed,
            positive=_POSITIVE.value,
            negative=_NEGATIVE.value,
            batch_size=min(count, given.batch_size if given["batch_size"].present else 1),
            **changes,
        )
    out.mkdir(parents=True, exist_ok=True)
    pictures.save_grid(out / "grid.png", made.images)
    for i, image in enumerate(made.images):
        pictures.to_pil(image).save(out / f"{i:05d}.png")
    facts = {
        "per_image": dataclasses.asdict(made.counts),
        "images": count,
        "prompts": captions,
        "settings": dataclasses.asdict(settings),
        "seed": given.seed,
    }
    write_json(out / "counts.json", facts)
    print(f"{out}: {count} images, {facts['per_image']}")
