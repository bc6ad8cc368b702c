"""Generate images from a checkpoint.

python -m driftar_jax.sample --workdir=runs/drift --num=64 --out=runs/drift/images
python -m driftar_jax.sample --workdir=runs/mar_base --vae=runs/kl16 --num=4 --out=runs/images
python -m driftar_jax.sample --workdir=runs/drift --image=shoe.png --mask=heel.png --out=runs/heels
python -m driftar_jax.sample --workdir=runs/drift_next --prompt="red heart, heart" --out=runs/hearts
"""

import dataclasses
import pathlib

import numpy as np
from absl import flags

import driftar_jax
from driftar_jax import sample_prompts
from driftar_jax.checkpoints import write_json
from driftar_jax.cli import program as cli
from driftar_jax.data import pictures
from driftar_jax.sampling import draft_count, inpaint, prompted

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder written by train or convert.")
_OUT = flags.DEFINE_string("out", None, "New folder for grid.png, single files and counts.json.")
_VAE = flags.DEFINE_string("vae", None, "Folder of the autoencoder, where tokens are latents.")
_NUM = flags.DEFINE_integer("num", 64, "How many images.")
_LABELS = flags.DEFINE_list("labels", [], "Class numbers or names, repeated in turn; all classes.")
_MASK = flags.DEFINE_string("mask", None, "Picture whose white part of --image is generated anew.")
_SEED = flags.DEFINE_integer("seed", 0, "Root of the randomness.")
_METHOD = flags.DEFINE_string("method", None, "own | drift | mean; what the checkpoint holds.")
_AR_STEPS = flags.DEFINE_integer("ar_steps", None, "AR steps; the config's by default.")
_NFE = flags.DEFINE_integer("nfe", None, "Head evaluations per AR step (own head).")
_NFE_SCHEDULE = flags.DEFINE_string("nfe_schedule", None, "constant | two_stage | linear | cosine.")
_NFE_LAST = flags.DEFINE_integer("nfe_last", None, "What --nfe falls to, unless constant.")
_GUIDANCE = flags.DEFINE_float("guidance", None, "Guidance scale; 1 is none.")
_GUIDANCE_FORM = flags.DEFINE_string("guidance_form", None, "extrapolate | trained.")
_TEMPERATURE = flags.DEFINE_float("temperature", None, "Temperature of the head or start noise.")
_GAMMA = flags.DEFINE_string(
    "gamma", None, "AR steps drafted per round: auto, or a number; 0 is none."
)
_RULE = flags.DEFINE_string("rule", None, "gaussian | coupled | feature; how drafts are accepted.")
_DELTA = flags.DEFINE_float("delta", None, "Bound of the rules coupled and feature.")
_STOP = flags.DEFINE_string(
    "stop", None, "Drafting ends where its mean entropy is under this; 0 never, auto as trained."
)
_BATCH = flags.DEFINE_integer("batch_size", 256, "Images per call.")
flags.mark_flags_as_required(["workdir", "out"])


def main(_) -> None:
    with cli.user_errors():
        out = _new_folder(_OUT.value)
        _at_least_one("num", _NUM.value)
        _at_least_one("batch_size", _BATCH.value)
        if not 0 <= _SEED.value < 2**31:
            raise ValueError(f"seed: got {_SEED.value}, allowed 0 to 2147483647")
        if prompted.is_prompted(_WORKDIR.value):
            sample_prompts.main(out)
            return
        loaded = driftar_jax.load(_WORKDIR.value, vae=_VAE.value)
        labels = _labels(loaded.parts.images.class_names, _LABELS.value, _NUM.value)
        texts = sample_prompts.texts(loaded, labels)
        asked = loaded.conditions(labels if texts is None else texts, _SEED.value)
        changes = {
            "method": _METHOD.value,
            "ar_steps": _AR_STEPS.value,
            "nfe": _NFE.value,
            "nfe_schedule": _NFE_SCHEDULE.value,
            "nfe_last": _NFE_LAST.value,
            "guidance": _GUIDANCE.value,
            "guidance_form": _GUIDANCE_FORM.value,
            "temperature": _TEMPERATURE.value,
            "gamma": draft_count.parse(_GAMMA.value),
            "rule": _RULE.value,
            "delta": _DELTA.value,
            "stop": draft_count.parse_stop(_STOP.value),
        }
        settings = loaded.checked(**changes)
        hole = _hole(loaded)
    if settings.gamma and not settings.drafts:
        print("gamma: one AR step makes the whole image, so there is nothing to draft: plain")
    rest = {"batch_size": _BATCH.value, **changes}
    if hole is None:
        made = loaded.sample(asked, _SEED.value, **rest)
    else:
        with cli.user_errors():
            made = inpaint.fill(loaded, *hole, asked, _SEED.value, **rest)
    out.mkdir(parents=True, exist_ok=True)
    pictures.save_grid(out / "grid.png", made.images)
    if texts is not None:
        pictures.save_captioned(out / "prompts.png", made.images, texts)
    for i, image in enumerate(made.images):
        name = f"{i:05d}_class{labels[i]}.png" if texts is None else f"{i:05d}.png"
        pictures.to_pil(image).save(out / name)
    facts = {
        "per_image": dataclasses.asdict(made.counts),
        "images": len(asked),
        **({} if texts is None else {"prompts": texts}),
        "settings": dataclasses.asdict(settings),
        "gamma": made.gamma,
        "speculation": made.speculation,
        "seed": _SEED.value,
        "step": loaded.step,
    }
    write_json(out / "counts.json", facts)
    print(f"{out}: {len(asked)} images, {facts['per_image']}")


def _hole(loaded):
    """Image and mask to fill in, or None."""
    pictured = flags.FLAGS["image"].value
    if not _MASK.present:
        return None
    if len(pictured) != 1:
        raise ValueError(f"image: got {len(pictured)} of them, allowed one together with --mask")
    return inpaint.read(pictured[0], _MASK.value, inpaint.pixel_shape(loaded)[-1])


def _new_folder(path: str) -> pathlib.Path:
    out = pathlib.Path(path)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out: got {path!r}, allowed a new or empty folder")
    return out


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}: got {value}, allowed a whole number of at least 1")


def _labels(names: tuple[str, ...], asked: list[str], num: int) -> np.ndarray:
    """`num` class numbers, going round through `asked` (numbers or names) or all classes."""
    chosen = []
    for word in asked or range(len(names)):
        if word in names:
            chosen.append(names.index(word))
        elif str(word).lstrip("-").isdigit() and -1 <= int(word) < len(names):
            chosen.append(int(word))
        else:
            raise ValueError(
                f"labels: got {word!r}, allowed -1 to {len(names) - 1} or a class name"
            )
    return np.resize(np.asarray(chosen, np.int32), num)


if __name__ == "__main__":
    cli.run(main)
